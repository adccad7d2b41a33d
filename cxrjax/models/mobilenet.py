"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381), layer for layer keras.applications'."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.batch_norm import RELU6
from cxrjax.models.grid import Window
from cxrjax.models.layers import DepthwiseConv, Grey

_STEM, _LAST, _EXPANSION = 32, 1280, 6
# Output channels and stride of each block; the first does not expand.
_BLOCKS = (
    *((16, 1), (24, 2), (24, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1), (64, 1)),
    *((96, 1), (96, 1), (96, 1), (160, 2), (160, 1), (160, 1), (320, 1)),
)


def _blocks() -> Iterator[tuple[str, int, int, int]]:
    """(prefix, channels in, channels out, stride) of every block, in order."""
    n_in = _STEM
    for i, (n_out, stride) in enumerate(_BLOCKS):
        yield f"block_{i}" if i else "expanded_conv", n_in, n_out, stride
        n_in = n_out


def _layer_names() -> tuple[str, ...]:
    names = ["input_layer", "Conv1", "bn_Conv1", "Conv1_relu"]
    for name, n_in, n_out, stride in _blocks():
        parts = [] if name == "expanded_conv" else ["expand", "expand_BN", "expand_relu"]
        parts += ["pad"] if stride == 2 else []
        parts += ["depthwise", "depthwise_BN", "depthwise_relu", "project", "project_BN"]
        parts += ["add"] if n_in == n_out and stride == 1 else []
        names += [f"{name}_{part}" for part in parts]
    return (*names, "Conv_1", "Conv_1_bn", "out_relu")


class MobileNetV2(Backbone):
    """Without top, width 1.0: 2,257,984 parameters, 154 layers, 1280 maps at 1/32 of the sides.

    Stages: "Conv1_relu", "expanded_conv_project_BN", "block_1_project_BN", "block_2_add", ...,
    "out_relu".
    """

    layers: tuple[str, ...] = _layer_names()

    def __init__(self, rng: np.random.Generator, *, channels: int = 3, convention: str = "keras"):
        torch = convention == "torch"
        super().__init__(1e-5 if torch else 1e-3, 0.9 if torch else 0.999)
        # At stride 2 TensorFlow pads as little as it can, behind first; PyTorch both sides alike.
        halving = ((1, 1), (1, 1)) if torch else "SAME"
        self._conv(rng, "Conv1", (3, 3, channels, _STEM), stride=2, padding=halving)
        self._bn("bn_Conv1", _STEM, after="Conv1")
        for name, n_in, n_out, stride in _blocks():
            n = n_in
            if name != "expanded_conv":
                n = _EXPANSION * n_in
                self._conv(rng, f"{name}_expand", (1, 1, n_in, n))
                self._bn(f"{name}_expand_BN", n, after=f"{name}_expand")
            padding = halving if stride == 2 else "SAME"
            layer = DepthwiseConv(rng, 3, n, stride=stride, padding=padding)
            setattr(self, f"{name}_depthwise", layer)
            self._bn(f"{name}_depthwise_BN", n, after=f"{name}_depthwise")
            self._conv(rng, f"{name}_project", (1, 1, n, n_out))
            self._bn(f"{name}_project_BN", n_out, after=f"{name}_project")
        self._conv(rng, "Conv_1", (1, 1, _BLOCKS[-1][0], _LAST))
        self._bn("Conv_1_bn", _LAST, after="Conv_1")
        self.features = _LAST

    def chain(self) -> Iterator[tuple[str, Stage]]:
        yield "Conv1_relu", lambda x, train: self._unit(x, "Conv1", "bn_Conv1", train)
        for name, n_in, n_out, stride in _blocks():
            adds = n_in == n_out and stride == 1
            last = "add" if adds else "project_BN"
            yield f"{name}_{last}", functools.partial(self._block, name, adds)
        yield "out_relu", lambda x, train: self._unit(x, "Conv_1", "Conv_1_bn", train)

    def windows(self, stage: str) -> tuple[Window, ...]:
        if stage == "out_relu":
            return ()
        block = stage.removesuffix("_add").removesuffix("_project_BN")
        return (self._window("Conv1" if stage == "Conv1_relu" else f"{block}_depthwise"),)

    def _unit(self, x: jax.Array | Grey, conv: str, bn: str, train: TrainLayers) -> jax.Array:
        return self._norm(getattr(self, conv)(x), bn, train, RELU6)

    def _block(self, name: str, adds: bool, x: jax.Array, train: TrainLayers) -> jax.Array:
        y = x
        if name != "expanded_conv":
            y = self._unit(y, f"{name}_expand", f"{name}_expand_BN", train)
        y = self._unit(y, f"{name}_depthwise", f"{name}_depthwise_BN", train)
        y = self._norm(getattr(self, f"{name}_project")(y), f"{name}_project_BN", train)
        return x + y if adds else y
