"""DenseNet121 (Huang et al. 2017, arXiv 1608.06993), layer for layer that of keras.applications."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxrjax.models.layers import BatchNorm, Conv, average_pool, max_pool, zero_pad

_BLOCKS = (6, 12, 24, 16)
_GROWTH, _STEM = 32, 64
_EPSILON = 1.001e-5


def _layer_names() -> tuple[str, ...]:
    """Keras' names in the order of `model.layers`, the layers without parameters included."""
    names = ["input_layer", "zero_padding2d", "conv1_conv", "conv1_bn", "conv1_relu"]
    names += ["zero_padding2d_1", "pool1"]
    parts = ("0_bn", "0_relu", "1_conv", "1_bn", "1_relu", "2_conv", "concat")
    for stage, count in enumerate(_BLOCKS, start=2):
        for block in range(1, count + 1):
            names += [f"conv{stage}_block{block}_{part}" for part in parts]
        if stage < len(_BLOCKS) + 1:
            names += [f"pool{stage}_{part}" for part in ("bn", "relu", "conv", "pool")]
    return (*names, "bn", "relu")


class DenseNet121(nnx.Module):
    """Without top: 7,037,504 parameters, 427 layers, 1024 maps at 1/32 of the input's sides."""

    layers: tuple[str, ...] = _layer_names()

    def __init__(self, rng: np.random.Generator, *, channels: int = 3):
        self.conv1_conv = Conv(rng, (7, 7, channels, _STEM), stride=2, padding="VALID")
        self._bn("conv1_bn", _STEM)
        n = _STEM
        for stage, count in enumerate(_BLOCKS, start=2):
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                self._bn(f"{name}_0_bn", n)
                self._conv(rng, f"{name}_1_conv", (1, 1, n, 4 * _GROWTH))
                self._bn(f"{name}_1_bn", 4 * _GROWTH)
                self._conv(rng, f"{name}_2_conv", (3, 3, 4 * _GROWTH, _GROWTH))
                n += _GROWTH
            if stage < len(_BLOCKS) + 1:
                self._bn(f"pool{stage}_bn", n)
                self._conv(rng, f"pool{stage}_conv", (1, 1, n, n // 2))
                n //= 2
        self._bn("bn", n)
        self.features = n

    def stages(
        self,
        x: jax.Array,
        *,
        train_layers: frozenset[str] = frozenset(),
    ) -> dict[str, jax.Array]:
        """Output of stem, dense blocks and transitions by Keras layer name, in order.

        Args:
          x: float [B, H, W, 3], normalised by the `torch` convention; sides of 32 pixels or more.
          train_layers: batch-norm layers named here use, and move, batch statistics.
        Returns:
          "conv1_relu", "pool1", "conv2_block1_concat", ..., "pool2_pool", ..., and last the
          features, "relu" [B, H/32, W/32, 1024].
        """

        def normalised(name: str, x: jax.Array) -> jax.Array:
            return jax.nn.relu(getattr(self, name)(x, train=name in train_layers))

        maps = {}
        x = self.conv1_conv(zero_pad(x, 3))
        maps["conv1_relu"] = x = normalised("conv1_bn", x)
        # Zeros pad as well as -inf would: the values before are not negative.
        maps["pool1"] = x = max_pool(zero_pad(x, 1), 3, 2)
        for stage, count in enumerate(_BLOCKS, start=2):
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                grown = getattr(self, f"{name}_1_conv")(normalised(f"{name}_0_bn", x))
                grown = getattr(self, f"{name}_2_conv")(normalised(f"{name}_1_bn", grown))
                maps[f"{name}_concat"] = x = jnp.concatenate([x, grown], axis=-1)
            if stage < len(_BLOCKS) + 1:
                x = getattr(self, f"pool{stage}_conv")(normalised(f"pool{stage}_bn", x))
                maps[f"pool{stage}_pool"] = x = average_pool(x)
        maps["relu"] = normalised("bn", x)
        return maps

    def _conv(self, rng: np.random.Generator, name: str, shape: tuple) -> None:
        setattr(self, name, Conv(rng, shape))

    def _bn(self, name: str, n: int) -> None:
        setattr(self, name, BatchNorm(n, epsilon=_EPSILON))
