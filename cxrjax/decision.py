"""What a test is worth: the four-class report's net benefit, its correction, decision curves.

Costs, values and benefits share one unit of the reader's choice; rates and prevalence lie in
[0, 1]. All functions are plain arithmetic and take numbers or arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrjax import bootstrap, metrics

Number = Any  # float, or an array of them


@dataclass(frozen=True)
class Diagnostic:
    """A diagnostic test."""

    sensitivity: Number
    specificity: Number
    cost: float  # of one test


@dataclass(frozen=True)
class Setting:
    """Where a test is used, and what its answers are worth there."""

    prevalence: Number  # P, chance that a patient has the disease
    value: float  # V, of finding a true case early
    cost_weight: float  # A, the importance of cost
    false_positive_cost: float  # of one false alarm; absent from the report


def net_benefit(test: Diagnostic, at: Setting) -> Number:
    """P S V - A C for each patient tested, as the four-class report has it (its section 8)."""
    return at.prevalence * test.sensitivity * at.value - at.cost_weight * test.cost


def preferable(xray: Diagnostic, pcr: Diagnostic, at: Setting) -> Any:
    """P V (S_xray - S_pcr) > A (C_xray - C_pcr), the report's inequality for the X-ray."""
    gain = at.prevalence * at.value * (xray.sensitivity - pcr.sensitivity)
    return gain > at.cost_weight * (xray.cost - pcr.cost)


def break_even(xray: Diagnostic, pcr: Diagnostic, at: Setting) -> float | None:
    """The prevalence at which the report's inequality turns; None where no prevalence does."""
    slope = at.value * (xray.sensitivity - pcr.sensitivity)
    price = at.cost_weight * (xray.cost - pcr.cost)
    return _within(price, slope)


def corrected_net_benefit(test: Diagnostic, at: Setting) -> Number:
    """The report's net benefit less the false alarms: P S V - (1 - P) (1 - specificity) F - A C."""
    alarms = (1 - at.prevalence) * (1 - test.specificity)
    return net_benefit(test, at) - alarms * at.false_positive_cost


def corrected_break_even(xray: Diagnostic, pcr: Diagnostic, at: Setting) -> float | None:
    """The prevalence at which both tests are worth the same; None where none in [0, 1] is."""
    alarms = (pcr.specificity - xray.specificity) * at.false_positive_cost
    slope = at.value * (xray.sensitivity - pcr.sensitivity) + alarms
    price = at.cost_weight * (xray.cost - pcr.cost) + alarms
    return _within(price, slope)


def _within(price: float, slope: float) -> float | None:
    return float(price / slope) if slope and 0 <= price / slope <= 1 else None


def predictive_values(test: Diagnostic, prevalence: Number) -> tuple[Number, Number]:
    """Chance of disease after a positive answer, and of health after a negative one (Bayes)."""
    hits, misses = prevalence * test.sensitivity, prevalence * (1 - test.sensitivity)
    clear = (1 - prevalence) * test.specificity
    alarms = (1 - prevalence) * (1 - test.specificity)
    with np.errstate(invalid="ignore"):
        return np.divide(hits, hits + alarms), np.divide(clear, clear + misses)


def curve_net_benefit(
    sensitivity: Number, false_positive_rate: Number, prevalence: Number, threshold: Number
) -> Number:
    """TP/n - FP/n t/(1-t), Vickers & Elkin 2006, doi:10.1177/0272989X06295361.

    With the prevalence of the data TP/n is prevalence times sensitivity, and FP/n the rest of the
    patients times the false-positive rate; another prevalence puts both elsewhere.
    """
    odds = threshold / (1 - threshold)
    return prevalence * sensitivity - (1 - prevalence) * false_positive_rate * odds


