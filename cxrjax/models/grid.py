"""Where on the image the cells of a network's maps look: the centres of their receptive fields."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

from cxrjax.models.lowering import Padding


class Window(NamedTuple):
    """What one cell of a layer's output reads along either axis of its input."""

    size: int
    stride: int
    padding: Padding = "VALID"


class Grid(NamedTuple):
    """Cells of square maps on a square image, alike along both axes.

    Cell i is centred at pixel `offset + stride * i`, the centre of the first pixel being 0.
    """

    offset: float  # pixels
    stride: int  # pixels
    cells: int  # along a side
    side: int  # of the image, pixels

    def through(self, window: Window) -> Grid:
        """The cells behind a layer, each in the middle of its window.

        Araujo et al. 2019 (doi 10.23915/distill.00021), the recursion of centres.
        """
        size, stride, padding = window
        if isinstance(padding, str):
            padding = lax.padtype_to_pads((self.cells,), (size,), (stride,), padding)
        before, after = padding[0]
        return Grid(
            self.offset + self.stride * ((size - 1) / 2 - before),
            self.stride * stride,
            (self.cells + before + after - size) // stride + 1,
            self.side,
        )


def pixels(side: int) -> Grid:
    """The pixels of an image, each a cell."""
    return Grid(0.0, 1, side, side)
