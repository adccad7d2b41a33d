"""Classification metrics as functions of example weights, and their bootstrap intervals.

A metric takes labels int [N], probabilities float [N, K] and weights float [R, N] and returns
float64 [R], one value per row of weights: a row of ones gives the value itself, a bootstrap
resample is the row that counts how often each example was drawn. These are the plain forms;
`evaluate` takes its intervals from bootstrap.py, which tests hold to them.

The predicted class is the most probable one, the first of equals. As in scikit-learn, averages run
over the classes that occur among labels or predictions, and count an undefined precision or recall
there as 0; a class that is drawn in neither is left out of that resample. What remains undefined
is NaN, and left out of the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrjax import bootstrap
from cxrjax.bootstrap import Statistics, number


def confusion_matrix(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weight of each (true, predicted) pair, float64 [R, K, K]."""
    k = probabilities.shape[1]
    return (weights @ bootstrap.columns(labels, probabilities).cells).reshape(-1, k, k)


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
    return _mean(class_auroc(labels, probabilities, weights))


def class_auroc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class against the rest, [R, K]."""
    scores = bootstrap.class_scores(probabilities)
    each = [_one_auroc(labels == c, of, weights) for c, of in enumerate(scores.T)]
    return np.stack(each, axis=1)


def _one_auroc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
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


def average_precision(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision of each class against the rest, averaged over the classes.

    Precision averaged over the steps of recall, not interpolated. Classes without positives are
    left out; NaN where none remains.
    """
    return _mean(class_average_precision(labels, probabilities, weights))


