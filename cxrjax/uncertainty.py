"""How far a run's probabilities can be trusted: calibration.json, fitted on validation only.

Temperature, conformal sets, abstention and cuts for a required sensitivity are fitted on the
validation split and reported on the test split. Cuts apply to probabilities after the temperature,
`calibration.scaled(p, T)`. The best epoch was chosen on the same validation split, so what is
promised of new images holds a little less than exactly; the figures of the test split say how much.
Where the network was trained on the validation images too, nothing is promised: only the test split
tells, and `fitted_on_training_images` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from cxrjax import bootstrap, calibration, conformal, selective
from cxrjax.predictions import Split

_GRID = 20  # points of the risk-coverage curve that carry an interval


@dataclass(frozen=True)
class Aims:
    """What is asked of the cuts; fields of config.eval."""

    conformal_level: float  # share of the prediction sets that hold the true class
    coverage: float  # share of images to be answered
    sensitivity: float  # required of each class's cut


def assess(
    splits: dict[str, Split],
    classes: tuple[str, ...],
    prior: np.ndarray,
    aims: Aims,
    resamples: int,
    seed: int,
    *,
    seen: bool = False,
) -> dict[str, Any]:
    """The content of calibration.json.

    Args:
      splits: `validation`, and `test` where it is read: without it there is only what is fitted.
      classes: the K names.
      prior: float [K], class frequencies in training, class weights included.
      resamples, seed: of the bootstrap.
      seen: whether the validation images were trained on.
    """
    validation = splits["validation"]
    temperature = calibration.temperature_entry(
        validation.probabilities, validation.labels, validation.groups, resamples, seed
    )
    fitted = calibration.scaled(validation.probabilities, temperature["value"])
    least = conformal.fit(fitted, validation.labels, validation.groups, aims.conformal_level)
    cut = selective.abstention_threshold(fitted.max(axis=1), aims.coverage)
    points = conformal.fit(fitted, validation.labels, validation.groups, aims.sensitivity)
    found: dict[str, Any] = {
        "fitted_on": "validation",
        "fitted_on_training_images": seen,
        "reported_on": "test" if "test" in splits else None,
        "applies_to": "softmax(log(p) / temperature)",
        "classes": list(classes),
        "training_prior": dict(zip(classes, map(float, prior), strict=True)),
        "temperature": temperature,
        "conformal": {
            "level": aims.conformal_level,
            "thresholds": dict(zip(classes, map(float, least), strict=True)),
        },
        "abstention": {"coverage": aims.coverage, "threshold": cut},
        "operating_points": {
            name: {"required_sensitivity": aims.sensitivity, "threshold": float(point)}
            for name, point in zip(classes, points, strict=True)
        },
    }
    if "test" in splits:
        _report(
            found, splits["test"], (fitted, validation.labels, validation.groups), resamples, seed
        )
    return found


def _report(
    found: dict[str, Any], test: Split, validation: selective.Scored, resamples: int, seed: int
) -> None:
    """Adds to what was fitted what it is worth on the test split."""
    classes, draw = tuple(found["classes"]), (test.groups, resamples, seed)
    held = calibration.scaled(test.probabilities, found["temperature"]["value"])
    least = np.array([found["conformal"]["thresholds"][name] for name in classes])
    cut = found["abstention"]["threshold"]
    points = selective.operating_points(
        validation,
        (held, test.labels, test.groups),
        found["operating_points"][classes[0]]["required_sensitivity"],
        resamples,
        seed,
    )
    found |= {
        "before": _quality(test.labels, test.probabilities, *draw),
        "after": _quality(test.labels, held, *draw),
        "operating_points": dict(zip(classes, points, strict=True)),
    }
    found["conformal"]["test"] = conformal.coverage_table(
        conformal.sets(held, least), test.labels, test.groups, classes, resamples, seed
    )
    found["abstention"] |= {
        "test": selective.answered(test.labels, held, test.groups, cut, resamples, seed),
        **_risk(test, held, resamples, seed),
    }


class Answers(NamedTuple):
    """What a run says of N images once calibrated."""

    probabilities: np.ndarray  # float64 [N, K], after the temperature
    abstained: np.ndarray  # bool [N], whether the most probable class is not probable enough
    sets: np.ndarray  # bool [N, K], the classes in each image's conformal set


def answer(fitted: Mapping[str, Any], probabilities: np.ndarray) -> Answers:
    """Applies a run's calibration.json to the probabilities its network gives to new images.

    Args:
      fitted: the content of calibration.json.
      probabilities: float [N, K], classes in the order of the run.
    """
    scaled = calibration.scaled(probabilities, fitted["temperature"]["value"])
    least = [fitted["conformal"]["thresholds"][name] for name in fitted["classes"]]
    abstained = scaled.max(axis=1) < fitted["abstention"]["threshold"]
    return Answers(scaled, abstained, conformal.sets(scaled, np.array(least)))


def _quality(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """Log loss, Brier score, ECE and reliability diagram of one set of probabilities."""
    each, n = bootstrap.columns(labels, probabilities), len(labels)
    summed = np.column_stack([np.ones(n), each.log_loss, each.brier, each.gap])
    drawn = np.concatenate(
        [summed.sum(axis=0)[None], bootstrap.totals(summed, groups, resamples, seed)]
    )
    mean = drawn[:, 1:] / drawn[:, :1]
    figures = {
        "log_loss": mean[:, 0],
        "brier": mean[:, 1],
        "ece": np.abs(mean[:, 2:]).sum(axis=1),
    }
    return {name: bootstrap.entry(of[0], of[1:], n) for name, of in figures.items()} | {
        "reliability": calibration.reliability(labels, probabilities, groups, resamples, seed)
    }


def _risk(test: Split, probabilities: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """The risk-coverage curve at some coverages, with intervals, and the area under all of it."""
    confidence = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != test.labels
    risk = selective.risk_coverage(confidence, wrong)[1]
    cuts = [selective.abstention_threshold(confidence, k / _GRID) for k in range(1, _GRID + 1)]
    given = confidence[:, None] >= np.array(cuts)[None]
    summed = np.concatenate([given, given & wrong[:, None]], axis=1).astype(float)
    drawn = bootstrap.totals(summed, test.groups, resamples, seed)
    with np.errstate(invalid="ignore"):
        shares = drawn[:, _GRID:] / drawn[:, :_GRID]
    n, g = given.sum(axis=0), bootstrap.count_groups(test.groups, given)
    curve = [
        {
            "coverage": float(given[:, k].mean()),
            "threshold": cut,
            "risk": bootstrap.share(wrong[given[:, k]].mean(), shares[:, k], n[k], g[k]),
        }
        for k, cut in enumerate(cuts)
    ]
    return {"curve": curve, "area_under_risk_coverage": float(risk.mean())}
