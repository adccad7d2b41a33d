"""The baseline CNN of report B: blocks of convolution, ReLU and max-pool, trained from scratch."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.grid import Window
from cxrjax.models.layers import Grey
from cxrjax.models.lowering import max_pool

_WIDTHS = (1, 2, 4, 4)  # of `filters`; the report gives the base width only


class Baseline(Backbone):
    """Four 3x3 convolutions of width f, 2f, 4f, 4f, each followed by batch norm and ReLU.

    The first three end in a 2x2 max-pool. It stands before the batch norm, on a quarter of the
    elements; the report does not mention batch norm, but without it plain SGD hardly moves.
    Stages: "relu1", ..., "relu4", the last at 1/8 of the input's sides.
    """

    layers: tuple[str, ...] = (
        "input_layer",
        *("conv1", "pool1", "bn1", "relu1"),
        *("conv2", "pool2", "bn2", "relu2"),
        *("conv3", "pool3", "bn3", "relu3"),
        *("conv4", "bn4", "relu4"),
    )

    def __init__(self, rng: np.random.Generator, *, channels: int = 1, filters: int = 32):
        super().__init__(epsilon=1e-3, momentum=0.9)
        self.features = filters * _WIDTHS[-1]
        n_in = channels
        for block, width in enumerate(_WIDTHS, start=1):
            n_out = filters * width
            self._conv(rng, f"conv{block}", (3, 3, n_in, n_out))
            # A max-pool lies between: it commutes with no batch norm whose scale may be negative.
            self._bn(f"bn{block}", n_out, after="conv4" if block == len(_WIDTHS) else None)
            n_in = n_out

    def chain(self) -> Iterator[tuple[str, Stage]]:
        for block in range(1, len(_WIDTHS) + 1):
            yield f"relu{block}", functools.partial(self._block, block)

    def windows(self, stage: str) -> tuple[Window, ...]:
        conv, pool = self._window(stage.replace("relu", "conv")), Window(2, 2)
        return (conv,) if stage == f"relu{len(_WIDTHS)}" else (conv, pool)

    def _block(self, block: int, x: jax.Array | Grey, train: TrainLayers) -> jax.Array:
        y = getattr(self, f"conv{block}")(x)
        if block < len(_WIDTHS):
            y = max_pool(y)
        return self._norm_relu(y, f"bn{block}", train)
