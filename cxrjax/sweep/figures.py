"""Figures of a sweep: every trial's accuracy and learning curves; landscape.py has the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxrjax.plotting import COLOURS, new_figure, save
from cxrjax.sweep import labels, landscape, selection
from cxrjax.sweep.trials import FINISHED, Records

_CURVES = 10  # trials with learning curves
_NAMED = 60  # trials in one figure that have a line of text each
_SMALL = 7
_WINNER = COLOURS[1]
_LINES = COLOURS[:7]  # yellow is too pale for lines


def draw(
    records: Records,
    arrays: Callable[[str], Mapping[str, np.ndarray]],
    grid: Mapping[str, Sequence[Any]],
    folder: Path,
) -> None:
    """Writes grid.png, parallel.png, accuracy.png and curves.png.

    Args:
      records: of all trials, see `trials.Trials`; at least one.
      arrays: gives a key's arrays.
      grid: the values of each field, in the order to show them in.
      folder: made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {f: {labels.text(v): k for k, v in enumerate(grid[f])} for f in grid}
    records = sorted(
        records,
        key=lambda trial: [
            places[field].get(labels.text(trial["values"].get(field)), -1) for field in grid
        ],
    )
    landscape.heat_maps(records, folder / "grid.png")
    landscape.parallel(records, folder / "parallel.png")
    accuracies(records, folder / "accuracy.png")
    best = selection.best_first(records)[:_CURVES]
    histories = [arrays(trial["key"])["history"] for trial in best]
    curves(best, histories, labels.telling(records), path=folder / "curves.png")


def accuracies(records: Records, path: Path) -> None:
    """Validation accuracy of every trial with its 95 % interval, the best above, lost ones below.

    Args:
      path: of the PNG, replaced in one step.
    """
    ranked = selection.ranking(records)
    done = selection.best_first(records)
    lost = [trial for trial in records if trial["status"] != FINISHED]
    trials = [*done, *lost]
    named = len(trials) <= _NAMED
    figure = new_figure(min(10.0, 1.3 + 0.16 * len(trials)))
    axes = figure.add_subplot()
    if ranked:
        top = ranked[0]
        axes.axvspan(
            top["accuracy"]["low"], top["accuracy"]["high"], color=_WINNER, alpha=0.12, lw=0
        )
        for part, colour, at in (
            ([t for t in done if t["key"] not in top["keys"]], COLOURS[0], 1.0),
            ([t for t in done if t["key"] in top["keys"]], _WINNER, 1.8),
        ):
            _intervals(
                axes, [(trials.index(t), t["validation"]["accuracy"]) for t in part], colour, at
            )
        value, low, high = (top["accuracy"][part] for part in ("value", "low", "high"))
        figure.suptitle(
            f"Winner (red): {labels.point(top['values'], labels.telling(records))}\n"
            f"accuracy {value:.3f} [{low:.3f}, {high:.3f}]",
            fontsize=9,
        )
    else:
        axes.set_xlim(0, 1)
        figure.suptitle("No trial finished", fontsize=9)
    for place, trial in enumerate(lost, len(done)):
        _lost(axes, place, trial["status"] if named else "")
    seeds = len({trial["seed"] for trial in records}) > 1
    if named:
        texts = [
            labels.point(t["values"], labels.telling(records), t["seed"] if seeds else None)
            for t in trials
        ]
        axes.set_yticks(range(len(trials)), texts, fontsize=6)
    else:
        axes.set_ylabel(f"{len(trials)} trials, {len(lost)} lost (grey)", fontsize=8)
        axes.set_yticks([])
    axes.set_ylim(len(trials) - 0.4, -0.6)
    n = f", n = {ranked[0]['accuracy']['n']:,}" if ranked else ""
    axes.set_xlabel(f"validation accuracy{n}; bars: 95 % intervals", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.9", lw=0.6)
    save(figure, path)


def _intervals(
    axes: Axes, rows: Sequence[tuple[int, Mapping[str, Any]]], colour: str, width: float
) -> None:
    if not rows:
        return
    places = [place for place, _ in rows]
    value, low, high = (np.array([of[part] for _, of in rows]) for part in ("value", "low", "high"))
    reach = np.maximum(np.stack([value - low, high - value]), 0)
    axes.errorbar(value, places, xerr=reach, color=colour, marker="o", ms=3, lw=0, elinewidth=width)


def _lost(axes: Axes, place: int, status: str) -> None:
    axes.axhspan(place - 0.5, place + 0.5, color="0.92", lw=0, zorder=0)
    axes.text(
        0.01,
        place,
        f"✗ {status.replace('_', ' ')}" if status else "",
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=6,
        color="0.3",
    )


def curves(
    trials: Records, histories: Sequence[np.ndarray], names: Mapping[str, str], path: Path
) -> None:
    """Validation loss and accuracy over epochs of some trials, the best epoch of each marked.

    Args:
      trials: finished ones, best first.
      histories: of each, float64 [epochs, 4]: train loss, train accuracy, validation loss and
        accuracy; losses in nats.
      names: dotted field to short name, of the fields to be told.
      path: of the PNG, replaced in one step.
    """
    figure = new_figure(3.3 + 0.14 * len(trials))
    loss, accuracy = figure.subplots(1, 2)
    seeds = len({trial["seed"] for trial in trials}) > 1
    for k, (trial, history) in enumerate(zip(trials, histories, strict=True)):
        colour = _LINES[k % len(_LINES)]
        style = dict(color=colour, ls=("-", "--")[k // len(_LINES) % 2], lw=2.2 if k == 0 else 1.1)
        seed = trial["seed"] if seeds else None
        label = f"{selection.accuracy(trial):.3f}  {labels.point(trial['values'], names, seed)}"
        epochs, best = np.arange(1, len(history) + 1), trial["best_epoch"]
        for axes, column in ((loss, 2), (accuracy, 3)):
            axes.plot(epochs, history[:, column], zorder=3 - 0.1 * k, label=label, **style)
            at = history[best - 1, column]
            axes.plot([best], [at], marker="o", ms=4.5, color=colour, mec="white", zorder=4)
    for axes, title, unit in (
        (loss, "Validation loss", "cross-entropy (nats)"),
        (accuracy, "Validation accuracy", "share correct"),
    ):
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
    if trials:
        losses = np.concatenate([history[:, 2] for history in histories])
        loss.set_ylim(0, 1.1 * float(np.nanpercentile(losses, 98)))
        handles, texts = loss.get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", fontsize=_SMALL, frameon=False)
    count = {0: "No trial finished", 1: "The best trial; dots: best epoch"}
    told = count.get(len(trials), f"The {len(trials)} best trials; dots: best epochs")
    figure.suptitle(told, fontsize=9)
    save(figure, path)
