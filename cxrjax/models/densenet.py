"""DenseNet121 (Huang et al. 2017, arXiv 1608.06993), layer for layer that of keras.applications."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.batch_norm import RELU, Moments, moments
from cxrjax.models.grid import Window
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
            known = _GrowingMoments()
            for block in range(1, count + 1):
                name = f"conv{stage}_block{block}"
                yield f"{name}_concat", functools.partial(self._block, name, known)
            if stage < len(_BLOCKS) + 1:
                name = f"pool{stage}"
                yield f"{name}_pool", functools.partial(self._transition, name, known)
        yield "relu", lambda x, train: self._norm_grown(x, "bn", train, known)

    def windows(self, stage: str) -> tuple[Window, ...]:
        if stage == "conv1_relu":
            return (self._window("conv1_conv"),)
        if stage == "pool1":
            return (Window(3, 2, ((1, 1),)),)
        return (Window(2, 2),) if stage.endswith("_pool") else ()

    def _stem(self, x: jax.Array | Grey, train: TrainLayers) -> jax.Array:
        return self._norm_relu(self.conv1_conv(x), "conv1_bn", train)

    def _block(
        self, name: str, known: _GrowingMoments, x: jax.Array, train: TrainLayers
    ) -> jax.Array:
        grown = self._norm_grown(x, f"{name}_0_bn", train, known)
        grown = getattr(self, f"{name}_1_conv")(grown)
        grown = self._norm_relu(grown, f"{name}_1_bn", train)
        grown = getattr(self, f"{name}_2_conv")(grown)
        known.add(grown)
        return jnp.concatenate([x, grown], axis=-1)

    def _transition(
        self, name: str, known: _GrowingMoments, x: jax.Array, train: TrainLayers
    ) -> jax.Array:
        # Keras convolves, then pools; both are linear, and this order convolves a quarter.
        x = average_pool(self._norm_grown(x, f"{name}_bn", train, known))
        return getattr(self, f"{name}_conv")(x)

    def _norm_grown(
        self, x: jax.Array, name: str, train: TrainLayers, known: _GrowingMoments
    ) -> jax.Array:
        at_hand = known.of(x) if name in train else None
        return getattr(self, name)(x, train=name in train, activation=RELU, known=at_hand)


class _GrowingMoments:
    """Moments of a dense block's channels: each is computed once, though many layers read it."""

    def __init__(self) -> None:
        self._known: Moments | None = None
        self._new: list[jax.Array] = []

    def add(self, grown: jax.Array) -> None:
        """Notes maps that are appended to the block's."""
        self._new.append(grown)

    def of(self, x: jax.Array) -> Moments:
        """Moments of the maps so far, `x`."""
        known = moments(x) if self._known is None else self._known
        for grown in self._new if self._known is not None else ():
            parts = zip(known, moments(grown), strict=True)
            known = Moments(*(jnp.concatenate(pair) for pair in parts))
        self._known, self._new = known, []
        return known
