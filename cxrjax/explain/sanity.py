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
from cxrjax.explain.scores import agreement
from cxrjax.trained import Trained

LIMIT = 0.5  # mean rank correlation with the trained network's map at which a method fails


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


def check(
    run: Trained,
    method: str,
    images: np.ndarray,
    depths: Sequence[int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Randomises layer by layer and compares maps with those of the trained network.

    Args:
      images: uint8 [N, S, S].
      depths: how many layers to randomise, in turn; None: 1, 2, 4, ... and all.
    Returns:
      `layers`: {layer down to which weights are random: mean rank correlation}, and `passed`: with
      all layers random, the maps are no longer those of the trained network.
    """
    names = layers(run)
    if depths is None:
        depths = [2**i for i in range(len(names).bit_length()) if 2**i < len(names)] + [len(names)]
    probabilities, original = Explainer(run, method)(images)
    chosen = np.arange(len(images)), probabilities.argmax(1)
    found = {}
    for depth in depths:
        _, maps = Explainer(randomised(run, depth, seed), method)(images)
        # A flat map has nothing in common with any other.
        alike = np.nan_to_num(agreement(original[chosen], maps[chosen]))
        found[names[depth - 1][1]] = float(alike.mean())
    last = found[names[depths[-1] - 1][1]]
    return {"layers": found, "limit": LIMIT, "passed": bool(abs(last) < LIMIT)}
