"""The look all figures share: size, colours, intervals, and a PNG replaced in one step."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrjax import log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
SMALL = 8  # points: labels of axes
WIDTH = 7.2  # inches: a page's text width
_DOTS = 160  # per inch
_LEGEND = 7  # points
_MARK, _GAP = 0.3, 0.25  # inches: a legend's line before each name, and between its columns


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches, of matplotlib's object interface.

    pyplot would keep every figure alive and may want a display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Replaces `path` by a PNG, in one step."""
    import matplotlib
    from matplotlib.axis import Axis
    from matplotlib.text import Text

    # Ticks have their labels from their axis, which writes them anew each time.
    for axis in figure.findobj(Axis):
        labels = [label.get_text() for label in axis.get_ticklabels()]  # type: ignore[attr-defined]
        if (shown := [_printable(label) for label in labels]) != labels:
            axis.set_ticklabels(shown)  # type: ignore[attr-defined]
    # A dollar in the name of a class, a run or a film is no formula, which need not be one at all.
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # type: ignore[attr-defined]
        text.set_text(_printable(text.get_text()))  # type: ignore[attr-defined]
    with matplotlib.rc_context({"text.parse_math": False}), log.replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=_DOTS)


def _printable(name: str) -> str:
    """A name as it can be drawn: bytes that are no UTF-8 as `\\udced`."""
    return name.encode("utf-8", "backslashreplace").decode()


def wrapped(name: str, room: float, size: float, weight: str = "normal", lines: int = 3) -> str:
    """A name in the lines that it takes to be no wider than its place; what is too long is cut.

    Args:
      name: of a class, say; underscores are shown as spaces.
      room: inches.
      size: of the letters, points.
      lines: at most.
    """
    found = [""]
    for word in name.replace("_", " ").split():
        longer = f"{found[-1]} {word}".strip()
        if not found[-1] or _width(longer, size, weight) <= room:
            found[-1] = longer
        else:
            found.append(word)
    if len(found) > lines:
        found[lines - 1 :] = [" ".join(found[lines - 1 :])]
    return "\n".join(cut(line, room, size, weight) for line in found)


def cut(line: str, room: float, size: float, weight: str = "normal") -> str:
    """A line as it is drawn, without its end where that would be wider than `room`, inches."""
    line = shown = _printable(line)
    while len(line) > 1 and _width(shown, size, weight) > room:
        line = line[:-1]
        shown = f"{line}…"
    return shown


@functools.cache
def _renderer() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(1, 1, _DOTS)


def _width(line: str, size: float, weight: str = "normal") -> float:
    """Of a line of text, inches."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=size, weight=weight)
    return _renderer().get_text_width_height_descent(_printable(line), font, False)[0] / _DOTS


def legend_below(axes: Axes, room: float, spare: int = 0) -> None:
    """A legend below the axes, where no curve can run through it; the figure grows by its rows.

    Names stand in two columns where they are short enough for that.

    Args:
      room: how wide it may be, inches.
      spare: rows for which the figure is high enough.
    """
    handles, names = axes.get_legend_handles_labels()
    first = -(-len(names) // 2)
    widest = [
        max((_width(name, _LEGEND) for name in half), default=0)
        for half in (names[:first], names[first:])
    ]
    columns = 2 if sum(widest) + 2 * _MARK + _GAP <= room else 1
    if columns == 1:
        names = [wrapped(name, room - _MARK, _LEGEND, lines=2) for name in names]
    rows = first if columns == 2 else sum(1 + name.count("\n") for name in names)
    figure: Any = axes.figure
    figure.set_figheight(figure.get_figheight() + 0.15 * max(0, rows - spare))
    axes.legend(
        handles,
        names,
        fontsize=_LEGEND,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=columns,
    )


def interval_band(
    axes: Axes, x: Sequence[float], entries: Sequence[Mapping], label: str, style: dict[str, Any]
) -> None:
    """A line of figures over `x`, their intervals as a band around it."""
    value, low, high = (
        [np.nan if entry[key] is None else entry[key] for entry in entries]
        for key in ("value", "low", "high")
    )
    axes.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
    axes.plot(x, value, label=label, **style)


def interval_rows(
    axes: Axes, entries: Mapping[str, Mapping], k: int = 0, label: str = "", shift: float = 0.0
) -> None:
    """One figure a row, its interval as a bar."""
    value, reaching = reach(list(entries.values()))
    places = len(entries) - 1 - np.arange(len(entries))
    axes.errorbar(
        value,
        places + shift,
        xerr=reaching,
        color=COLOURS[k % len(COLOURS)],
        marker=MARKERS[k % len(MARKERS)],
        ms=3.5,
        lw=0,
        elinewidth=1.1,
        label=label or None,
    )
    axes.set_yticks(places, [name.replace("_", " ") for name in entries], fontsize=SMALL)
    axes.set_ylim(-0.6, len(entries) - 0.4)


def reach(entries: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Values [n] and how far their intervals reach down and up [2, n]; NaN where undefined.

    The interval of a figure such as the ECE may leave its value out: it reaches 0 to that side.
    """
    value, low, high = (
        np.array([np.nan if entry[key] is None else entry[key] for entry in entries], float)
        for key in ("value", "low", "high")
    )
    return value, np.maximum(np.stack([value - low, high - value]), 0)


def dress(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Title, labels and a legend where there is something to tell apart, in one size."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=SMALL)
    axes.set_ylabel(y, fontsize=SMALL)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False)
