"""ResNet50V2 (He et al. 2016, arXiv 1603.05027), layer for layer that of keras.applications."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.grid import Window
from cxrjax.models.layers import Grey
from cxrjax.models.lowering import max_pool, zero_pad

_BLOCKS, _WIDTHS = (3, 4, 6, 3), (64, 128, 256, 512)
_SUBSAMPLED = 2, 3, 4  # stages whose last block halves the sides
_STEM = 64


def _blocks() -> Iterator[tuple[str, int, int, bool]]:
    """(name, width, stride, whether the shortcut is a convolution) of every block, in order."""
    for stage, (count, width) in enumerate(zip(_BLOCKS, _WIDTHS, strict=True), start=2):
        for block in range(1, count + 1):
            stride = 2 if block == count and stage in _SUBSAMPLED else 1
            yield f"conv{stage}_block{block}", width, stride, block == 1


def _layer_names() -> tuple[str, ...]:
    names = ["input_layer", "conv1_pad", "conv1_conv", "pool1_pad", "pool1_pool"]
    parts = ("preact_bn", "preact_relu", "1_conv", "1_bn", "1_relu", "2_pad", "2_conv", "2_bn")
    pools = iter(("max_pooling2d", "max_pooling2d_1", "max_pooling2d_2"))
    for name, _, stride, projects in _blocks():
        names += [f"{name}_{part}" for part in (*parts, "2_relu")]
        names += [f"{name}_0_conv"] if projects else []
        names += [next(pools)] if stride > 1 else []
        names += [f"{name}_3_conv", f"{name}_out"]
    return (*names, "post_bn", "post_relu")


class ResNet50V2(Backbone):
    """Without top: 23,564,800 parameters, 190 layers, 2048 maps at 1/32 of the input's sides.

    Stages: "conv1_conv", "pool1_pool", "conv2_block1_out", ..., "conv5_block3_out", "post_relu".
    """

    layers: tuple[str, ...] = _layer_names()

    def __init__(self, rng: np.random.Generator, *, channels: int = 3):
        super().__init__(epsilon=1.001e-5, momentum=0.99)
        shape, padding = (7, 7, channels, _STEM), ((3, 3), (3, 3))
        self._conv(rng, "conv1_conv", shape, stride=2, padding=padding, use_bias=True)
        n = _STEM
        for name, width, stride, projects in _blocks():
            self._bn(f"{name}_preact_bn", n)
            if projects:
                self._conv(rng, f"{name}_0_conv", (1, 1, n, 4 * width), use_bias=True)
            self._conv(rng, f"{name}_1_conv", (1, 1, n, width))
            self._bn(f"{name}_1_bn", width, after=f"{name}_1_conv")
            shape, padding = (3, 3, width, width), ((1, 1), (1, 1))
            self._conv(rng, f"{name}_2_conv", shape, stride=stride, padding=padding)
            self._bn(f"{name}_2_bn", width, after=f"{name}_2_conv")
            n = 4 * width
            self._conv(rng, f"{name}_3_conv", (1, 1, width, n), use_bias=True)
        self._bn("post_bn", n)
        self.features = n

    def chain(self) -> Iterator[tuple[str, Stage]]:
        yield "conv1_conv", self._stem
        # Keras pads with zeros though the values may be negative.
        yield "pool1_pool", lambda x, train: max_pool(zero_pad(x, 1), 3, 2)
        for name, _, stride, projects in _blocks():
            yield f"{name}_out", functools.partial(self._block, name, stride, projects)
        yield "post_relu", lambda x, train: self._norm_relu(x, "post_bn", train)

    def windows(self, stage: str) -> tuple[Window, ...]:
        if stage == "pool1_pool":
            return (Window(3, 2, ((1, 1),)),)
        if stage == "post_relu":
            return ()
        return (self._window(stage.replace("_out", "_2_conv")),)

    def _stem(self, x: jax.Array | Grey, train: TrainLayers) -> jax.Array:
        return self.conv1_conv(x)

    def _block(
        self, name: str, stride: int, projects: bool, x: jax.Array, train: TrainLayers
    ) -> jax.Array:
        y = self._norm_relu(x, f"{name}_preact_bn", train)
        # Without a convolution: Keras' max-pool of size 1.
        shortcut = getattr(self, f"{name}_0_conv")(y) if projects else x[:, ::stride, ::stride]
        y = self._norm_relu(getattr(self, f"{name}_1_conv")(y), f"{name}_1_bn", train)
        y = self._norm_relu(getattr(self, f"{name}_2_conv")(y), f"{name}_2_bn", train)
        return shortcut + getattr(self, f"{name}_3_conv")(y)
