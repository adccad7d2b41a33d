"""The section that says what a run's probabilities are worth: calibration.json, decision.json."""

from __future__ import annotations

from typing import Any

from cxrjax.report import elements as e
from cxrjax.report import performance
from cxrjax.report.elements import Html
from cxrjax.report.files import Found

_QUALITY = {"log_loss": "log loss", "brier": "Brier score", "ece": "calibration error (ECE)"}
_SETS = {
    "coverage": "holds the true class",
    "size": "classes in it",
    "single": "one class only",
    "empty": "no class",
}


def section(found: Found) -> Html:
    """Calibration, conformal sets, abstention, thresholds, and the worth against PCR."""
    fitted = found.calibration
    parts = (
        [performance.evaluate_again(found, "calibration.json is")]
        if fitted is None
        else [
            _temperature(fitted),
            _conformal(fitted),
            _abstention(fitted),
            _points(fitted),
            _figure(found),
        ]
    )
    return e.section("certainty", "How sure of a single image", *parts, _decision(found))


def _temperature(fitted: dict[str, Any]) -> Html:
    temperature = fitted["temperature"]
    parts = [e.tag("h3", "Calibration")]
    if fitted.get("fitted_on_training_images"):
        from cxrjax.calibration import SEEN

        parts.append(e.paragraph(f"calibration.json {SEEN}.", class_="warning"))
    side = "not shown to be too sure, nor too unsure"
    if temperature["low"] > 1:
        side = "too sure of itself"
    elif temperature["high"] < 1:
        side = "less sure than it could be"
    parts.append(
        e.paragraph(
            "Temperature fitted on validation images: ",
            e.interval(temperature),
            f". As trained the network is {side}; everything in this section is said of "
            "probabilities after the temperature.",
        )
    )
    if "before" in fitted:
        rows = [
            [name, e.interval(fitted["before"][key]), e.interval(fitted["after"][key])]
            for key, name in _QUALITY.items()
        ]
        parts.append(e.table("Test split, lower is better", ["", "before", "after"], rows))
    return e.join(parts)


def _conformal(fitted: dict[str, Any]) -> Html:
    found = fitted["conformal"]
    parts = [
        e.tag("h3", "Sets of classes"),
        e.paragraph(
            "Instead of one answer a set of classes, made on validation images to hold the true "
            f"class for {e.percent(found['level'])} of each class's images."
        ),
    ]
    if "test" in found:
        rows = [
            [name, *(e.interval(of[key], n=key == "coverage") for key in _SETS)]
            for name, of in found["test"].items()
        ]
        head = ["true class", *_SETS.values()]
        parts.append(e.table("Sets on the test split (conformal prediction)", head, rows))
    return e.join(parts)


def _abstention(fitted: dict[str, Any]) -> Html:
    found = fitted["abstention"]
    parts = [
        e.tag("h3", "Abstention"),
        e.paragraph(
            "An image is answered where its most probable class has at least "
            f"{found['threshold']:.3f}, as {e.percent(found['coverage'])} of the validation images "
            "had."
        ),
    ]
    if test := found.get("test"):
        rows = [
            ["images answered", e.interval(test["coverage"])],
            ["accuracy of those answered", e.interval(test["accuracy_answered"])],
            [
                "accuracy of the rest, had they been answered",
                e.interval(test["accuracy_abstained"]),
            ],
        ]
        parts.append(e.table("Abstention on the test split", ["", "share"], rows))
    return e.join(parts)


def _points(fitted: dict[str, Any]) -> Html:
    points = fitted["operating_points"]
    first, *_ = points.values()
    rates = [key for key in ("sensitivity", "specificity") if key in first]
    rows = [
        [
            name,
            f"{point['required_sensitivity']:.2f}",
            f"{point['threshold']:.3f}",
            *(e.interval(point[key]) for key in rates),
        ]
        for name, point in points.items()
    ]
    parts = [
        e.tag("h3", "Thresholds for a required sensitivity"),
        e.table(
            "Cuts on each class's probability, fitted on validation"
            + (" and held on the test split" if rates else ""),
            ["class", "required", "threshold", *rates],
            rows,
        ),
    ]
    if any(point["threshold"] == 0 for point in points.values()):
        parts.append(
            e.paragraph(
                "A threshold of 0 calls every image positive: there were too few validation images "
                "of the class to promise the sensitivity with any other."
            )
        )
    return e.join(parts)


def _figure(found: Found) -> Html:
    if not found.tested:
        return performance.untested(found)
    return e.figure(
        found.pictures.get("calibration"),
        "Reliability diagram, risk against coverage, coverage of the conformal sets, and "
        "sensitivity and specificity at the thresholds, on the test split",
        "The same figures drawn. On the dotted line of the first, of answers given with a "
        "confidence of .80 just 80 in 100 are right.",
    ) or performance.evaluate_again(found, "figures/calibration.png is")


def _decision(found: Found) -> Html:
    """What the run is worth against PCR, where somebody asked."""
    title = e.tag("h3", "Worth against PCR")
    decide: tuple[object, ...] = ("cxrjax.decide", "--workdir", found.folder)
    if not found.tested:
        return Html()
    if found.decision is None:
        names = [name.lower() for name in found.result["classes"]]
        disease = () if "covid" in names else ("--disease", found.result["classes"][-1])
        return e.join([title, e.missing("The decision page is not here", *decide, *disease)])
    corrected, assumed = found.decision["corrected"], found.decision["assumptions"]
    return e.join(
        [
            title,
            e.paragraph(
                f"For {found.decision['disease']} at a prevalence of {assumed['prevalence']:.3g}: "
                f"{corrected['finding']} (difference in net benefit ",
                e.interval(corrected["difference"]),
                "). Value and costs are illustrations unless they were set: all of them are in "
                "decision.json.",
            ),
            e.figure(
                found.pictures.get("decision"),
                "Net benefit over prevalence, and decision curve",
                "Net benefit against PCR, and decision curve of the calibrated probabilities.",
            )
            or e.missing("figures/decision.png is not here", *decide),
        ]
    )
