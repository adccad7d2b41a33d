"""Two or more classifiers on the same images: paired differences and McNemar's exact test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from cxrjax import bootstrap, metrics

_LEVEL = 0.05
SAME = "not distinguishable"


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test that two classifiers are right equally often.

    McNemar 1947, doi:10.1007/BF02295996, in its exact binomial form: of the images that just one
    classifies correctly, each is as likely to be won by either.

    Args:
      first, second: bool [N], which images each classifies correctly.
    Returns:
      `only_first` and `only_second` (counts) and the two-sided `p`.
    """
    wins, losses = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    tossed = wins + losses
    p = stats.binomtest(wins, tossed).pvalue if tossed else 1.0
    return {"only_first": wins, "only_second": losses, "p": float(p)}


def holm(p: Sequence[float]) -> list[float]:
    """P values adjusted for the number of tests: Holm 1979, https://www.jstor.org/stable/4615733."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted.tolist()


def paired_interval(
    both: float, only_first: float, only_second: float, n: float
) -> tuple[float, float]:
    """95 % interval of the difference of two shares of the same n independent trials.

    Newcombe 1998, Statist. Med. 17:2635-2650, method 10: the intervals of Wilson of either share,
    put together by their correlation.

    Args:
      both, only_first, only_second: shares of the trials that succeed by both, by one alone.
    Returns:
      bounds of first minus second, in [-1, 1].
    """
    first, second = min(both + only_first, 1.0), min(both + only_second, 1.0)  # rounding
    spread = n * (both * (1 - first - only_second) - only_first * only_second)
    if spread > 0:
        spread = max(spread - 1 / 2, 0)  # correction for continuity
    scale = n * np.sqrt(first * (1 - first) * second * (1 - second))
    correlation = spread / scale if scale > 0 else 0.0
    (below, above), (below_second, above_second) = _wilson(first, n), _wilson(second, n)

    def added(of: float, other: float) -> float:
        return float(np.sqrt(of**2 - 2 * correlation * of * other + other**2))

    difference = only_first - only_second
    return difference - added(below, above_second), difference + added(above, below_second)


def _wilson(share: float, n: float) -> tuple[float, float]:
    """How far the 95 % interval of Wilson 1927, doi:10.2307/2276774, reaches below and above."""
    z2 = float(stats.chi2.ppf(1 - _LEVEL, 1))
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return share - (middle - half), middle + half - share


def _share(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """A difference of shares as {value, low, high, n}, widened as `bootstrap.widened` does shares.

    Resamples differ by the images that are not told as most of them are: by none where all are told
    alike. With fewer than ten groups' worth of those the interval is at least that of Newcombe.

    Args:
      values: float [1 + R], the difference and that of each resample.
      first, second: bool [N], which images each classifier tells right; groups: int [N].
    """
    found = bootstrap.entry(values[0], values[1:], len(groups))
    if not len(groups):
        return found
    count = len(np.unique(groups))
    both, only_first = float((first & second).mean()), float((first & ~second).mean())
    only_second = float((second & ~first).mean())
    if count * (1 - max(only_first, only_second, 1 - only_first - only_second)) < bootstrap.FEW:
        low, high = paired_interval(both, only_first, only_second, count)
        found |= {"low": min(found["low"], low), "high": max(found["high"], high)}
    return found


def compare(
    labels: np.ndarray,
    probabilities: Sequence[np.ndarray],
    names: Sequence[str],
    classes: Sequence[str],
    groups: np.ndarray,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Every pair of classifiers, the better one of each first.

    Two are told apart when McNemar's test, adjusted for the number of pairs, gives p < .05 and the
    interval of the difference in accuracy leaves out 0: the test takes images as independent, the
    interval draws whole groups. Where few groups tell two shares (accuracy, recall) apart, or all
    but few do, the interval of their difference is at least `paired_interval`.

    Args:
      labels: int [N]; groups: int [N].
      probabilities: of each classifier, float [N, K].
      names: of the classifiers; classes: the K names.
    Returns:
      for each pair `first`, `second`, `difference` (first minus second) of `accuracy`,
      `balanced_accuracy`, `macro_f1`, `log_loss` and `recall` by class, each {value, low, high, n};
      `mcnemar` with `p_adjusted`; and `finding`, a sentence.
    """
    summed = [bootstrap.columns(labels, p) for p in probabilities]
    columns = np.concatenate(
        [np.column_stack([of.cells, of.log_loss]) for of in summed], axis=1
    )  # of all runs side by side: the same draws for each
    drawn = bootstrap.totals(columns, groups, resamples, seed)
    both = np.concatenate([columns.sum(axis=0)[None], drawn])
    figures = [_figures(part, len(classes)) for part in np.split(both, len(names), axis=1)]
    hits = [p.argmax(axis=1) == labels for p in probabilities]
    pairs = []
    for i, j in itertools.combinations(range(len(names)), 2):
        a, b = (i, j) if hits[i].sum() >= hits[j].sum() else (j, i)
        of = {name: figures[a][name] - figures[b][name] for name in figures[a]}
        difference: dict[str, Any] = {
            name: bootstrap.entry(of[name][0], of[name][1:], len(labels))
            for name in ("balanced_accuracy", "macro_f1", "log_loss")
        }
        difference["accuracy"] = _share(of["accuracy"], hits[a], hits[b], groups)
        difference["recall"] = {
            c: _share(of["recall"][:, k], *(x[labels == k] for x in (hits[a], hits[b], groups)))
            for k, c in enumerate(classes)
        }
        pairs.append(
            {
                "first": names[a],
                "second": names[b],
                "difference": difference,
                "mcnemar": mcnemar(hits[a], hits[b]),
            }
        )
    for pair, p in zip(pairs, holm([pair["mcnemar"]["p"] for pair in pairs]), strict=True):
        pair["mcnemar"]["p_adjusted"] = p
        pair["finding"] = _finding(pair, adjusted=len(pairs) > 1)
    return pairs


def _figures(part: np.ndarray, k: int) -> dict[str, np.ndarray]:
    table = part[:, : k * k].reshape(-1, k, k)
    each, n = metrics.rates(table), table.sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return {
            "accuracy": np.einsum("rkk->r", table) / n,
            "balanced_accuracy": np.nanmean(each["recall"], axis=1),
            "macro_f1": np.nanmean(each["f1"], axis=1),
            "log_loss": part[:, k * k] / n,
            "recall": each["recall"],
        }


def _finding(pair: dict[str, Any], *, adjusted: bool) -> str:
    accuracy = pair["difference"]["accuracy"]
    apart = pair["mcnemar"]["p_adjusted"] < _LEVEL and accuracy["low"] > 0
    told = f"{pair['first']} and {pair['second']} are {SAME}"
    if apart:
        told = f"{pair['first']} is better than {pair['second']}"
    p = f"{'adjusted ' if adjusted else ''}p = {pair['mcnemar']['p_adjusted']:.2g}"
    return (
        f"{told}: difference in accuracy {100 * accuracy['value']:.1f} points "
        f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}], McNemar's exact test "
        f"{p}, n = {accuracy['n']}"
    )
