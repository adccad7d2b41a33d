"""Figures of what each hyper-parameter does: a heat map per pair, and parallel coordinates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from cxrjax.plotting import COLOURS, WIDTH, new_figure, save
from cxrjax.sweep import labels, selection
from cxrjax.sweep.trials import FINISHED, Records

_PAIRS = 6  # heat maps in one figure
_TICKS = 8  # values of a field written at its axis
_SMALL = 7
_BEST = COLOURS[1]
_MAP = colormaps["viridis"]
_LOST = -0.12  # place of trials without an accuracy, on axes from 0 to 1


def heat_maps(records: Records, path: Path) -> None:
    """Validation accuracy over each pair of the fields that vary: mean and best of the rest.

    Of more than four fields those that change the mean most are shown.

    Args:
      path: of the PNG, replaced in one step.
    """
    chosen = _strongest(records, 4)
    pairs = list(itertools.combinations(chosen, 2))[:_PAIRS]
    if not pairs:
        pairs = [("", chosen[0] if chosen else "")]
    names = labels.short(labels.fields(records))
    tables = [_Table(records, *pair) for pair in pairs]
    columns = min(2, len(pairs))
    rows = [tables[start : start + columns] for start in range(0, len(tables), columns)]
    heights = [max(0.5 * len(t.down) for t in row) + 0.95 for row in rows]
    figure = new_figure(sum(heights) + 0.5, WIDTH if columns > 1 else 0.8 * WIDTH)
    panels = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights).ravel()
    scale = _scale(np.concatenate([table.mean.ravel() for table in tables]))
    for axes in panels[len(tables) :]:
        axes.axis("off")
    for axes, table in zip(panels, tables, strict=False):
        _heat_map(axes, table, names, scale)
    bar = figure.colorbar(ScalarMappable(scale, _MAP), ax=list(panels), shrink=0.8, aspect=30)
    bar.set_label("mean validation accuracy", fontsize=8)
    bar.ax.tick_params(labelsize=_SMALL)
    several = any(np.any(table.count > 1) for table in tables)
    how = "mean over all other fields and seeds; in brackets the best trial" if several else ""
    figure.suptitle("Validation accuracy" + (f": {how}" if how else ""), fontsize=9)
    save(figure, path)


class _Table:
    """Trials by two fields; an empty name stands for no field at all.

    Attributes:
      down, across: the values of the fields.
      mean, best: float [len(down), len(across)], NaN without a finished trial.
      count, lost: int, its finished trials and the others.
    """

    def __init__(self, records: Records, first: str, second: str):
        sides = [
            (field, labels.levels(records, field) if field else [""]) for field in (first, second)
        ]
        (self.first, self.down), (self.second, self.across) = sorted(sides, key=lambda s: len(s[1]))
        shape = len(self.down), len(self.across)
        self.mean, self.best = np.full(shape, np.nan), np.full(shape, np.nan)
        self.count, self.lost = np.zeros(shape, int), np.zeros(shape, int)
        for row, column in np.ndindex(shape):
            trials = [
                trial
                for trial in records
                if _has(trial, self.first, self.down[row])
                and _has(trial, self.second, self.across[column])
            ]
            found = [selection.accuracy(trial) for trial in trials if trial["status"] == FINISHED]
            self.count[row, column] = len(found)
            self.lost[row, column] = len(trials) - len(found)
            if found:
                self.mean[row, column], self.best[row, column] = np.mean(found), max(found)


def _heat_map(axes: Axes, table: _Table, names: Mapping[str, str], scale: Normalize) -> None:
    axes.imshow(table.mean, cmap=_MAP, norm=scale, aspect="auto")
    size = _SMALL if len(table.across) <= 6 else 5
    for row, column in np.ndindex(table.mean.shape):
        mean, lost = table.mean[row, column], table.lost[row, column]
        told = [] if np.isnan(mean) else [f"{mean:.3f}"]
        if table.count[row, column] > 1:
            told.append(f"({table.best[row, column]:.3f})")
        if lost:
            told.append(f"{lost} lost")
        axes.text(
            column,
            row,
            "\n".join(told),
            ha="center",
            va="center",
            fontsize=size,
            color="black" if np.isnan(mean) or scale(mean) > 0.6 else "white",
        )
    for axis, field, values in (
        (axes.xaxis, table.second, table.across),
        (axes.yaxis, table.first, table.down),
    ):
        written = [labels.text(value) for value in values]
        axis.set_ticks(range(len(values)), written, fontsize=_SMALL)
        axis.set_label_text(names.get(field, ""), fontsize=8)
    if max(len(labels.text(value)) for value in table.across) * len(table.across) > 45:
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_facecolor("0.9")  # of cells without a finished trial
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def parallel(records: Records, path: Path) -> None:
    """Each trial as a line through its values, coloured by validation accuracy.

    Trials with the same value pass it side by side, the better ones above.

    Args:
      path: of the PNG, replaced in one step.
    """
    names = labels.telling(records)
    done = selection.best_first(records)[::-1]  # the best one is drawn last
    lost = [trial for trial in records if trial["status"] != FINISHED]
    values = np.array([selection.accuracy(trial) for trial in done])
    scale = _scale(values)
    figure = new_figure(3.9, WIDTH)
    axes = figure.add_subplot()
    trials = [*lost, *done]
    places = [
        _column(axes, k, trials, field, labels.levels(records, field))
        for k, field in enumerate(names)
    ]
    ends = [_LOST] * len(lost) + [float(scale(value)) for value in values]
    lines = [_smooth(row) for row in np.array([*places, ends]).T]
    width = float(np.clip(80 / len(trials), 0.3, 0.9))
    axes.add_collection(
        LineCollection(
            lines,
            colors=["0.6"] * len(lost) + [_MAP(scale(value)) for value in values],
            linewidths=[width] * len(lost) + [1.4 * width] * len(done),
            linestyles=["--"] * len(lost) + ["-"] * len(done),
        )
    )
    title = "No trial finished"
    if done:
        axes.plot(*lines[-1].T, color=_BEST, lw=2.6)
        title = f"best (red): {labels.point(done[-1]['values'], names)}, {values[-1]:.3f}"
    axes.set_title(title, fontsize=9)
    _accuracy_axis(axes, len(names), scale, bool(done), len(lost))
    written = [*names.values(), "validation accuracy"]
    axes.set_xticks(range(len(written)), written, fontsize=8)
    axes.set_xlim(-0.25, len(names) + 0.3)
    axes.set_ylim(-0.2 if lost else -0.1, 1.08)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    save(figure, path)


def _column(axes: Axes, k: int, trials: Records, field: str, levels: Sequence[Any]) -> np.ndarray:
    """Draws the axis of a field; returns where each trial passes it, float [len(trials)]."""
    at = dict(zip(map(labels.text, levels), _spaced(levels), strict=True))
    axes.plot([k, k], [0, 1], color="0.75", lw=1, zorder=0)
    step = max(1, math.ceil(len(levels) / _TICKS))
    for value in levels[::step]:
        axes.annotate(
            labels.text(value),
            (k, at[labels.text(value)]),
            (-5, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=_SMALL,
            bbox=dict(boxstyle="square,pad=0.1", fc="white", ec="none", alpha=0.8),
            zorder=5,
        )
    texts = [labels.text(trial["values"].get(field)) for trial in trials]
    gap = 1 / max(1, len(levels) - 1)
    places = np.array([at.get(of, _LOST) for of in texts])
    for own in set(texts):
        same = np.flatnonzero([of == own for of in texts])
        places[same] += (
            np.linspace(-1, 1, len(same)) * min(0.06, 0.25 * gap) if len(same) > 1 else 0
        )
    return places


def _spaced(levels: Sequence[Any]) -> np.ndarray:
    """Places of values on an axis from 0 to 1: by size, magnitude, or evenly for words."""
    if len(levels) == 1:
        return np.array([0.5])
    if not all(map(labels.is_number, levels)):
        return np.linspace(1, 0, len(levels))
    numbers = np.asarray(levels, float)
    if numbers.min() > 0 and numbers.max() / numbers.min() >= 8:
        numbers = np.log(numbers)
    return (numbers - numbers.min()) / np.ptp(numbers)


def _smooth(places: np.ndarray) -> np.ndarray:
    """A line through one place on each axis that is level at the axes: float [points, 2]."""
    if len(places) == 1:
        return np.array([[-0.1, places[0]], [0.1, places[0]]])
    t = np.linspace(0, 1, 21)
    ease = t * t * (3 - 2 * t)
    parts = [
        np.column_stack([k + t, before + (after - before) * ease])
        for k, (before, after) in enumerate(itertools.pairwise(places))
    ]
    return np.concatenate(parts)


def _accuracy_axis(axes: Axes, k: int, scale: Normalize, any_done: bool, lost: int) -> None:
    axes.plot([k, k], [0, 1], color="0.75", lw=1, zorder=0)
    ticks = MaxNLocator(6).tick_values(float(scale.vmin or 0), float(scale.vmax or 1))
    written = [(float(scale(t)), f"{t:g}") for t in ticks if any_done and 0 <= scale(t) <= 1]
    if lost:
        written.append((_LOST, f"lost: {lost}"))
    for place, label in written:
        axes.annotate(
            label, (k, place), (5, 0), textcoords="offset points", va="center", fontsize=_SMALL
        )


def _strongest(records: Records, most: int) -> list[str]:
    """The fields that vary, in the grid's order; of too many those that change the mean most."""
    fields = labels.varied(records) or labels.fields(records)[:1]
    if len(fields) <= most:
        return fields
    reach = {field: np.ptp(_Table(records, "", field).mean[0]) for field in fields}
    # NaN where a value lost all its trials: nothing changes more.
    kept = sorted(fields, key=lambda field: -np.nan_to_num(reach[field], nan=np.inf))[:most]
    return [field for field in fields if field in kept]


def _has(trial: Mapping[str, Any], field: str, value: Any) -> bool:
    return not field or labels.text(trial["values"].get(field)) == labels.text(value)


def _scale(values: np.ndarray) -> Normalize:
    """From the least to the greatest known value, at least a point wide."""
    known = values[~np.isnan(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if high - low < 0.01:
        low, high = (low + high) / 2 - 0.005, (low + high) / 2 + 0.005
    return Normalize(float(low), float(high))
