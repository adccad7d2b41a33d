"""The bootstrap over groups: draws, what the draws sum, and the intervals they give.

Whole groups (near-duplicates, films of one patient) are drawn with replacement, as many as there
are: Efron 1979, doi:10.1214/aos/1176344552; over clusters, Field & Welsh 2007,
doi:10.1111/j.1467-9868.2007.00593.x. A resample is a row of weights that counts how often each
example was drawn. The same seed gives the same draws to whatever is computed on the same groups,
so differences of two such results are paired.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

ECE_BINS = 15
_CALL = 2**26  # counts handed to one call: 64 MiB, so 10,000 resamples of 4,000 examples are one
_NEAR = 2**16  # numbers drawn at a time: they stay in the nearer caches
_PAD = 512  # examples are padded to a multiple of it
FEW = 10  # groups on one side of a share, below which its resamples tell too little
_BLOCK = 2**22  # weights in memory at a time, as float64: 32 MiB


class Statistics(NamedTuple):
    """What every metric of metrics.py can be computed from; R rows of weights, K classes."""

    confusion: np.ndarray  # float64 [R, K, K], weight of each (true, predicted) pair
    log_loss: np.ndarray  # float64 [R], nats
    brier: np.ndarray  # float64 [R]
    ece: np.ndarray  # float64 [R]
    auroc: np.ndarray  # float64 [R, K], one class against the rest; NaN without one of the two
    average_precision: np.ndarray  # float64 [R, K]; NaN without positives


class Columns(NamedTuple):
    """What each example adds to a weighted sum, float64 [N, ...]."""

    cells: np.ndarray  # [N, K * K], 1 at label * K + predicted
    log_loss: np.ndarray  # [N], nats
    brier: np.ndarray  # [N]
    gap: np.ndarray  # [N, ECE_BINS], hit - confidence in the bin of the confidence


def columns(labels: np.ndarray, probabilities: np.ndarray) -> Columns:
    """The summands of the confusion matrix, log loss, Brier score and ECE; see metrics.py.

    Args:
      labels: int [N].
      probabilities: float [N, K].
    """
    probabilities = np.asarray(probabilities, np.float64)
    n, k = probabilities.shape
    rows = np.arange(n)
    cells = np.zeros([n, k * k])
    cells[rows, labels * k + probabilities.argmax(axis=1)] = 1
    epsilon = np.finfo(np.float64).eps
    log_loss = -np.log(np.clip(probabilities[rows, labels], epsilon, 1 - epsilon))
    truth = np.zeros([n, k])
    truth[rows, labels] = 1
    brier = ((probabilities - truth) ** 2).sum(axis=1)
    confidence = probabilities.max(axis=1)
    gap = np.zeros([n, ECE_BINS])
    gap[rows, ece_bin(confidence)] = (probabilities.argmax(axis=1) == labels) - confidence
    return Columns(cells, log_loss, brier / 2 if k == 2 else brier, gap)


def ece_bin(confidence: np.ndarray) -> np.ndarray:
    """Which of the equal bins (lower, upper] of [0, 1] a confidence lies in, int of its shape."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def class_scores(probabilities: np.ndarray) -> np.ndarray:
    """Float64 [N, K]: how strongly each example is taken for each class.

    The probabilities; of two classes the odds of the second one, which order as log p1 - log p0
    does: in float32 whichever is near 1 is rounded to it, and only the other one still tells how
    near. Below float32's smallest normal number nothing is told apart.
    """
    scores = np.asarray(probabilities, np.float64)
    if scores.shape[1] == 2:
        first, second = np.maximum(scores, np.finfo(np.float32).tiny).T
        return np.stack([-second / first, second / first], axis=1)
    return scores


