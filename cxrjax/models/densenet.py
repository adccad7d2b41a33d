"""DenseNet121 (Huang et al. 2017, arXiv 1608.06993), layer for layer that of keras.applications."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.layers import Grey
from cxrjax.models.lowering import average_pool, max_pool, zero_pad

_BLOCKS = (6, 12, 24, 16)
_GROWTH, _STEM = 32, 64


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


class DenseNet121(Backbone):
    """Without top: 7,037,504 parameters, 427 layers, 1024 maps at 1/32 of the input's sides.

    Stages: "conv1_relu", "pool1", "conv2_block1_concat", ..., "pool2_pool", ..., "relu".
    """

    layers: tuple[str, ...] = _layer_names()

    def __init__(self, rng: np.random.Generator, *, channels: int = 3, convention: str = "keras"):
        torch = convention == "torch"
        super().__init__(1e-5 if torch else 1.001e-5, 0.9 if torch else 0.99)
        padding = ((3, 3), (3, 3))
        self._conv(rng, "conv1_conv", (7, 7, channels, _STEM), stride=2, padding=padding)
        self._bn("conv1_bn", _STEM, after="conv1_conv")
        n = _STEM
        for stage, count in enumerate(_BLOCKS, start=2):
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                self._bn(f"{name}_0_bn", n)
                self._conv(rng, f"{name}_1_conv", (1, 1, n, 4 * _GROWTH))
                self._bn(f"{name}_1_bn", 4 * _GROWTH, after=f"{name}_1_conv")
                self._conv(rng, f"{name}_2_conv", (3, 3, 4 * _GROWTH, _GROWTH))
                n += _GROWTH
            if stage < len(_BLOCKS) + 1:
                self._bn(f"pool{stage}_bn", n)
                self._conv(rng, f"pool{stage}_conv", (1, 1, n, n // 2))
                n //= 2
        self._bn("bn", n)
        self.features = n

    def chain(self) -> Iterator[tuple[str, Stage]]:
        yield "conv1_relu", self._stem
        # Zeros pad as well as -inf would: the values before are not negative.
        yield "pool1", lambda x, train: max_pool(zero_pad(x, 1), 3, 2)
        for stage, count in enumerate(_BLOCKS, start=2):
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                yield f"{name}_concat", functools.partial(self._block, name)
            if stage < len(_BLOCKS) + 1:
                yield f"pool{stage}_pool", functools.partial(self._transition, f"pool{stage}")
        yield "relu", lambda x, train: self._norm_relu(x, "bn", train)

    def _stem(self, x: jax.Array | Grey, train: TrainLayers) -> jax.Array:
        return self._norm_relu(self.conv1_conv(x), "conv1_bn", train)

    def _block(self, name: str, x: jax.Array, train: TrainLayers) -> jax.Array:
        grown = getattr(self, f"{name}_1_conv")(self._norm_relu(x, f"{name}_0_bn", train))
        grown = getattr(self, f"{name}_2_conv")(self._norm_relu(grown, f"{name}_1_bn", train))
        return jnp.concatenate([x, grown], axis=-1)

    def _transition(self, name: str, x: jax.Array, train: TrainLayers) -> jax.Array:
        # Keras convolves, then pools; both are linear, and this order convolves a quarter.
        x = average_pool(self._norm_relu(x, f"{name}_bn", train))
        return getattr(self, f"{name}_conv")(x)