def class_average_precision(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Average precision of each class against the rest, [R, K]."""
    each = []
    for c, scores in enumerate(bootstrap.class_scores(probabilities).T):
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of equal scores
        ranked = weights[:, order]
        seen = ranked.cumsum(axis=1)[:, ends]
        hits = (ranked * (labels[order] == c)).cumsum(axis=1)[:, ends]
        steps = np.diff(hits, axis=1, prepend=0)
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        each.append(_ratio((steps * precision).sum(axis=1), hits[:, -1]))
    return np.stack(each, axis=1)


def log_loss(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean negative log of the true class's probability, nats; clipped at float64's epsilon."""
    return weights @ bootstrap.columns(labels, probabilities).log_loss / weights.sum(axis=1)


def brier(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Squared distance of the probabilities from the truth; halved with two classes.

    Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2. 0 to 2, and 0 to 1 with two
    classes, where it is (p - y)^2 of class 1: scikit-learn's convention.
    """
    return weights @ bootstrap.columns(labels, probabilities).brier / weights.sum(axis=1)


def ece(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the predicted class, 15 equal bins (lower, upper].

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3. Noise within bins only ever adds
    to it, once more in every resample: its interval lies high, and may lie above the value.
    """
    gap = bootstrap.columns(labels, probabilities).gap
    return np.abs(weights @ gap).sum(axis=1) / weights.sum(axis=1)


def per_class(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Each class against the rest: precision, recall, specificity, f1 and support, all [R, K].

    NaN where the denominator is 0: recall without examples, precision without predictions.
    """
    return rates(confusion_matrix(labels, probabilities, weights))


def rates(table: np.ndarray) -> dict[str, np.ndarray]:
    """`per_class` from confusion matrices [R, K, K]."""
    hits = np.einsum("rkk->rk", table)
    support, predicted = table.sum(axis=2), table.sum(axis=1)
    others = table.sum(axis=(1, 2))[:, None] - support
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
    return _macro(per_class(labels, probabilities, weights))


def _macro(each: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    occurs = ~np.isnan(each["f1"])
    return {
        name: _ratio(np.nansum(each[name], axis=1), occurs.sum(axis=1))
        for name in ("precision", "recall", "f1")
    }


def weighted_average(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Precision, recall and F1 averaged over the classes by support, each [R]."""
    return _weighted(per_class(labels, probabilities, weights))


def _weighted(each: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.nansum(each[name] * each["support"], axis=1) / each["support"].sum(axis=1)
        for name in ("precision", "recall", "f1")
    }


_HEADLINES = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "average_precision",
    "log_loss",
    "brier",
    "ece",
)


def evaluate(
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    groups: np.ndarray | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of one split with its 95 % interval, for result.json.

    Intervals are percentiles 2.5 and 97.5 of a bootstrap in which whole groups are drawn, so that
    near-duplicates and images of one patient do not count as independent. Those of shares
    (accuracy, precision, recall, specificity) are at least the exact ones near 0 and 1, see
    `bootstrap.widened`. Of another figure the interval is a point where every draw agrees (F1 where
    all are right, say); `n` then says how little that may mean.

    Args:
      labels: int [N], below K.
      probabilities: float [N, K].
      classes: the K names.
      groups: int [N], equal where examples belong together; None: each stands alone.
      resamples: draws behind each interval.
      seed: of the draws.
    Returns:
      the headline metrics, each {value, low, high, n}, None where undefined; `per_class`: by name
      precision, recall, specificity, f1, auroc and average_precision, each with `n` = the examples
      it rests on, and `support`; `macro_average` and `weighted_average` of precision, recall and
      f1; `classes` and `confusion_matrix` (rows true, columns predicted); `n`, `groups`,
      `resamples`.
    Raises:
      ValueError: for no examples, shapes or labels that do not fit, probabilities not finite.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    groups = np.arange(len(labels)) if groups is None else np.asarray(groups)
    _check(labels, probabilities, classes, groups)
    plain = plain_statistics(labels, probabilities, np.ones([1, len(labels)]))
    drawn = bootstrap.statistics(labels, probabilities, groups, resamples, seed)
    spread = {name: bootstrap.interval(values) for name, values in _all(drawn).items()}
    _widen(spread, _all(plain), labels, probabilities.argmax(axis=1), groups)
    table = plain.confusion[0].astype(int)
    return _result(_all(plain), spread, table, classes) | {
        "classes": list(classes),
        "confusion_matrix": table.tolist(),
        "n": len(labels),
        "groups": len(np.unique(groups)),
        "resamples": resamples,
    }


def plain_statistics(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray
) -> Statistics:
    """What all metrics rest on, in NumPy for any weights [R, N]."""
    arguments = labels, probabilities, weights
    return Statistics(
        confusion_matrix(*arguments),
        log_loss(*arguments),
        brier(*arguments),
        ece(*arguments),
        class_auroc(*arguments),
        class_average_precision(*arguments),
    )


def _all(of: Statistics) -> dict[str, np.ndarray]:
    """Every figure of a result by name, [R] or [R, K]."""
    each = rates(of.confusion) | {"auroc": of.auroc, "average_precision": of.average_precision}
    found = {f"per_class.{name}": values for name, values in each.items()}
    found |= {f"macro_average.{name}": values for name, values in _macro(each).items()}
    found |= {f"weighted_average.{name}": values for name, values in _weighted(each).items()}
    return found | {
        "accuracy": np.einsum("rkk->r", of.confusion) / of.confusion.sum(axis=(1, 2)),
        "balanced_accuracy": _mean(each["recall"]),
        "macro_f1": found["macro_average.f1"],
        "auroc": _mean(of.auroc),
        "average_precision": _mean(of.average_precision),
        "log_loss": of.log_loss,
        "brier": of.brier,
        "ece": of.ece,
    }


def _widen(
    spread: dict[str, np.ndarray],
    value: dict[str, np.ndarray],
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
) -> None:
    """Widens the intervals of shares in place, by the groups that each rests on."""
    k = value["per_class.recall"].shape[1]
    of, called = labels[:, None] == np.arange(k), predicted[:, None] == np.arange(k)
    everyone = np.ones([len(labels), 1], bool)
    for name, member in {
        "accuracy": everyone,
        "weighted_average.recall": everyone,
        "per_class.precision": called,
        "per_class.recall": of,
        "per_class.specificity": ~of,
    }.items():
        counts = bootstrap.count_groups(groups, member)
        bounds, values = spread[name].reshape(2, -1), value[name].ravel()
        for at, count in enumerate(counts):
            low, high = bounds[:, at]
            bounds[:, at] = bootstrap.widened(values[at], low, high, count)


def _result(
    value: dict[str, np.ndarray],
    spread: dict[str, np.ndarray],
    table: np.ndarray,
    classes: Sequence[str],
) -> dict[str, Any]:
    n = table.sum()

    def entry(name: str, rests_on: int = n, at: tuple[int, ...] = ()) -> dict[str, Any]:
        low, high = (number(bound[at]) for bound in spread[name])
        return {"value": number(value[name][0, *at]), "low": low, "high": high, "n": int(rests_on)}

    support, predicted = table.sum(axis=1), table.sum(axis=0)
    rests_on = {
        "precision": predicted,
        "recall": support,
        "specificity": n - support,
        "f1": support + predicted - np.diag(table),
        "auroc": np.full(len(classes), n),
        "average_precision": np.full(len(classes), n),
    }
    result: dict[str, Any] = {name: entry(name) for name in _HEADLINES}
    result["per_class"] = {
        c: {m: entry(f"per_class.{m}", of[k], (k,)) for m, of in rests_on.items()}
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


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1))
