"""Figures of what an accuracy is worth: calibration, runs side by side, decision curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from cxrjax.plotting import (
    COLOURS,
    MARKERS,
    WIDTH,
    dress,
    interval_band,
    interval_rows,
    new_figure,
    reach,
    save,
)


def calibration(found: Mapping[str, Any], path: Path) -> None:
    """Reliability, risk against coverage, conformal coverage and required sensitivity.

    Args:
      found: the content of calibration.json.
      path: of the PNG, replaced in one step.
    """
    figure = new_figure(6.4)
    reliability, risk, sets, cuts = figure.subplots(2, 2).ravel()
    _reliability(reliability, found)
    _risk(risk, found["abstention"])
    _conformal(sets, found)
    _operating_points(cuts, found)
    n = found["before"]["ece"]["n"]
    seen = " (trained on)" if found.get("fitted_on_training_images") else ""
    figure.suptitle(
        f"Fitted on validation{seen}, shown on the test split, n = {n:,}; bars: 95 % intervals",
        fontsize=9,
    )
    save(figure, path)


def _reliability(axes: Axes, found: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    for k, (part, label) in enumerate((("before", "as trained"), ("after", "with temperature"))):
        bins, ece = found[part]["reliability"], found[part]["ece"]
        _points(
            axes,
            [b["confidence"] for b in bins],
            [b["accuracy"] for b in bins],
            k,
            f"{label}, ECE {ece['value']:.3f}",
            line=True,
        )
    temperature = found["temperature"]
    dress(axes, f"Reliability, T = {temperature['value']:.2f}", "confidence", "share right")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)


def _risk(axes: Axes, found: Mapping[str, Any]) -> None:
    _points(
        axes,
        [point["coverage"] for point in found["curve"]],
        [point["risk"] for point in found["curve"]],
        0,
        f"area {found['area_under_risk_coverage']:.3f}",
        line=True,
    )
    answered = found["test"]["coverage"]["value"]
    axes.axvline(answered, color="0.45", lw=1, ls="--", label=f"cut: answers {answered:.0%}")
    dress(axes, "Risk against coverage", "share answered", "share wrong of answered")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)


def _conformal(axes: Axes, found: Mapping[str, Any]) -> None:
    table, level = found["conformal"]["test"], found["conformal"]["level"]
    interval_rows(axes, {name: row["coverage"] for name, row in table.items()})
    axes.axvline(level, color="0.45", lw=1, ls="--")
    size = table["all"]["size"]["value"]
    dress(axes, f"Conformal sets, {size:.2f} classes on average", f"coverage, asked {level:g}")


def _operating_points(axes: Axes, found: Mapping[str, Any]) -> None:
    points = found["operating_points"]
    for k, rate in enumerate(("sensitivity", "specificity")):
        interval_rows(
            axes, {name: at[rate] for name, at in points.items()}, k, rate, 0.15 - 0.3 * k
        )
    first, *_ = points.values()
    required = first["required_sensitivity"]
    axes.axvline(required, color="0.45", lw=1, ls="--")
    dress(axes, f"Cuts for a sensitivity of {required:g}", "share")


def comparison(runs: Sequence[Mapping[str, Any]], pairs: Sequence[Any], path: Path) -> None:
    """Accuracy and per-class recall of runs side by side, and the differences between them.

    Args:
      runs: each with `name`, `accuracy` and `recall` by class as {value, low, high, n}.
      pairs: from `comparison.compare`.
      path: of the PNG, replaced in one step.
    """
    rows = 1 + len(runs[0]["recall"])
    figure = new_figure(2.4 + 0.16 * rows * len(runs) + 0.3 * len(pairs))
    heights = [rows * len(runs) * 0.16 + 1, 0.3 * len(pairs) + 0.8]
    left, below = figure.subplots(2, 1, height_ratios=heights)
    step = 0.7 / len(runs)
    for k, run in enumerate(runs):
        figures = {
            "accuracy": run["accuracy"],
            **{f"recall {c}": v for c, v in run["recall"].items()},
        }
        interval_rows(left, figures, k, run["name"], 0.35 - step * (k + 0.5))
    dress(left, f"Test split, n = {runs[0]['accuracy']['n']:,}; bars: 95 % intervals", "share")
    left.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    differences = {
        f"{pair['first']} − {pair['second']}": pair["difference"]["accuracy"] for pair in pairs
    }
    interval_rows(below, differences)
    below.axvline(0, color="0.45", lw=1, ls="--")
    dress(below, "Differences in accuracy, on the same images", "difference")
    save(figure, path)


def decision(found: Mapping[str, Any], path: Path) -> None:
    """Net benefit over prevalence, as the report has it and corrected, and the decision curve.

    Args:
      found: the content of decision.json.
      path: of the PNG, replaced in one step.
    """
    figure = new_figure(3.4, width=1.5 * WIDTH)
    report, corrected, curve = figure.subplots(1, 3)
    for axes, part in ((report, "report"), (corrected, "corrected")):
        lines = found[part]["over_prevalence"]
        for k, test in enumerate(("xray", "pcr")):
            values = lines[test]
            style = dict(color=COLOURS[k], ls=("-", "--")[k], lw=1.4)
            label = {"xray": "X-ray", "pcr": "PCR"}[test]
            if isinstance(values[0], Mapping):
                interval_band(axes, lines["prevalence"], values, label, style)
            else:
                axes.plot(lines["prevalence"], values, label=label, **style)
        turn = found[part]["break_even_prevalence"]
        if turn is not None:
            axes.axvline(turn, color="0.45", lw=1, ls=":", label=f"equal at {turn:.1%}")
        title = {"report": "As the report has it", "corrected": "With false positives"}[part]
        dress(axes, title, "prevalence", "net benefit per patient")
    curve_of = found["decision_curve"]
    interval_band(
        curve, curve_of["threshold"], curve_of["model"], "model", dict(color=COLOURS[0], lw=1.4)
    )
    curve.plot(curve_of["threshold"], curve_of["all"], color=COLOURS[1], ls="--", label="treat all")
    curve.plot(curve_of["threshold"], curve_of["none"], color="0.3", ls=":", label="treat none")
    top = max([0.01, *(entry["value"] for entry in curve_of["model"])])
    curve.set_ylim(-0.25 * top, 1.15 * top)
    dress(curve, f"Decision curve, {found['disease']}", "threshold probability", "net benefit")
    save(figure, path)


def _points(
    axes: Axes, x: Sequence[float], entries: Sequence[Mapping], k: int, label: str, line: bool
) -> None:
    value, reaching = reach(entries)
    axes.errorbar(
        x,
        value,
        reaching,
        color=COLOURS[k],
        marker=MARKERS[k],
        ms=3.5,
        lw=1.2 if line else 0,
        elinewidth=0.8,
        label=label,
    )
