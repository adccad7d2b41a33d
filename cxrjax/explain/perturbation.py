"""Deletion and insertion: how the score falls as the evidence is taken away, and rises with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

_NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))
_WEIGHTS = (1 / 6,) * 4 + (1 / 12,) * 4
_NOISE = 0.01  # of full scale: otherwise what was removed is told by its smoothness
SHARES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def impute(image: np.ndarray, removed: np.ndarray, seed: int = 0) -> np.ndarray:
    """Replaces pixels by a noisy weighted mean of their neighbours, solved as one linear system.

    Rong et al. 2022 (ROAD, arXiv 2202.00449), section 4.2: weights 1/6 for the four neighbours and
    1/12 for the diagonal ones, scaled to sum to 1 at the edge.

    Args:
      image: uint8 [H, W].
      removed: bool [H, W].
    Returns:
      uint8 [H, W].
    """
    if not removed.any():
        return image.copy()
    height, width = image.shape
    number = np.full(image.shape, -1)
    number[removed] = np.arange(removed.sum())
    y, x = np.nonzero(removed)
    of = number[removed]
    rows, columns, values = [], [], []
    right, total = np.zeros(len(of)), np.zeros(len(of))
    for (dy, dx), weight in zip(_NEIGHBOURS, _WEIGHTS, strict=True):
        ny, nx = y + dy, x + dx
        there = (ny >= 0) & (ny < height) & (nx >= 0) & (nx < width)
        ny, nx, mine = ny[there], nx[there], of[there]
        total[mine] += weight
        unknown = removed[ny, nx]
        rows.append(mine[unknown])
        columns.append(number[ny[unknown], nx[unknown]])
        values.append(np.full(unknown.sum(), -weight))
        right[mine[~unknown]] += weight * image[ny[~unknown], nx[~unknown]]
    rows.append(of)
    columns.append(of)
    values.append(total)
    n = len(of)
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    solved = (
        np.full(n, image.mean())
        if removed.all()
        else spsolve(coo_matrix(parts, shape=(n, n)).tocsc(), right)
    )
    noise = np.random.default_rng(seed).normal(size=n) * 255 * _NOISE
    filled = image.copy()
    filled[removed] = np.rint(np.clip(solved + noise, 0, 255)).astype(np.uint8)
    return filled


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
    result = {"share": np.asarray(SHARES)}
    for name in ("deletion", "insertion"):
        columns = []
        for share in SHARES:
            changed = []
            for i in range(n):
                most = np.zeros(size * size, bool)
                most[order[i, : round(share * size * size)]] = True
                most = most.reshape(size, size)
                changed.append(impute(images[i], most if name == "deletion" else ~most, seed=i))
            columns.append(predict(np.stack(changed))[np.arange(n), classes])
        result[name] = np.stack(columns, axis=1)
    return result


def area(curve: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean height under curves [N, P] over `share` [P]; low is good for deletion."""
    return np.trapezoid(curve, share, axis=1) / (share[-1] - share[0])