def decision_curve(
    risk: np.ndarray,
    disease: np.ndarray,
    groups: np.ndarray,
    thresholds: np.ndarray,
    resamples: int,
    seed: int,
    prevalence: float | None = None,
) -> dict[str, Any]:
    """Net benefit of treating above a risk, against treating all and none, for each threshold.

    Args:
      risk: float [N], predicted.
      disease: bool [N]; groups: int [N].
      thresholds: float [T] in [0, 1), the risk from which one treats.
      prevalence: of the disease where the model is used; None: that of the data, which is then
        drawn along with them.
    Returns:
      lists over thresholds: `threshold`; `model` of {value, low, high, n}; `all`; `none`; and
      `useful`, whether the interval of the model lies above both.
    Raises:
      ValueError: when everybody or nobody has the disease.
    """
    if disease.all() or not disease.any():
        raise ValueError("a decision curve needs examples with and without the disease")
    treated = risk[:, None] >= thresholds[None]
    found, alarms = treated & disease[:, None], treated & ~disease[:, None]
    kinds = np.stack([disease, ~disease], axis=1)
    summed = np.concatenate([found, alarms, kinds], axis=1).astype(float)

    def benefit(sensitivity: Any, false_positive_rate: Any, chance: Any) -> np.ndarray:
        return curve_net_benefit(sensitivity, false_positive_rate, chance, thresholds[None])

    own = _rates(summed.sum(axis=0)[None], prevalence)
    drawn = _rates(bootstrap.totals(summed, groups, resamples, seed), prevalence)
    # At least as uncertain as either rate alone, see `bootstrap.share`.
    counts = bootstrap.count_groups(groups, kinds)
    found, alarmed = (_ends(own[i][0], drawn[i], counts[i]) for i in (0, 1))
    reach = np.concatenate([benefit(found, own[1], own[2]), benefit(own[0], alarmed, own[2])])
    value, of_draws, treat_all = benefit(*own)[0], benefit(*drawn), benefit(1.0, 1.0, own[2])[0]
    low, high = bootstrap.interval(of_draws)
    low, high = np.fmin(low, reach.min(axis=0)), np.fmax(high, reach.max(axis=0))
    margin = bootstrap.interval(of_draws - np.maximum(benefit(1.0, 1.0, drawn[2]), 0))[0]
    margin = np.fmin(margin, reach.min(axis=0) - np.maximum(treat_all, 0))
    return {
        "threshold": thresholds.tolist(),
        "model": [
            {"value": float(value[k]), "low": float(low[k]), "high": float(high[k]), "n": len(risk)}
            for k in range(len(thresholds))
        ],
        "all": np.broadcast_to(treat_all, value.shape).tolist(),
        "none": [0.0] * len(thresholds),
        "useful": (margin > 0).tolist(),
    }


def _rates(total: np.ndarray, prevalence: float | None) -> tuple[np.ndarray, np.ndarray, Any]:
    """Sensitivity and false-positive rate at T thresholds, [R, T] each, and the prevalence.

    Args:
      total: float [R, 2 T + 2], found and alarmed at each threshold; all with the disease, without.
    """
    sick, well = total[:, -2:-1], total[:, -1:]
    found, alarmed = np.split(total[:, :-2], 2, axis=1)
    with np.errstate(invalid="ignore"):
        chance = sick / (sick + well) if prevalence is None else prevalence
        return found / sick, alarmed / well, chance


def _ends(rate: np.ndarray, drawn: np.ndarray, groups: int) -> np.ndarray:
    """The intervals of shares [T], drawn [R, T], of that many groups: [2, T]."""
    entries = [bootstrap.share(rate[k], drawn[:, k], 0, groups) for k in range(len(rate))]
    return np.array([[entry[end] for entry in entries] for end in ("low", "high")])


def rates_of(
    positive: np.ndarray, disease: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> tuple[Diagnostic, np.ndarray]:
    """Sensitivity and specificity of a yes-or-no answer, with those of each resample.

    Args:
      positive, disease: bool [N]; groups: int [N].
    Returns:
      a test without cost whose rates are floats, and float [R, 2] of both in each resample.
    """
    answers = np.stack([~positive, positive], axis=1).astype(float)
    columns = bootstrap.columns(disease.astype(int), answers).cells
    drawn = bootstrap.totals(columns, groups, resamples, seed)
    tables = np.concatenate([columns.sum(axis=0)[None], drawn]).reshape(-1, 2, 2)
    recall = metrics.rates(tables)["recall"]
    return Diagnostic(float(recall[0, 1]), float(recall[0, 0]), 0.0), recall[1:, ::-1]
