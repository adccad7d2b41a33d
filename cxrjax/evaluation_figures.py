"""Figures of what an accuracy is worth: calibration, runs side by side, decision curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cxrjax.plotting import COLOURS, WIDTH, new_figure, save

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_SMALL = 8


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
    _style(axes, f"Reliability, T = {temperature['value']:.2f}", "confidence", "share right")
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
    _style(axes, "Risk against coverage", "share answered", "share wrong of answered")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(bottom=0)


def _conformal(axes: Axes, found: Mapping[str, Any]) -> None:
    table, level = found["conformal"]["test"], found["conformal"]["level"]
    _rows(axes, {name: row["coverage"] for name, row in table.items()})
    axes.axvline(level, color="0.45", lw=1, ls="--")
    size = table["all"]["size"]["value"]
    _style(axes, f"Conformal sets, {size:.2f} classes on average", f"coverage, asked {level:g}")


def _operating_points(axes: Axes, found: Mapping[str, Any]) -> None:
    points = found["operating_points"]
    for k, rate in enumerate(("sensitivity", "specificity")):
        _rows(axes, {name: at[rate] for name, at in points.items()}, k, rate, 0.15 - 0.3 * k)
    required = next(iter(points.values()))["required_sensitivity"]
    axes.axvline(required, color="0.45", lw=1, ls="--")
    _style(axes, f"Cuts for a sensitivity of {required:g}", "share")


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
        _rows(left, figures, k, run["name"], 0.35 - step * (k + 0.5))
    _style(left, f"Test split, n = {runs[0]['accuracy']['n']:,}; bars: 95 % intervals", "share")
    left.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    differences = {
        f"{pair['first']} − {pair['second']}": pair["difference"]["accuracy"] for pair in pairs
    }
    _rows(below, differences)
    below.axvline(0, color="0.45", lw=1, ls="--")
    _style(below, "Differences in accuracy, on the same images", "difference")
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
                _band(axes, lines["prevalence"], values, label, style)
            else:
                axes.plot(lines["prevalence"], values, label=label, **style)
        turn = found[part]["break_even_prevalence"]
        if turn is not None:
            axes.axvline(turn, color="0.45", lw=1, ls=":", label=f"equal at {turn:.1%}")
        title = {"report": "As the report has it", "corrected": "With false positives"}[part]
        _style(axes, title, "prevalence", "net benefit per patient")
    curve_of = found["decision_curve"]
    _band(curve, curve_of["threshold"], curve_of["model"], "model", dict(color=COLOURS[0], lw=1.4))
    curve.plot(curve_of["threshold"], curve_of["all"], color=COLOURS[1], ls="--", label="treat all")
    curve.plot(curve_of["threshold"], curve_of["none"], color="0.3", ls=":", label="treat none")
    top = max([0.01, *(entry["value"] for entry in curve_of["model"])])
    curve.set_ylim(-0.25 * top, 1.15 * top)
    _style(curve, f"Decision curve, {found['disease']}", "threshold probability", "net benefit")
    save(figure, path)


def _band(
    axes: Axes, x: Sequence[float], entries: Sequence[Mapping], label: str, style: dict[str, Any]
) -> None:
    value, low, high = (
        [np.nan if entry[key] is None else entry[key] for entry in entries]
        for key in ("value", "low", "high")
    )
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
    axes.plot(x, value, label=label, **style)


def _points(
    axes: Axes, x: Sequence[float], entries: Sequence[Mapping], k: int, label: str, line: bool
) -> None:
    value, reach = _reach(entries)
    axes.errorbar(
        x,
        value,
        reach,
        color=COLOURS[k],
        marker=_MARKERS[k],
        ms=3.5,
        lw=1.2 if line else 0,
        elinewidth=0.8,
        label=label,
    )


def _rows(
    axes: Axes, entries: Mapping[str, Mapping], k: int = 0, label: str = "", shift: float = 0.0
) -> None:
    """One figure a row, its interval as a bar."""
    value, reach = _reach(list(entries.values()))
    places = len(entries) - 1 - np.arange(len(entries))
    axes.errorbar(
        value,
        places + shift,
        xerr=reach,
        color=COLOURS[k % len(COLOURS)],
        marker=_MARKERS[k % len(_MARKERS)],
        ms=3.5,
        lw=0,
        elinewidth=1.1,
        label=label or None,
    )
    axes.set_yticks(places, [name.replace("_", " ") for name in entries], fontsize=_SMALL)
    axes.set_ylim(-0.6, len(entries) - 0.4)


def _reach(entries: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] and how far their intervals reach down and up [2, n]; NaN where undefined.

    The interval of a figure such as the ECE may leave its value out: it reaches 0 to that side.
    """
    value, low, high = (
        np.array([np.nan if entry[key] is None else entry[key] for entry in entries], float)
        for key in ("value", "low", "high")
    )
    return value, np.maximum(np.stack([value - low, high - value]), 0)


def _style(axes: Axes, title: str, x: str, y: str = "") -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=_SMALL)
    axes.set_ylabel(y, fontsize=_SMALL)
    axes.tick_params(labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False)
