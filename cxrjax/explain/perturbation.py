"""Deletion and insertion: how the score falls as the evidence is taken away, and rises with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import log
from cxrjax.explain.maps import enlarge
from cxrjax.explain.scores import mean_interval
from cxrjax.models.grid import Grid

_NOISE = 0.01  # of full scale: otherwise what was removed is told by its smoothness
_TOLERANCE, _STEPS = 1e-2, 2000  # leaves errors of about one grey level, less than the noise
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
BASELINES = {
    "shuffled": "what the map marks with its cells shuffled",
    "centre": "the middle of the film",
}


def impute(images: np.ndarray, removed: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Replaces pixels by a noisy weighted mean of their neighbours, solved as one linear system.

    Rong et al. 2022 (ROAD, arXiv 2202.00449), section 4.2: weights 1/6 for the four neighbours and
    1/12 for the diagonal ones, scaled to sum to 1 at the edge. An image of which nothing is left
    becomes flat, of its mean.

    Args:
      images: uint8 [N, H, W].
      removed: bool [N, H, W].
      seeds: int [N], of each image's noise.
    Returns:
      uint8 [N, H, W].
    """
    solved = np.asarray(_solved(images, removed))
    noise = [np.random.default_rng(seed).normal(size=images.shape[1:]) for seed in seeds]
    filled = np.rint(np.clip(solved + np.stack(noise) * 255 * _NOISE, 0, 255))
    return np.where(removed, filled, images).astype(np.uint8)


def _neighbours(x: jax.Array) -> jax.Array:
    """Weighted sum of the eight neighbours of each pixel of [N, H, W]; 0 outside."""
    y = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    beside = y[:, 1:-1, :-2] + y[:, 1:-1, 2:] + y[:, :-2, 1:-1] + y[:, 2:, 1:-1]
    across = y[:, :-2, :-2] + y[:, :-2, 2:] + y[:, 2:, :-2] + y[:, 2:, 2:]
    return beside / 6 + across / 12


@jax.jit
def _solved(images: jax.Array, removed: jax.Array) -> jax.Array:
    """The linear systems of a batch by conjugate gradients, preconditioned by their diagonal.

    The matrix is symmetric: what is divided by at the edge stands on the diagonal.
    """
    whole, gone = images.astype(jnp.float32), removed.astype(jnp.float32)
    left = 1 - gone
    diagonal = _neighbours(jnp.ones_like(whole[:1]))

    def times(x):
        return gone * (diagonal * x - _neighbours(x))

    def dot(a, b):
        return (a * b).sum((1, 2), keepdims=True)

    count = left.sum((1, 2), keepdims=True)
    mean = dot(whole, left) / jnp.maximum(count, 1)
    x = gone * jnp.where(count > 0, mean, whole.mean((1, 2), keepdims=True))
    rest = gone * _neighbours(whole * left) - times(x)
    towards = rest / diagonal

    def more(state):
        step, _, _, _, size = state
        return (step < _STEPS) & (size.max() > _TOLERANCE)

    def improve(state):
        step, x, rest, towards, size = state
        moved = times(towards)
        # An image that is solved already must not divide 0 by 0.
        length = size / jnp.maximum(dot(towards, moved), 1e-20)
        x, rest = x + length * towards, rest - length * moved
        scaled = rest / diagonal
        following = dot(rest, scaled)
        towards = scaled + following / jnp.maximum(size, 1e-20) * towards
        return step + 1, x, rest, towards, following

    start = (0, x, rest, towards, dot(rest, towards))
    return whole * left + jax.lax.while_loop(more, improve, start)[1]


