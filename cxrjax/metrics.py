"""Classification metrics as functions of example weights, and their bootstrap intervals.

A metric takes labels int [N], probabilities float [N, K] and weights float [R, N] and returns
float64 [R], one value per row of weights. A row of ones gives the value itself, a bootstrap
resample is the row that counts how often each example was drawn: one implementation for both.

The predicted class is the most probable one, the first of equals. As in scikit-learn, averages run
over the classes that occur among labels or predictions, and count an undefined precision or recall
there as 0; a class that is drawn in neither is left out of that resample. What remains undefined
is NaN, and left out of the interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_ECE_BINS = 15
_CHUNK = 2**21  # weights in memory at a time: 16 MiB, and a few arrays of that size


def confusion_matrix(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weight of each (true, predicted) pair, float64 [R, K, K]."""
    n, k = probabilities.shape
    cells = np.zeros([n, k * k])
    cells[np.arange(n), labels * k + probabilities.argmax(axis=1)] = 1
    return (weights @ cells).reshape(-1, k, k)


def accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of examples predicted correctly."""
    hit = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return weights @ hit / weights.sum(axis=1)


def balanced_accuracy(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Recall averaged over the classes that occur among the labels."""
    return _mean(per_class(labels, probabilities, weights)["recall"])


def macro_f1(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 averaged over the classes."""
    return macro_average(labels, probabilities, weights)["f1"]


def weighted_f1(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 averaged over the classes by their support."""
    return weighted_average(labels, probabilities, weights)["f1"]


def auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: of class 1 with two classes, else one-vs-rest, averaged.

    The chance that a positive scores above a negative, ties counting half (Mann-Whitney). Classes
    without positives or without negatives are left out; NaN where none remains.
    """
    if probabilities.shape[1] == 2:
        return _class_auroc(labels == 1, probabilities[:, 1], weights)
    each = [_class_auroc(labels == c, p, weights) for c, p in enumerate(probabilities.T)]
    return _mean(np.stack(each, axis=1))


def _class_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(scores, kind="stable")
    above, below = order[positive[order]], order[~positive[order]]
    passed = np.zeros([len(weights), len(below) + 1])  # weight of the negatives up to each one
    np.cumsum(weights[:, below], axis=1, out=passed[:, 1:])
    first, last = (
        np.searchsorted(scores[below], scores[above], side) for side in ("left", "right")
    )
    drawn = weights[:, above]
    pairs = np.einsum("rp,rp->r", drawn, passed[:, first])
    pairs += np.einsum("rp,rp->r", drawn, passed[:, last])
    return _ratio(pairs / 2, drawn.sum(axis=1) * passed[:, -1])


def log_loss(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean negative log of the true class's probability, nats; clipped at float64's epsilon."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    epsilon = np.finfo(np.float64).eps
    return weights @ -np.log(np.clip(chosen, epsilon, 1 - epsilon)) / weights.sum(axis=1)


def ece(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the predicted class, 15 equal bins (lower, upper].

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. Noise within bins only ever adds
    to it, once more in every resample: its interval lies high, and may lie above the value.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    bins = np.zeros([len(labels), _ECE_BINS])
    of = np.clip(np.ceil(confidence * _ECE_BINS).astype(int) - 1, 0, _ECE_BINS - 1)
    bins[np.arange(len(labels)), of] = gap
    return np.abs(weights @ bins).sum(axis=1) / weights.sum(axis=1)


def per_class(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Each class against the rest: precision, recall, specificity, f1 and support, all [R, K].

    NaN where the denominator is 0: recall without examples, precision without predictions.
    """
    table = confusion_matrix(labels, probabilities, weights)
    hits = np.einsum("rkk->rk", table)
    support, predicted = table.sum(axis=2), table.sum(axis=1)
    others = weights.sum(axis=1)[:, None] - support
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "specificity": _ratio(others - (predicted - hits), others),
        "f1": _ratio(2 * hits, support + predicted),
        "support": support,
    }