def draws(
    groups: np.ndarray, resamples: int, seed: int, most: int | None = None
) -> Iterator[np.ndarray]:
    """How often each group was drawn, uint8 [r, G] at a time, G groups in sorted order.

    Args:
      groups: int [N].
      resamples: rows of all parts together.
      seed: of NumPy's default generator, from which row after row takes G integers below G.
      most: numbers in one part; None: as many as one call takes.
    """
    count = len(np.unique(groups))
    rows = max(1, (most or _CALL) // count)
    if resamples * count <= _CALL:
        whole = _kept_draws(count, resamples, seed)
        yield from (whole[start : start + rows] for start in range(0, resamples, rows))
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        yield _draw(rng, count, min(rows, resamples - start))


@functools.lru_cache(maxsize=2)  # of validation and test split: an evaluation draws them often
def _kept_draws(count: int, resamples: int, seed: int) -> np.ndarray:
    return _draw(np.random.default_rng(seed), count, resamples)


def _draw(rng: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    drawn = np.empty([resamples, count], np.uint8)
    rows = max(1, _NEAR // count)
    for start in range(0, resamples, rows):
        part = drawn[start : start + rows]
        cells = rng.integers(count, size=part.shape) + np.arange(len(part))[:, None] * count
        part[:] = np.bincount(cells.ravel(), minlength=part.size).reshape(part.shape)
    drawn.flags.writeable = False
    return drawn


def weights(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of weights of the resamples, float64 [r, N] at a time."""
    member = np.unique(groups, return_inverse=True)[1]
    for counts in draws(groups, resamples, seed, max(1, _BLOCK // 4)):
        yield counts.astype(np.float64)[:, member]


def totals(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of per-example values over each resample.

    Args:
      values: float [N, C].
      groups: int [N].
    Returns:
      float64 [resamples, C].
    """
    names, member = np.unique(groups, return_inverse=True)
    by_group = np.zeros([len(names), values.shape[1]])
    np.add.at(by_group, member, values)
    parts = draws(groups, resamples, seed, _BLOCK)
    return np.concatenate([counts.astype(np.float64) @ by_group for counts in parts])


def interval(drawn: np.ndarray) -> np.ndarray:
    """Percentiles 2.5 and 97.5 over axis 0, NaN left out; NaN where nothing remains: [2, ...]."""
    bounds = np.full([2, *drawn.shape[1:]], np.nan)
    for at in np.ndindex(drawn.shape[1:]):
        known = drawn[(slice(None), *at)]
        known = known[~np.isnan(known)]
        if len(known):
            bounds[(slice(None), *at)] = np.percentile(known, [2.5, 97.5])
    return bounds


def entry(value: Any, drawn: np.ndarray, n: int) -> dict[str, Any]:
    """`{value, low, high, n}` of one figure for a JSON file, None where undefined.

    Args:
      value: the figure itself.
      drawn: float [R], the figure in each resample.
      n: the examples it rests on.
    """
    low, high = interval(drawn)
    return _told(value, low, high, n)


def _told(value: Any, low: Any, high: Any, n: int) -> dict[str, Any]:
    return {"value": number(value), "low": number(low), "high": number(high), "n": int(n)}


def share(value: Any, drawn: np.ndarray, n: int, groups: int) -> dict[str, Any]:
    """`entry` of a share of the examples, which says little near 0 and 1 where they are few.

    Args:
      groups: how many groups hold an example that the share is of; see `widened`.
    """
    low, high = interval(drawn)
    return _told(value, *widened(value, low, high, groups), n)


def widened(value: Any, low: Any, high: Any, groups: int) -> tuple[Any, Any]:
    """The interval of a share, at least the exact one where few groups are for or against.

    The nearer to 0 or 1, the less a share varies among resamples: where all are right, all of
    every resample are. With fewer than ten groups' worth on one side the interval reaches at least
    as far as that of as many independent trials (Clopper & Pearson 1934,
    doi:10.1093/biomet/26.4.404).
    """
    hits, misses = value * groups, (1 - value) * groups
    if not min(hits, misses) < FEW:  # NaN too
        return low, high
    if hits > 0:
        low = min(low, special.betaincinv(hits, misses + 1, 0.025))
    if misses > 0:
        high = max(high, special.betaincinv(hits + 1, misses, 0.975))
    return low, high


def count_groups(groups: np.ndarray, member: np.ndarray) -> np.ndarray:
    """How many groups hold an example of each column: int [C].

    Args:
      groups: int [N]; member: bool [N, C].
    """
    names, of = np.unique(groups, return_inverse=True)
    held = np.zeros([len(names), member.shape[1]], bool)
    np.logical_or.at(held, of, member)
    return held.sum(axis=0)


def mean(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Mean of values float [N] as {value, low, high, n}; groups, int [N], are drawn whole."""
    drawn = totals(np.stack([values, np.ones(len(values))], axis=1), groups, resamples, seed)
    return entry(values.mean(), drawn[:, 0] / drawn[:, 1], len(values))


def rate(hits: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """`mean` of hits, bool or 0 and 1 [N], with the interval of a `share`."""
    found = mean(hits.astype(float), groups, resamples, seed)
    bounds = widened(found["value"], found["low"], found["high"], len(np.unique(groups)))
    return _told(found["value"], *bounds, found["n"])


def number(value: Any) -> float | None:
    """A float for JSON; None for NaN."""
    return None if np.isnan(value) else float(value)


def statistics(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> Statistics:
    """Everything the metrics rest on, for every resample: one jitted call where it fits in memory.

    Args:
      labels: int [N].
      probabilities: float [N, K].
      groups: int [N].
    """
    k = probabilities.shape[1]
    each = columns(labels, probabilities)
    sums = np.concatenate([each.cells, each.log_loss[:, None], each.brier[:, None], each.gap], 1)
    member = np.unique(groups, return_inverse=True)[1]
    padded, ranking = _padded_ranking(labels, class_scores(probabilities))
    # What is added belongs to one group more, which is never drawn.
    fixed = (_grown(member.astype(np.int32), padded, padded), _grown(sums, padded), *ranking)
    # As few and as even blocks as fit in memory.
    most = max(1, _BLOCK // padded)
    found = []
    # Sums of many weighted examples are held to NumPy's to the last digits but a few: float64.
    with jax.enable_x64(True):
        fixed = jax.device_put(fixed)
        for counts in draws(groups, resamples, seed):
            r, g = counts.shape
            block = -(-r // -(-r // most))
            drawn = np.zeros([-(-r // block) * block, padded + 1], np.uint8)
            drawn[:r, :g] = counts
            result = jax.device_get(_statistics(drawn, *fixed, block))
            found.append([part[:r] for part in result])
    total, auroc, average_precision = (np.concatenate(parts) for parts in zip(*found, strict=True))
    weight = total[:, : k * k].sum(axis=1)
    return Statistics(
        total[:, : k * k].reshape(-1, k, k),
        total[:, k * k] / weight,
        total[:, k * k + 1] / weight,
        np.abs(total[:, k * k + 2 :]).sum(axis=1) / weight,
        auroc,
        average_precision,
    )


def _padded_ranking(
    labels: np.ndarray, scores: np.ndarray
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A length shared by splits of similar size, and `order`, `positive`, `last` [K, that length].

    One program then serves the validation and the test split of a small run.
    """
    n, k = scores.shape
    padded = -(-n // _PAD) * _PAD
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(scores, order, axis=0)
    last = np.ones([n, k], bool)  # of the examples with its score
    last[:-1] = ranked[1:] != ranked[:-1]
    positive = labels[order] == np.arange(k)
    order = _grown(order.astype(np.int32), padded, n)
    return padded, (
        order.T.copy(),
        _grown(positive, padded).T.copy(),
        _grown(last, padded).T.copy(),
    )


def _grown(values: np.ndarray, length: int, by: int = 0) -> np.ndarray:
    """Values with rows of `by` appended up to a length."""
    more = np.full([length - len(values), *values.shape[1:]], by, values.dtype)
    return np.concatenate([values, more])


@functools.partial(jax.jit, static_argnames="block")
def _statistics(
    counts: jax.Array,
    member: jax.Array,
    sums: jax.Array,
    order: jax.Array,
    positive: jax.Array,
    last: jax.Array,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted column sums [R, C], AUROC [R, K] and average precision [R, K] of each resample.

    Args:
      counts: uint8 [R, G], how often each group was drawn; R is a multiple of `block`.
      member: int32 [N], each example's group.
      sums: float64 [N, C].
      order, positive, last: [K, N], examples by falling score of a class, whether they are of the
        class, and whether they are the last with their score.
      block: resamples whose weights are in memory at once.
    """

    def some(part: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        drawn = part.T[member]  # [N, block]: an example's weights lie side by side
        ranked = jax.lax.map(lambda of: _rank_statistics(drawn, *of), (order, positive, last))
        return drawn.astype(sums.dtype).T @ sums, ranked[0].T, ranked[1].T

    blocks = counts.reshape(-1, block, counts.shape[1])
    return jax.tree.map(lambda part: part.reshape(len(counts), -1), jax.lax.map(some, blocks))


def _rank_statistics(
    drawn: jax.Array, order: jax.Array, positive: jax.Array, last: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """AUROC and average precision of one class, float64 [R] each, in one pass down the ranking.

    The area is that of Mann and Whitney 1947, ties counting half; the precision is averaged over
    the steps of recall without interpolation, as in scikit-learn.

    Args:
      drawn: uint8 [N, R]; order, positive, last: [N].
    """
    zero = jnp.zeros(drawn.shape[1], jnp.float64)

    def step(state, example):
        hits, misses, hits_before, misses_before, area, precision = state
        index, is_positive, is_last = example
        weight = drawn[index].astype(zero.dtype)
        hits = jnp.where(is_positive, hits + weight, hits)
        misses = jnp.where(is_positive, misses, misses + weight)
        found, passed = hits - hits_before, misses - misses_before
        area = jnp.where(is_last, area + passed * (hits + hits_before), area)
        share = hits / jnp.maximum(hits + misses, 1)
        precision = jnp.where(is_last, precision + found * share, precision)
        hits_before = jnp.where(is_last, hits, hits_before)
        misses_before = jnp.where(is_last, misses, misses_before)
        return (hits, misses, hits_before, misses_before, area, precision), None

    state, _ = jax.lax.scan(step, (zero,) * 6, (order, positive, last), unroll=4)
    hits, misses, _, _, area, precision = state
    return area / (2 * hits * misses), precision / hits  # 0 / 0 is NaN: undefined
