"""A run's decision page as data: decision.json."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cxrjax import bootstrap, calibration, decision, log
from cxrjax.decision import Diagnostic, Setting
from cxrjax.errors import MALFORMED, UserError, reason
from cxrjax.predictions import Run, Split

Rates = Mapping[str, Mapping[str, Any]]  # sensitivity and specificity, each {value, low, high, n}
_PREVALENCES = np.linspace(0, 1, 51)
_THRESHOLDS = np.arange(1, 100) / 100


def make(run: Run, disease: int, assumed: argparse.Namespace) -> dict[str, Any]:
    """The content of decision.json.

    Args:
      run: a finished run; its test split is used as predicted, nothing is read again.
      disease: the class to be found.
      assumed: `prevalence` (None: the test split's), `value`, `cost_weight`,
        `false_positive_cost`, `xray_cost`, `pcr_cost`, `pcr_sensitivity`, `pcr_specificity`;
        `resamples` and `seed` of the bootstrap.
    Raises:
      UserError: when the test images are all of the class or hold none of it.
    """
    test = run.splits["test"]
    sick = test.labels == disease
    if sick.all() or not sick.any():
        which = "are all" if sick.all() else "hold no"
        raise UserError(
            f"the test images of {run.folder} {which} {run.classes[disease]}, which tells nothing "
            "of the worth of finding it; name another --disease or another run."
        )
    prevalence = float(sick.mean()) if assumed.prevalence is None else assumed.prevalence
    at = Setting(prevalence, assumed.value, assumed.cost_weight, assumed.false_positive_cost)
    pcr = Diagnostic(assumed.pcr_sensitivity, assumed.pcr_specificity, assumed.pcr_cost)
    draw = test.groups, assumed.resamples, assumed.seed
    told = test.probabilities.argmax(axis=1) == disease
    found, drawn = decision.rates_of(told, sick, *draw)
    xray = Diagnostic(found.sensitivity, found.specificity, assumed.xray_cost)
    each = Diagnostic(drawn[:, 0], drawn[:, 1], assumed.xray_cost)
    accuracy = float((test.probabilities.argmax(axis=1) == test.labels).mean())
    kinds = {"sensitivity": sick, "specificity": ~sick}
    g = bootstrap.count_groups(test.groups, np.stack([sick, ~sick], axis=1))
    rates = {
        name: bootstrap.share(getattr(xray, name), getattr(each, name), of.sum(), count)
        for (name, of), count in zip(kinds.items(), g, strict=True)
    }
    of_pcr = decision.predictive_values(pcr, prevalence)
    pcr_ppv, pcr_npv = (bootstrap.number(value) for value in of_pcr)
    return {
        "disease": run.classes[disease],
        "assumptions": {
            key: value for key, value in vars(assumed).items() if key not in ("workdir", "disease")
        }
        | {"prevalence": prevalence},
        "xray": rates | _predictive_values(xray, each, rates, prevalence, len(sick)),
        "pcr": {"ppv": pcr_ppv, "npv": pcr_npv},
        "report": _as_reported(Diagnostic(accuracy, np.nan, assumed.xray_cost), pcr, at),
        "corrected": _corrected(xray, each, rates, pcr, at, len(sick)),
        "decision_curve": _curve(run, test, disease, assumed),
    }


def _predictive_values(
    xray: Diagnostic, drawn: Diagnostic, rates: Rates, prevalence: float, n: int
) -> dict[str, Any]:
    of = decision.predictive_values
    ends = _at_ends(xray, rates, lambda test: of(test, prevalence))
    found = zip(of(xray, prevalence), of(drawn, prevalence), ends.T, strict=True)
    return {name: _entry(*each, n) for name, each in zip(("ppv", "npv"), found, strict=True)}


def _at_ends(xray: Diagnostic, rates: Rates, of: Callable[[Diagnostic], Any]) -> np.ndarray:
    """What `of` makes of the test where one of its rates is at an end of its interval: [4, ...]."""
    ends = [(rate, rates[rate][end]) for rate in rates for end in ("low", "high")]
    return np.array([of(replace(xray, **{rate: value})) for rate, value in ends])


def _entry(value: Any, drawn: np.ndarray, ends: np.ndarray, n: int) -> dict[str, Any]:
    """{value, low, high, n}, at least as uncertain as either rate makes it, see `bootstrap.share`.

    Args:
      ends: float [4], see `_at_ends`.
    """
    entry = bootstrap.entry(value, drawn, n)
    if entry["low"] is None:
        return entry
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    return entry | {"low": min(entry["low"], low), "high": max(entry["high"], high)}


def _as_reported(xray: Diagnostic, pcr: Diagnostic, at: Setting) -> dict[str, Any]:
    """The report's figures with the report's mistake: the accuracy in the place of S."""
    swept = Setting(_PREVALENCES, at.value, at.cost_weight, at.false_positive_cost)
    return {
        "sensitivity": xray.sensitivity,
        "xray": decision.net_benefit(xray, at),
        "pcr": decision.net_benefit(pcr, at),
        "left": at.prevalence * at.value * (xray.sensitivity - pcr.sensitivity),
        "right": at.cost_weight * (xray.cost - pcr.cost),
        "xray_preferable": bool(decision.preferable(xray, pcr, at)),
        "break_even_prevalence": decision.break_even(xray, pcr, at),
        "over_prevalence": {
            "prevalence": _PREVALENCES.tolist(),
            "xray": decision.net_benefit(xray, swept).tolist(),
            "pcr": decision.net_benefit(pcr, swept).tolist(),
        },
    }


def _corrected(
    xray: Diagnostic, drawn: Diagnostic, rates: Rates, pcr: Diagnostic, at: Setting, n: int
) -> dict[str, Any]:
    swept = Setting(_PREVALENCES[None], at.value, at.cost_weight, at.false_positive_cost)
    column = Diagnostic(drawn.sensitivity[:, None], drawn.specificity[:, None], drawn.cost)
    over = decision.corrected_net_benefit(column, swept)
    over_value = decision.corrected_net_benefit(xray, swept)[0]
    over_ends = _at_ends(xray, rates, lambda test: decision.corrected_net_benefit(test, swept)[0])
    value, spread = (decision.corrected_net_benefit(of, at) for of in (xray, drawn))
    ends = _at_ends(xray, rates, lambda test: decision.corrected_net_benefit(test, at))
    comparator = decision.corrected_net_benefit(pcr, at)
    difference = _entry(value - comparator, spread - comparator, ends - comparator, n)
    finding = "not distinguishable"
    if difference["low"] > 0:
        finding = "the X-ray is worth more"
    elif difference["high"] < 0:
        finding = "PCR is worth more"
    return {
        "xray": _entry(value, spread, ends, n),
        "pcr": comparator,
        "difference": difference,
        "finding": finding,
        "break_even_prevalence": decision.corrected_break_even(xray, pcr, at),
        "over_prevalence": {
            "prevalence": _PREVALENCES.tolist(),
            "xray": [
                _entry(over_value[k], over[:, k], over_ends[:, k], n)
                for k in range(len(_PREVALENCES))
            ],
            "pcr": decision.corrected_net_benefit(pcr, swept)[0].tolist(),
        },
    }


def _curve(run: Run, test: Split, disease: int, assumed: argparse.Namespace) -> dict[str, Any]:
    """The decision curve of calibrated risks, moved to the asked prevalence.

    Where none is asked, to the class frequencies of the validation split: training may have weighed
    the classes otherwise, and no temperature undoes that.
    """
    temperature, prior = _calibration(run)
    probabilities = calibration.scaled(test.probabilities, temperature)
    there = np.bincount(run.splits["validation"].labels, minlength=len(prior)) / len(
        run.splits["validation"].labels
    )
    if assumed.prevalence is not None:
        there = calibration.one_against_rest(prior, disease, assumed.prevalence)
    if 0 < there[disease] < 1:
        probabilities = calibration.for_prevalence(probabilities, prior, there)
    return decision.decision_curve(
        probabilities[:, disease],
        test.labels == disease,
        test.groups,
        _THRESHOLDS,
        assumed.resamples,
        assumed.seed,
        assumed.prevalence,
    )


def _calibration(run: Run) -> tuple[float, np.ndarray]:
    """Temperature and training prior float64 [K] of calibration.json."""
    path = run.folder / "calibration.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        temperature = float(found["temperature"]["value"])
        prior = np.array([float(found["training_prior"][name]) for name in run.classes])
        if not (0 < temperature < np.inf and ((prior > 0) & (prior <= 1)).all()):
            raise ValueError("temperature or training_prior out of range")
    except (OSError, *MALFORMED) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); it belongs to the run's results: train it "
            "again."
        ) from error
    if found.get("fitted_on_training_images"):
        log.say(f"{path} {calibration.SEEN}")
    return temperature, prior