def macro_average(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 averaged over the classes that occur, each [R]."""
    each = per_class(labels, probabilities, weights)
    occurs = ~np.isnan(each["f1"])
    return {
        name: _ratio(np.nansum(each[name], axis=1), occurs.sum(axis=1))
        for name in ("precision", "recall", "f1")
    }


def weighted_average(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 averaged over the classes by support, each [R]."""
    each = per_class(labels, probabilities, weights)
    return {
        name: np.nansum(each[name] * each["support"], axis=1) / each["support"].sum(axis=1)
        for name in ("precision", "recall", "f1")
    }


_HEADLINES = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "log_loss": log_loss,
    "ece": ece,
}


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    groups: np.ndarray | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of one split with its 95 % interval, for result.json.

    Intervals are percentiles 2.5 and 97.5 of a bootstrap in which whole groups are drawn, so that
    near-duplicates and images of one patient do not count as independent. Where every draw agrees
    (all right, say) an interval is a point; `n` then says how little that may mean.

    Args:
      labels: int [N], below K.
      probabilities: float [N, K].
      classes: the K names.
      groups: int [N], equal where examples belong together; None: each stands alone.
      resamples: draws behind each interval.
      seed: of the draws.
    Returns:
      the headline metrics, each {value, low, high, n}, None where undefined; `per_class`: by name
      precision, recall, specificity and f1, each with `n` = the examples in its denominator, and
      `support`; `macro_average` and `weighted_average` of precision, recall and f1; `classes` and
      `confusion_matrix` (rows true, columns predicted); `n`, `groups`, `resamples`.
    Raises:
      ValueError: for no examples, shapes or labels that do not fit, probabilities not finite.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _check(labels, probabilities, classes, groups)
    once = np.ones([1, len(labels)])
    value = _all(labels, probabilities, once)
    drawn = [_all(labels, probabilities, w) for w in _draws(groups, resamples, seed)]
    spread = {name: _interval(np.concatenate([d[name] for d in drawn])) for name in value}
    table = confusion_matrix(labels, probabilities, once)[0].astype(int)
    return _result(value, spread, table, classes) | {
        "classes": list(classes),
        "confusion_matrix": table.tolist(),
        "n": len(labels),
        "groups": len(np.unique(groups)),
        "resamples": resamples,
    }


def _result(
    value: dict[str, np.ndarray],
    spread: dict[str, np.ndarray],
    table: np.ndarray,
    classes: Sequence[str],
) -> dict[str, Any]:
    n = table.sum()

    def entry(name: str, rests_on: int = n, at: tuple[int, ...] = ()) -> dict[str, Any]:
        low, high = (_number(bound[at]) for bound in spread[name])
        return {"value": _number(value[name][0, *at]), "low": low, "high": high, "n": int(rests_on)}

    support, predicted = table.sum(axis=1), table.sum(axis=0)
    denominators = {
        "precision": predicted,
        "recall": support,
        "specificity": n - support,
        "f1": support + predicted - np.diag(table),
    }
    result: dict[str, Any] = {name: entry(name) for name in _HEADLINES}
    result["per_class"] = {
        c: {m: entry(f"per_class.{m}", of[k], (k,)) for m, of in denominators.items()}
        | {"support": int(support[k])}
        for k, c in enumerate(classes)
    }
    for average in ("macro_average", "weighted_average"):
        result[average] = {m: entry(f"{average}.{m}") for m in ("precision", "recall", "f1")}
    return result


def _check(labels, probabilities, classes, groups):
    if not len(labels):
        raise ValueError("no examples to evaluate")
    if labels.shape != groups.shape or probabilities.shape != (len(labels), len(classes)):
        raise ValueError(
            f"shapes do not fit: labels {labels.shape}, groups {groups.shape}, probabilities "
            f"{probabilities.shape}, {len(classes)} classes"
        )
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(f"labels must lie in [0, {len(classes)})")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite: training has diverged")


def _all(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    arguments = labels, probabilities, weights
    found = {name: metric(*arguments) for name, metric in _HEADLINES.items()}
    for several in (per_class, macro_average, weighted_average):
        found |= {f"{several.__name__}.{m}": v for m, v in several(*arguments).items()}
    return found


def _draws(groups: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of the resamples, float64 [r, N] at a time; each draws as many groups as exist."""
    names, member = np.unique(groups, return_inverse=True)
    count = len(names)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(groups))
    for start in range(0, resamples, rows):
        r = min(rows, resamples - start)
        cells = rng.integers(count, size=[r, count]) + np.arange(r)[:, None] * count
        times = np.bincount(cells.ravel(), minlength=r * count).reshape(r, count)
        yield times.astype(np.float64)[:, member]


def _interval(drawn: np.ndarray) -> np.ndarray:
    """Percentiles 2.5 and 97.5 over axis 0, NaN left out; NaN where nothing remains."""
    bounds = np.full([2, *drawn.shape[1:]], np.nan)
    for at in np.ndindex(drawn.shape[1:]):
        known = drawn[(slice(None), *at)]
        known = known[~np.isnan(known)]
        if len(known):
            bounds[(slice(None), *at)] = np.percentile(known, [2.5, 97.5])
    return bounds


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
