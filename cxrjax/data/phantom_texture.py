"""Random textures of the phantoms: smooth fields, vessel trees, film grain. Precomputed banks."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from cxrjax.data.phantom_anatomy import Chest

_TREES = 12  # vessel trees; each lung takes one, stretched and shifted
_TREE_SIDE = 384
_TREE_REACH = (0.85, 1.7)  # width and height of a tree in body coordinates
_GRAIN_MARGIN = 97


def smooth_field(rng: np.random.Generator, knots: int, size: int) -> np.ndarray:
    """Gaussian random field, float32 [size, size], standard deviation about 1.

    A quadratic B-spline surface over `knots` by `knots` spans; the same at every size.
    """
    weights = rng.standard_normal((knots + 2, knots + 2), np.float32)
    return _spline(np.ascontiguousarray(_spline(weights, knots, size).T), knots, size)


def _spline(weights: np.ndarray, knots: int, size: int) -> np.ndarray:
    """Spline curves along the first axis, [knots + 2, n] to [size, n].

    Not a product with a matrix of the basis: a linear algebra library would start its threads for
    it, which takes many times longer where other threads are at work.
    """
    first, basis = _spline_basis(knots, size)
    curve = weights.take(first, axis=0)
    curve *= basis[0]
    for k in (1, 2):
        term = weights.take(first + k, axis=0)
        term *= basis[k]
        curve += term
    return curve


@lru_cache(maxsize=64)
def _spline_basis(knots: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """At each pixel: the first of its three uniform quadratic B-splines, intp [size], and their
    values, float32 [3, size, 1]."""
    position = (np.arange(size) + 0.5) * (knots / size)
    first = position.astype(np.intp)
    t = position - first
    basis = np.stack([0.5 * (1 - t) ** 2, 0.5 + t * (1 - t), 0.5 * t**2])
    # 0.742: root mean square norm of the three values, so that the field has unit variance.
    return first, (basis / 0.742).astype(np.float32)[:, :, None]


@lru_cache(maxsize=4)
def _grain_tile(size: int) -> np.ndarray:
    side = size + _GRAIN_MARGIN
    rng = np.random.Generator(np.random.Philox(key=[7, size]))
    noise = rng.standard_normal((side, side), np.float32)
    noise = noise + 0.6 * ndimage.gaussian_filter(noise, 0.8) * 2.8  # detectors blur a little
    return (noise / noise.std()).astype(np.float32)


def grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Film grain, float32 [size, size], unit variance: a random window of one large tile."""
    top, left = rng.integers(0, _GRAIN_MARGIN, 2)
    tile = _grain_tile(size)[top : top + size, left : left + size]
    flip, turn = rng.random(2) < 0.5
    tile = tile[::-1] if flip else tile
    return tile.T if turn else tile


def vessels(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """Branching vessels of both lungs, float32 [size, size], 0 to about 1."""
    a, grid = chest.anatomy, chest.grid
    which = rng.integers(0, _TREES, 2)
    jitter = rng.uniform(-0.05, 0.05, 3)
    width, height = (_TREE_SIDE / reach for reach in _TREE_REACH)
    left = (grid >= 0).astype(np.intp)
    across = (np.abs(grid) / a.vessel_scale + jitter[:2].astype(np.float32)[left]) * width
    column = np.clip(across, 0, _TREE_SIDE - 1).astype(np.intp)
    column += which[left] * _TREE_SIDE**2
    down = (grid / a.vessel_scale + (0.85 + float(jitter[2]))) * height
    row = np.clip(down, 0, _TREE_SIDE - 1).astype(np.intp) * _TREE_SIDE
    index = column.take(chest.ix, mode="wrap")
    index += row.take(chest.iy, mode="wrap")
    return _vessel_trees().take(index, mode="wrap") * np.float32(1 / 255)


@lru_cache(maxsize=1)
def _vessel_trees() -> np.ndarray:
    """uint8 [_TREES * side * side]: trees that branch from a hilum left of the middle."""
    rng = np.random.Generator(np.random.Philox(key=[11, 0]))
    trees = np.stack([_vessel_tree(rng) for _ in range(_TREES)])
    return (trees * 255 + 0.5).astype(np.uint8).ravel()  # bytes: more of them fit the cache


def _vessel_tree(rng: np.random.Generator) -> np.ndarray:
    side = _TREE_SIDE
    layers = {width: np.zeros((side, side), np.float32) for width in (1.0, 1.7, 2.8, 4.2)}
    widths = sorted(layers)
    # (x, y, direction, radius) with directions clockwise from the lateral one.
    growing = []
    for direction in rng.permutation(np.linspace(-1.75, 1.95, 12)):
        x = (0.13 + 0.05 * rng.random()) / _TREE_REACH[0] * side
        y = (0.85 + 0.12 * rng.normal() + 0.06 * direction) / _TREE_REACH[1] * side
        growing.append((x, y, direction + rng.normal(0, 0.12), rng.uniform(2.2, 4.4)))
    while growing:
        x, y, direction, radius = growing.pop()
        if radius < 0.8:
            continue
        length = int(rng.uniform(5, 11) * (1.4 + radius))
        turns = direction + np.cumsum(rng.normal(0, 0.035, length))
        xs, ys = x + np.cumsum(np.cos(turns)), y + np.cumsum(np.sin(turns))
        inside = (xs > 0) & (xs < side - 1) & (ys > 0) & (ys < side - 1)
        layer = layers[min(widths, key=lambda width: abs(width - radius))]
        weight = 0.05 + 0.12 * radius
        np.add.at(layer, (ys[inside].astype(int), xs[inside].astype(int)), weight)
        if not inside.all():
            continue
        spread = rng.uniform(0.25, 0.6)
        for sign, share in ((1, rng.uniform(0.62, 0.9)), (-1, rng.uniform(0.62, 0.9))):
            growing.append((xs[-1], ys[-1], turns[-1] + sign * spread, radius * share))
    tree = sum(
        ndimage.gaussian_filter(layer, 0.5 + width * 0.7) * width for width, layer in layers.items()
    )
    return np.tanh(np.asarray(tree) * 2.0)
