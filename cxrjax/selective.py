"""Answering only where it is safe: risk against coverage, abstention, a required sensitivity."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrjax import bootstrap, conformal


def risk_coverage(confidence: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of wrong answers among the k most confident ones, for k = 1 .. N.

    Geifman & El-Yaniv 2017, https://arxiv.org/abs/1705.08500, equations 1 and 2. Equal confidences
    are answered together, so all of them carry the risk of the whole tie.

    Args:
      confidence: float [N]; in float32 most that are near 1 would be equal. wrong: bool [N].
    Returns:
      coverage k / N and risk, float64 [N] each; the mean of the risk is the area under the curve.
    """
    n = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    ranked = -confidence[order]
    end = np.searchsorted(ranked, ranked, side="right")  # answers up to the end of its tie
    return np.arange(1, n + 1) / n, np.cumsum(wrong[order])[end - 1] / end


def abstention_threshold(confidence: np.ndarray, coverage: float) -> float:
    """The highest confidence that at least a share `coverage` of images reaches.

    Args:
      confidence: float [N], of images the network was not trained on.
    """
    ranked = np.sort(confidence)
    return float(ranked[int(np.floor((1 - coverage) * len(ranked) * (1 + 1e-9)))])


def answered(
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: np.ndarray,
    threshold: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What abstaining below a confidence leaves: `coverage`, and `accuracy` of answered and rest.

    Args:
      labels: int [N]; probabilities: float [N, K]; groups: int [N].
    Returns:
      `coverage`, `accuracy_answered`, `accuracy_abstained`, each {value, low, high, n}.
    """
    given = probabilities.max(axis=1) >= threshold
    hit = probabilities.argmax(axis=1) == labels
    summed = np.stack([given, given & hit, ~given, ~given & hit], axis=1).astype(float)
    drawn, total = bootstrap.totals(summed, groups, resamples, seed), summed.sum(axis=0)
    member = np.stack([np.ones_like(given), given, ~given], axis=1)
    everyone, those, rest = bootstrap.count_groups(groups, member)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "coverage": bootstrap.share(
                given.mean(), drawn[:, 0] / (drawn[:, 0] + drawn[:, 2]), len(labels), everyone
            ),
            "accuracy_answered": bootstrap.share(
                total[1] / total[0], drawn[:, 1] / drawn[:, 0], total[0], those
            ),
            "accuracy_abstained": bootstrap.share(
                total[3] / total[2], drawn[:, 3] / drawn[:, 2], total[2], rest
            ),
        }


Scored = tuple[np.ndarray, np.ndarray, np.ndarray]  # float [N, K], labels int [N], groups int [N]


def operating_points(
    validation: Scored, test: Scored, required: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Cuts on each class's probability that find a required share of it, and what that costs.

    A cut is fitted on validation (`conformal.thresholds`: among new images the sensitivity is at
    least the required one on average) and held on the test split. The intervals draw both: the cut
    is fitted anew in every resample, so they hold its own uncertainty too.

    Args:
      validation, test: probabilities, labels and groups.
      required: sensitivity, in (0, 1).
    Returns:
      for each class `required_sensitivity`, `threshold` (0: too few validation images for anything
      above), and of the test split `sensitivity` and `specificity`, each {value, low, high, n}.
    """
    least = conformal.fit(*validation, required)
    cuts = _drawn_thresholds(validation, required, resamples, seed + 1)
    scores, labels, groups = test
    classes = range(scores.shape[1])
    order = np.argsort(scores, axis=0)
    below = np.empty([resamples, len(classes), 2])  # share of the class, and of the rest
    done = 0
    for drawn in bootstrap.weights(groups, resamples, seed):
        part = slice(done, done + len(drawn))
        done += len(drawn)
        for k in classes:
            rows = order[:, k]
            for side, wanted in enumerate((True, False)):
                chosen = rows[(labels[rows] == k) == wanted]
                below[part, k, side] = _share_below(
                    scores[chosen, k], drawn[:, chosen], cuts[part, k]
                )
    return [
        {"required_sensitivity": required, "threshold": float(least[k])}
        | _rates(scores[:, k] < least[k], labels == k, groups, below[:, k])
        for k in classes
    ]


def _rates(
    below: np.ndarray, positive: np.ndarray, groups: np.ndarray, drawn: np.ndarray
) -> dict[str, Any]:
    """Sensitivity and specificity of one cut; `drawn` [R, 2] holds shares below it."""
    missed = below[positive].mean() if positive.any() else np.nan
    clear = below[~positive].mean() if not positive.all() else np.nan
    sick, well = bootstrap.count_groups(groups, np.stack([positive, ~positive], axis=1))
    return {
        "sensitivity": bootstrap.share(1 - missed, 1 - drawn[:, 0], positive.sum(), sick),
        "specificity": bootstrap.share(clear, drawn[:, 1], (~positive).sum(), well),
    }


def _drawn_thresholds(validation: Scored, required: float, resamples: int, seed: int) -> np.ndarray:
    """The cuts fitted in each resample of the validation split, float [R, K]."""
    scores, labels, groups = validation
    shares = conformal.shares_of(labels, groups)
    cuts = np.empty([resamples, scores.shape[1]])
    done = 0
    for drawn in bootstrap.weights(groups, resamples, seed):
        part = slice(done, done + len(drawn))
        done += len(drawn)
        for k in range(scores.shape[1]):
            own = np.flatnonzero(labels == k)
            own = own[np.argsort(scores[own, k])]
            passed = (drawn[:, own] * shares[own]).cumsum(axis=1)
            below = conformal.allowed((drawn[:, own] * shares[own]).sum(axis=1), required)
            at = (passed <= below[:, None]).sum(axis=1)  # the first whose copies go beyond it
            ranked = np.concatenate([[0.0], scores[own, k]])
            cuts[part, k] = ranked[np.where(below >= 0, at + 1, 0)]
    return cuts


def _share_below(ranked: np.ndarray, drawn: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """Weighted share of rising scores [n] that lie below each cut [R], NaN of nothing."""
    passed = np.concatenate([np.zeros([len(drawn), 1]), drawn.cumsum(axis=1)], axis=1)
    below = np.take_along_axis(passed, np.searchsorted(ranked, cut)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):
        return below / passed[:, -1]
