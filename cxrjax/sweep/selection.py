"""Which point of a grid is the best, and how much its accuracy flatters because it was picked."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from cxrjax import bootstrap
from cxrjax.sweep.trials import FINISHED

_BLOCK = 2**22  # counts in memory at a time, as float64: 32 MiB
_DIGITS = 12  # accuracies that differ by less are rounding of the same mean


def ranking(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Points by falling mean validation accuracy, ties by mean validation loss.

    Points that lost a seed come after all that lost none, as a mean over those that came through
    flatters; points of which no seed finished are left out.

    Args:
      records: of trials, see `trials.Trials.records`; all validated on the same images.
    Returns:
      of each point, fit for JSON:
      `values`: of the grid's fields.
      `accuracy`: mean validation accuracy over its seeds, {value, low, high, n}.
      `loss`: mean validation loss at the best epochs, nats.
      `best_epoch`: median over seeds; of an even number the upper of the two in the middle.
      `seconds`: of all its trials together.
      `keys`, `seeds`: of its finished trials, by seed.
      `lost`: the number of seeds that diverged or ran out of memory.
    """
    points: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        points.setdefault(json.dumps(record["values"], sort_keys=True), []).append(record)
    ranked = [found for trials in points.values() if (found := _ranked(trials)) is not None]

    def order(point: Mapping[str, Any]) -> tuple[Any, ...]:
        value, loss = (round(of, _DIGITS) for of in (point["accuracy"]["value"], point["loss"]))
        return point["lost"] > 0, -value, loss, min(point["keys"])

    return sorted(ranked, key=order)


def accuracy(trial: Mapping[str, Any]) -> float:
    """Validation accuracy of a finished trial at its best epoch."""
    return trial["validation"]["accuracy"]["value"]


