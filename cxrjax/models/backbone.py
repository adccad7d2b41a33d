"""What all backbones share: layers by name, running from one stage to another, folding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxrjax.models.batch_norm import LINEAR, RELU
from cxrjax.models.grid import Grid, Window, pixels
from cxrjax.models.layers import BatchNorm, Conv, DepthwiseConv, Grey, Identity

TrainLayers = frozenset[str]  # batch-norm layers that use, and move, the statistics of the batch
Stage = Callable[[Any, TrainLayers], jax.Array]  # the first takes images, maybe `Grey`
NONE: TrainLayers = frozenset()


class Backbone(nnx.Module):
    """A network without top as a chain of stages, each an array to an array.

    Between two stages nothing but that one array is alive, so a network can be cut there: what lies
    before a cut and is frozen is a pure function of the image.

    A subclass sets `layers`, `features` and the layers themselves as attributes of their names.
    """

    if TYPE_CHECKING:  # layers are attributes whose names are put together at run time

        def __getattr__(self, name: str) -> Any: ...

    layers: tuple[str, ...] = ()  # Keras' names in the order of `model.layers`, all of them
    features: int  # channels of the last stage

    def __init__(self, epsilon: float, momentum: float):
        self._epsilon, self._momentum = epsilon, momentum
        self.foldable: tuple[tuple[str, str], ...] = ()  # (convolution, batch norm right behind it)

    def chain(self) -> Iterator[tuple[str, Stage]]:
        """The stages in order, each under the name of its last layer; the last are the features."""
        raise NotImplementedError

    def windows(self, stage: str) -> tuple[Window, ...]:
        """Windows on one way through a stage, in order; whatever way, cells end in the same places.

        Layers that leave every cell where it is (odd windows, stride 1, "SAME") may be left out.
        """
        raise NotImplementedError

    def grids(self, side: int) -> dict[str, Grid]:
        """Where the cells of every stage lie on square images of that many pixels a side."""
        found, grid = {}, pixels(side)
        for name, _ in self.chain():
            found[name] = grid = functools.reduce(Grid.through, self.windows(name), grid)
        return found

    def stages(
        self, x: jax.Array | Grey, *, train_layers: TrainLayers = NONE, after: str | None = None
    ) -> dict[str, jax.Array]:
        """Output of every stage by the name of its last layer, in order; the last are the features.

        Args:
          x: float [B, H, W, channels], normalised, or `Grey`; sides of the registry's
            `smallest` or more. With `after`, the output of that stage.
          train_layers: batch-norm layers named here use, and move, batch statistics.
          after: run only the stages behind this one.
        """
        maps: dict[str, Any] = {}
        waiting = after is not None
        for name, stage in self.chain():
            if not waiting:
                maps[name] = x = stage(x, train_layers)
            elif name == after:
                waiting = False
        if waiting:
            raise ValueError(f"there is no stage {after!r}")
        return maps

    def _norm(
        self, x: jax.Array, name: str, train: TrainLayers, activation: str = LINEAR
    ) -> jax.Array:
        return getattr(self, name)(x, train=name in train, activation=activation)

    def _norm_relu(self, x: jax.Array, name: str, train: TrainLayers) -> jax.Array:
        return self._norm(x, name, train, RELU)

    def _window(self, name: str) -> Window:
        layer: Conv | DepthwiseConv = getattr(self, name)
        return Window(layer.kernel.shape[0], layer.stride, layer.padding)

    def _conv(self, rng: np.random.Generator, name: str, shape: tuple, **options: Any) -> None:
        setattr(self, name, Conv(rng, shape, **options))

    def _bn(self, name: str, n: int, after: str | None = None, **options: Any) -> None:
        """Adds a batch norm; `after` names the convolution whose output it alone reads."""
        bn = BatchNorm(n, epsilon=self._epsilon, momentum=self._momentum, **options)
        setattr(self, name, bn)
        if after is not None:
            self.foldable += ((after, name),)


def fold(backbone: Backbone, keep: TrainLayers = NONE) -> None:
    """Merges every batch norm that follows a convolution into it, in place, for inference.

    conv(x) * factor + shift is a convolution with the kernel * factor and the bias shift (Jacob et
    al. 2018, arXiv 1712.05877, section 3.2). A batch norm before a ReLU before a convolution, as in
    pre-activation networks, has no such form and stays.

    Args:
      keep: layers left as they are, because they are trained.
    """
    for conv_name, bn_name in backbone.foldable:
        if conv_name in keep or bn_name in keep:
            continue
        conv: Conv | DepthwiseConv = getattr(backbone, conv_name)
        bn: BatchNorm = getattr(backbone, bn_name)
        factor = bn.factor()
        bias = conv.bias[...] if conv.use_bias else jnp.zeros_like(bn.bias[...])
        # A depthwise kernel [h, w, C, 1] has its output channels on the third axis.
        along = (1, 1, -1, 1) if isinstance(conv, DepthwiseConv) else (1, 1, 1, -1)
        conv.kernel = nnx.Param(conv.kernel[...] * factor.reshape(along))
        conv.bias = nnx.Param(bn.bias[...] + (bias - bn.mean[...]) * factor)
        conv.use_bias = True
        setattr(backbone, bn_name, Identity())
    backbone.foldable = tuple(
        pair for pair in backbone.foldable if not isinstance(getattr(backbone, pair[1]), Identity)
    )