def curves(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    maps: np.ndarray,
    classes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Probability of a class as the pixels with most evidence are removed, or alone are kept.

    Args:
      predict: uint8 [N, S, S] -> float [N, K].
      images: uint8 [N, S, S].
      maps: float [N, S, S].
      classes: int [N], whose probability is followed.
    Returns:
      `share` [P], the shares of pixels; `deletion` [N, P] with that share removed; `insertion`
      [N, P] with that share alone kept. Pixels of equal evidence go in the order of their place.
    """
    n, size = len(images), images.shape[-1]
    order = np.argsort(-maps.reshape(n, -1), axis=1, kind="stable")
    rank = np.argsort(order, axis=1).reshape(images.shape)
    result: dict[str, Any] = {"share": np.asarray(SHARES), "deletion": [], "insertion": []}
    for share in log.progress(SHARES, total=len(SHARES), what="imputation", unit="shares"):
        most = rank < round(share * size * size)
        for name, removed in (("deletion", most), ("insertion", ~most)):
            changed = impute(images, removed, np.arange(n))
            result[name].append(predict(changed)[np.arange(n), classes])
    return result | {name: np.stack(result[name], axis=1) for name in ("deletion", "insertion")}


def area(curve: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean height under curves [N, P] over `share` [P]; low is good for deletion."""
    return np.trapezoid(curve, share, axis=1) / (share[-1] - share[0])


def shuffled(raw: np.ndarray, seed: int = 0) -> np.ndarray:
    """Maps [N, h, w] with the cells of each in an order of their own: as coarse, but elsewhere."""
    rng = np.random.default_rng(seed)
    return rng.permuted(raw.reshape(len(raw), -1), axis=1).reshape(raw.shape)


def centre(n: int, size: int) -> np.ndarray:
    """A map that knows nothing but that films are centred: float [n, size, size]."""
    y = np.linspace(-1, 1, size)
    return np.broadcast_to(-np.hypot(y[:, None], y), (n, size, size))


def faithfulness(
    predict: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    raw: np.ndarray,
    grid: Grid,
    classes: np.ndarray,
    groups: np.ndarray,
) -> dict[str, Any]:
    """Deletion and insertion by the maps beside the same by maps that know nothing of the image.

    Args:
      predict, images, classes: see `curves`.
      raw: float [N, h, w], the maps of those classes; grid: where their cells lie.
      groups: int [N], drawn whole by the bootstrap.
    Returns:
      `share` [P]; `curves` {map, shuffled or centre: {deletion or insertion: P entries}}; `area`
      likewise, an entry each; and `gain` {shuffled or centre: {deletion or insertion: entry}}: by
      how much the maps are better, as the mean of differences. Entries: {value, low, high, n}.
    """
    ways = {
        "map": enlarge(raw, grid),
        "shuffled": enlarge(shuffled(raw), grid),
        "centre": centre(len(images), images.shape[-1]),
    }
    found = {way: curves(predict, images, maps, classes) for way, maps in ways.items()}
    share, sides = found["map"]["share"], {"deletion": -1, "insertion": 1}
    areas = {way: {side: area(of[side], share) for side in sides} for way, of in found.items()}

    def entries(columns):
        return [mean_interval(column, groups) for column in columns]

    return {
        "share": share.tolist(),
        "curves": {way: {s: entries(of[s].T) for s in sides} for way, of in found.items()},
        "area": {
            way: {s: mean_interval(of[s], groups) for s in sides} for way, of in areas.items()
        },
        "gain": {
            way: {
                side: mean_interval(sign * (areas["map"][side] - areas[way][side]), groups)
                for side, sign in sides.items()
            }
            for way in BASELINES
        },
    }


def sentences(found: dict[str, Any]) -> list[str]:
    """What may be said of `faithfulness`: only what its intervals support."""
    whole = found["gain"]["shuffled"]["deletion"]
    if whole["low"] is None:
        return [f"Too few images (n={whole['n']}) to say what deletion and insertion show."]
    said = []
    acts = {
        "deletion": ("Removing", "lowers the probability"),
        "insertion": ("Keeping", "holds the probability up"),
    }
    for way, what in BASELINES.items():
        for side, (act, does) in acts.items():
            gain = found["gain"][way][side]
            ours, theirs = (found["area"][of][side]["value"] for of in ("map", way))
            numbers = (
                f"(area {ours:.2f} against {theirs:.2f}; gain {gain['value']:.2f} "
                f"[{gain['low']:.2f}, {gain['high']:.2f}], n={gain['n']})"
            )
            start, rest = f"{act} what the map marks {does}", f"than {act.lower()} {what}"
            if gain["low"] > 0:
                said.append(f"{start} more {rest} {numbers}.")
            elif gain["high"] < 0:
                said.append(f"{start} less {rest} {numbers}.")
            else:
                start = start[0].lower() + start[1:]
                said.append(f"Whether {start} more {rest} is not shown {numbers}.")
    return said
