"""The look all figures share: size, colours, and a PNG that is replaced in one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cxrjax import log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
WIDTH = 7.2  # inches: a page's text width
_DOTS = 160  # per inch


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
    with log.replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=_DOTS)
