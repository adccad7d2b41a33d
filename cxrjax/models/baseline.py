"""The baseline CNN of report B: blocks of convolution, ReLU and max-pool, trained from scratch."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from cxrjax.models.layers import BatchNorm, Conv, max_pool

_WIDTHS = (1, 2, 4, 4)  # of `filters`; the report gives the base width only


class Baseline(nnx.Module):
    """Four 3x3 convolutions of width f, 2f, 4f, 4f, each followed by batch norm and ReLU.

    The first three end in a 2x2 max-pool. It stands before the batch norm, on a quarter of the
    elements; the report does not mention batch norm, but without it plain SGD hardly moves.
    """

    layers: tuple[str, ...] = (
        "input_layer",
        *("conv1", "pool1", "bn1", "relu1"),
        *("conv2", "pool2", "bn2", "relu2"),
        *("conv3", "pool3", "bn3", "relu3"),
        *("conv4", "bn4", "relu4"),
    )

    def __init__(self, rng: np.random.Generator, *, channels: int = 1, filters: int = 32):
        self.features = filters * _WIDTHS[-1]
        n_in = channels
        for block, width in enumerate(_WIDTHS, start=1):
            n_out = filters * width
            setattr(self, f"conv{block}", Conv(rng, (3, 3, n_in, n_out)))
            setattr(self, f"bn{block}", BatchNorm(n_out, momentum=0.9))
            n_in = n_out

    def stages(
        self,
        x: jax.Array,
        *,
        train_layers: frozenset[str] = frozenset(),
    ) -> dict[str, jax.Array]:
        """Output of every block by the name of its last layer, in order; the last are the features.

        Args:
          x: float [B, H, W, channels], normalised; sides of 8 pixels or more.
          train_layers: batch-norm layers named here use, and move, batch statistics.
        Returns:
          "relu1" [B, H/2, W/2, f], ... "relu4" [B, H/8, W/8, 4f].
        """
        maps = {}
        for block in range(1, len(_WIDTHS) + 1):
            x = getattr(self, f"conv{block}")(x)
            if block < len(_WIDTHS):
                x = max_pool(x)
            name = f"bn{block}"
            x = getattr(self, name)(x, train=name in train_layers)
            maps[f"relu{block}"] = x = jax.nn.relu(x)
        return maps