def best_first(records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The finished trials, each for itself, by falling validation accuracy, ties by loss."""

    def order(trial: Mapping[str, Any]) -> tuple[Any, ...]:
        return -accuracy(trial), trial["validation"]["loss"], trial["key"]

    return sorted((trial for trial in records if trial["status"] == FINISHED), key=order)


def _ranked(trials: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    done = sorted((t for t in trials if t["status"] == FINISHED), key=lambda t: t["seed"])
    if not done:
        return None
    return {
        "values": dict(done[0]["values"]),
        "accuracy": mean_over_seeds([trial["validation"]["accuracy"] for trial in done]),
        "loss": statistics.fmean(trial["validation"]["loss"] for trial in done),
        "best_epoch": statistics.median_high([trial["best_epoch"] for trial in done]),
        "seconds": math.fsum(trial["seconds"] for trial in trials),
        "keys": [trial["key"] for trial in done],
        "seeds": [trial["seed"] for trial in done],
        "lost": len(trials) - len(done),
    }


def mean_over_seeds(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of an accuracy over seeds as {value, low, high, n}, of one seed its own interval.

    Two things make the mean uncertain: the images, on average as far as each seed's own interval
    reaches (not less, as all seeds see the same images), and the seeds, by Student's t. Independent
    reaches add as squares, to each side for itself: Zou & Donner 2008, doi:10.1002/sim.3095.

    Args:
      entries: {value, low, high, n} of each seed, on the same images.
    """
    if len(entries) == 1:
        return dict(entries[0])
    value, low, high = (np.array([e[part] for e in entries]) for part in ("value", "low", "high"))
    m, mean = len(value), float(value.mean())
    between = float(stats.t.ppf(0.975, m - 1) * value.std(ddof=1) / math.sqrt(m))
    down, up = (value - low).mean(), (high - value).mean()
    return {
        "value": mean,
        "low": max(0.0, mean - math.hypot(down, between)),
        "high": min(1.0, mean + math.hypot(up, between)),
        "n": entries[0]["n"],
    }


def optimism(correct: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """How much the winner's validation accuracy flatters because it is the best of many.

    The search is repeated on resamples of the validation groups, and each resample's winner tested
    again on the groups that the resample left out: Efron & Tibshirani 1997, doi:10.2307/2965703,
    with selection as what is fitted; Tsamardinos et al. 2018, doi:10.1007/s10994-018-5714-4. (On
    the bias itself: Cawley & Talbot 2010, https://jmlr.org/papers/v11/cawley10a.html; another
    estimate of it: Tibshirani & Tibshirani 2009, doi:10.1214/08-AOAS224.)

    As a resample of G groups repeats some of them, a trial's accuracy on it strays from the true
    one with 2 - 1/G times the variance it has on the whole split; the best of equally good trials
    stands out by the square root of that more. The mean difference is divided by it. The estimate
    is then right for trials that are equally good (some percent too small near accuracies of 1) or
    all but one clearly worse; in between it is too large, by less than half.

    Args:
      correct: bool [T, N], which validation images each trial classifies correctly at its best
        epoch; or float [T, N], the share of a point's seeds that do. Of equal accuracies the first
        row wins: give them as `ranking` has them.
      groups: int [N], near-duplicates have the same; drawn whole.
      resamples: at least some hundreds.
      seed: of the draws.
    Returns:
      `trials`: T. `winner`: its row.
      `apparent`: the winner's accuracy, {value, low, high, n} as the others.
      `retest`: mean accuracy of the resamples' winners on what was left out, and the range of 95 %
        of them.
      `optimism`: by how much `apparent` is expected to flatter; the interval holds what chance in
        the images adds to it for a given trial of the corrected accuracy.
      `corrected`: `apparent` less `optimism`, a number.
      `corrected_interval`: [low, high], where the winner's true accuracy lies.
      `not_distinguishable`: trials besides the winner that may be the best. The best one is among
        them in 95 % of all searches, however many trials there are: one is left out only where it
        falls behind by more than chance lets the luckiest of all get ahead of it (comparison with
        the best, Hsu 1984, Annals of Statistics 12:1136, by bootstrap).
      Values are None where all images are of one group.
    """
    correct = np.asarray(correct, np.float64)
    reached = correct.mean(axis=1)
    winner, n = int(reached.argmax()), correct.shape[1]
    apparent = float(reached[winner])
    drawn, best, again = _searches(correct, groups, resamples, seed)
    g = len(np.unique(groups))
    known = ~np.isnan(again)
    retest = again[known].mean() if known.any() else np.nan
    flatters = (best - again)[known].mean() / math.sqrt(2 - 1 / g) if known.any() else np.nan
    own = drawn[:, winner]
    chance = (own - apparent) * _widening(apparent, apparent - flatters)
    found = {
        "trials": len(correct),
        "winner": winner,
        "apparent": bootstrap.share(apparent, own, n, g),
        "retest": bootstrap.entry(retest, again, n),
        "optimism": bootstrap.entry(flatters, chance + flatters, n),
    }
    strays = drawn - reached
    ahead = np.percentile(strays.max(axis=1, keepdims=True) - strays, 95, axis=0)
    others = int(np.sum(apparent - reached <= ahead)) - 1
    return found | _corrected(apparent, found["optimism"], g) | {"not_distinguishable": others}


def _corrected(apparent: float, by: Mapping[str, Any], groups: int) -> dict[str, Any]:
    """`corrected` and `corrected_interval` of `optimism`; `groups` as for `bootstrap.share`."""
    if by["value"] is None:
        return {"corrected": None, "corrected_interval": [None, None]}
    corrected = apparent - by["value"]
    low, high = (apparent - by[bound] for bound in ("high", "low"))
    low, high = bootstrap.widened(min(max(corrected, 0.0), 1.0), low, high, groups)
    bounds = [min(max(float(bound), 0.0), 1.0) for bound in (low, high)]
    return {"corrected": corrected, "corrected_interval": bounds}


def _searches(
    correct: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The search on each resample.

    Returns:
      float64 [resamples, T], accuracy of each trial on it; [resamples], that of the best; and
      [resamples], what the best one reaches on the groups left out, NaN where there are none.
    """
    names, member = np.unique(groups, return_inverse=True)
    sums = np.zeros([len(names), len(correct) + 1])
    np.add.at(sums, member, np.column_stack([correct.T, np.ones(len(member))]))
    parts = []
    for counts in bootstrap.draws(groups, resamples, seed, _BLOCK):
        inside = counts.astype(np.float64) @ sums
        outside = (counts == 0).astype(np.float64) @ sums
        drawn = inside[:, :-1] / inside[:, -1:]
        rows, chosen = np.arange(len(drawn)), drawn.argmax(axis=1)
        with np.errstate(invalid="ignore"):
            again = outside[rows, chosen] / outside[:, -1]
        parts.append((drawn, drawn[rows, chosen], again))
    drawn, best, again = (np.concatenate(part) for part in zip(*parts, strict=True))
    return drawn, best, again


def _widening(apparent: float, corrected: float) -> float:
    """How much further a share of images strays at the corrected than at the apparent accuracy.

    An accuracy that was picked lies nearer to 1 than the true one, and its resamples stray less:
    the standard deviation of a share p is in proportion to sqrt(p (1 - p)).
    """
    if not (0 < apparent < 1 and 0 < corrected < 1):
        return 1.0
    return math.sqrt(corrected * (1 - corrected) / (apparent * (1 - apparent)))
