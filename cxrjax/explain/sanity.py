"""Whether a map depends on what was learnt: layers are made random, from the logits down.

Adebayo et al. 2018 (arXiv 1810.03292), cascading randomisation. A method whose maps stay alike
shows the image, not the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cxrjax.explain.maps import Explainer
from cxrjax.explain.scores import agreement, mean_interval
from cxrjax.trained import Trained

# Mean size of the rank correlation with the trained network's maps from which a method fails. Maps
# of 8x8 cells of unrelated weights have up to .35, as neighbouring cells are alike.
LIMIT = 0.5
DRAWS = 3  # of random weights: one alone may be alike by chance
_EACH = 8  # networks of no more layers are made random one layer at a time


def randomised(run: Trained, depth: int, seed: int = 0) -> Trained:
    """`run` with its last `depth` layers that have a kernel shuffled within themselves.

    Shuffling keeps the distribution of each kernel, so activations keep their scale.

    Args:
      depth: 1 is the logits alone, 0 nothing.
    """
    rng = np.random.default_rng(seed)
    names = layers(run)[:depth]
    params: dict[str, Any] = {part: dict(run.params[part]) for part in run.params}
    for part, name in names:
        kernel = np.asarray(params[part][name]["kernel"])
        shuffled = rng.permutation(kernel.ravel()).reshape(kernel.shape)
        params[part][name] = {**params[part][name], "kernel": shuffled}
    return replace(run, params=params)


def layers(run: Trained) -> list[tuple[str, str]]:
    """(part, layer) of every kernel, from the logits down to the first convolution."""
    from cxrjax.models import classifier

    model = classifier.merge(run.recipe.graphdef, run.params, run.batch_stats)
    head = [("head", n) for n in ("logits", "dense") if n in run.params["head"]]
    body = [
        ("backbone", n)
        for n in reversed(model.backbone.layers)
        if "kernel" in run.params["backbone"].get(n, {})
    ]
    return head + body


def cascade(n: int) -> list[int]:
    """How many of `n` layers are random, in turn: each number of a few, else 1, 4, 16, ..., all."""
    if n <= _EACH:
        return list(range(1, n + 1))
    return [4**i for i in range(n.bit_length()) if 4**i < n] + [n]


def check(
    explainer: Explainer,
    images: np.ndarray,
    classes: np.ndarray,
    groups: np.ndarray,
    depths: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Randomises layer by layer and compares maps with those of the trained network.

    What counts is the size of the correlation: a map whose sign alone hangs on the weights still
    shows the image.

    Args:
      explainer: of the trained network.
      images: uint8 [N, S, S].
      classes: int [N], whose maps are compared.
      groups: int [N], drawn whole by the bootstrap.
      depths: how many layers to randomise, in turn; None: see `cascade`.
    Returns:
      `layers`: {layer down to which weights are random: {value, low, high, n} of the mean size of
      the rank correlation}; `limit`; `draws`; and `passed`: at the last depth, the interval lies
      below the limit; None where there is no interval.
    """
    run = explainer.run
    names = layers(run)
    original = explainer.of_classes(images, classes)
    found = {}
    for depth in cascade(len(names)) if depths is None else depths:
        sizes = []
        for draw in range(DRAWS):
            other = explainer.with_weights(randomised(run, depth, draw))
            alike = agreement(original, other.of_classes(images, classes))
            # A flat map has nothing in common with any other.
            sizes.append(np.abs(np.nan_to_num(alike)))
        found[names[depth - 1][1]] = mean_interval(np.mean(sizes, axis=0), groups)
    last = list(found.values())[-1]
    passed = None if last["high"] is None else bool(last["high"] < LIMIT)
    return {"layers": found, "limit": LIMIT, "draws": DRAWS, "passed": passed}


def sentence(found: dict[str, Any], method: str) -> str:
    """The verdict of `check` with its criterion."""
    last = list(found["layers"].values())[-1]
    if found["passed"] is None:
        return f"Too few images (n={last['n']}) to say whether {method} depends on the weights."
    verdict = "passed" if found["passed"] else "FAILED, these maps show the image, not the network"
    return (
        f"Randomisation: with random weights, maps of {method} correlate with the trained ones by "
        f"{last['value']:.2f} [{last['low']:.2f}, {last['high']:.2f}], n={last['n']}; the interval "
        f"must lie below {found['limit']:.2f}: {verdict}."
    )
