"""Class-conditional conformal prediction: sets of classes that hold the true one as often as asked.

Vovk 2012, https://arxiv.org/abs/1209.2673 (label-conditional); Angelopoulos & Bates 2021,
https://arxiv.org/abs/2107.07511, section 4.2; over groups of images that belong together (films of
one patient), Lee, Barber & Willett 2023, https://arxiv.org/abs/2306.06342. Whatever the network,
of an image of each class from a new group the set holds that class with at least the asked
probability, over draws of calibration and new groups from the same place. A class with too few
calibration groups is in every set.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import bootstrap


@jax.jit
def thresholds(
    probabilities: jax.Array, labels: jax.Array, shares: jax.Array, level: float
) -> jax.Array:
    """The least probability with which each class belongs into a set, float [K].

    With n calibration groups of a class, each a mass of 1 that its images share, the highest
    probability below which lies a mass of no more than n - (n + 1) level; 0 where that is negative.
    Of images that are a group each it has rank n + 1 - ceil((n + 1) level) from below. As a cut on
    one class's probability it is the highest that finds the class with the asked sensitivity.

    Args:
      probabilities: float [N, K], of calibration images the network was not trained on.
      labels: int [N].
      shares: float [N], see `shares_of`.
      level: the wanted share of sets that hold the true class.
    """
    own = labels[:, None] == jnp.arange(probabilities.shape[1])[None]
    mass = jnp.where(own, shares[:, None], 0)
    order = jnp.argsort(jnp.where(own, probabilities, jnp.inf), axis=0)
    passed = jnp.cumsum(jnp.take_along_axis(mass, order, axis=0), axis=0)
    below = allowed(jnp.sum(mass, axis=0, keepdims=True), level)
    at = jnp.argmax(passed > below, axis=0, keepdims=True)
    cut = jnp.take_along_axis(jnp.take_along_axis(probabilities, order, axis=0), at, axis=0)
    return jnp.where(below >= 0, cut, 0)[0]


def allowed(groups: Any, level: float) -> Any:
    """The mass that may lie below a threshold, of so many groups of a class; see `thresholds`."""
    # A millionth less: 0.9 times 10 is 9, whatever the rounding.
    return groups - (groups + 1) * level * (1 - 1e-6)


def shares_of(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """One over the number of images of the same class and group, float64 [N]."""
    names = np.stack([labels, groups], axis=1)
    _, member, sizes = np.unique(names, axis=0, return_inverse=True, return_counts=True)
    return 1 / sizes[member.ravel()]


def fit(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, level: float
) -> np.ndarray:
    """`thresholds` in float64, so that the image that sets one is not below it by rounding."""
    shares = shares_of(labels, groups)
    with jax.enable_x64(True):
        return np.asarray(thresholds(np.asarray(probabilities, np.float64), labels, shares, level))


def sets(probabilities: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Which classes are in the set of each image, bool [N, K]."""
    return np.asarray(probabilities) >= np.asarray(least)


def coverage_table(
    chosen: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    names: tuple[str, ...],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """How often the sets hold the true class, overall and by class, and how large they are.

    Args:
      chosen: bool [N, K], from `sets`.
      labels: int [N]; groups: int [N].
      names: the K classes.
    Returns:
      `coverage`, `size` (classes in a set), `single` (share of sets of one class) and `empty`, each
      {value, low, high, n}, under "all" and under the name of each true class.
    """
    held = chosen[np.arange(len(labels)), labels]
    size = chosen.sum(axis=1)
    figures = {"coverage": held, "size": size, "single": size == 1, "empty": size == 0}
    values = np.stack([np.ones(len(labels)), *figures.values()], axis=1)
    of = np.stack([np.ones(len(labels)), *(labels == k for k in range(len(names)))], axis=1)
    shape = -1, of.shape[1], values.shape[1]
    summed = of[:, :, None] * values[:, None]
    drawn = bootstrap.totals(summed.reshape(len(labels), -1), groups, resamples, seed)
    total, drawn = summed.sum(axis=0), drawn.reshape(shape)
    with np.errstate(invalid="ignore"):
        value, shares = total[:, 1:] / total[:, :1], drawn[..., 1:] / drawn[..., :1]
    g = bootstrap.count_groups(groups, of.astype(bool))

    def entry(row: int, k: int, figure: str) -> dict[str, Any]:
        found = value[row, k], shares[:, row, k], total[row, 0]
        return bootstrap.entry(*found) if figure == "size" else bootstrap.share(*found, g[row])

    return {
        name: {figure: entry(row, k, figure) for k, figure in enumerate(figures)}
        for row, name in enumerate(("all", *names))
    }
