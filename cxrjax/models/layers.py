"""Convolution, dense layer, batch norm and dropout, with Keras' constants and initials.

Parameters are float32 and are cast to the dtype of the input, so the compute dtype is that of the
images; statistics of batch norm are computed in float32 whatever it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from cxrjax.models import batch_norm, lowering
from cxrjax.models.batch_norm import Moments, along


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["pixels"], meta_fields=["scale", "offset"]
)
@dataclass(frozen=True)
class Grey:
    """Grey images that stand for colour ones: channel c is pixels * scale[c] + offset[c].

    A convolution takes them as they are: summing its kernel over the channels first is the same
    function at 1/C of the work.
    """

    pixels: jax.Array  # float [B, H, W, 1]
    scale: tuple[float, ...]  # one factor for each of the C channels
    offset: tuple[float, ...]

    def colour(self) -> jax.Array:
        """float [B, H, W, C]."""
        scale, offset = (
            jnp.asarray(values, self.pixels.dtype)[None, None, None]
            for values in (self.scale, self.offset)
        )
        return self.pixels * scale + offset


def glorot_uniform(rng: np.random.Generator, shape: Sequence[int]) -> jax.Array:
    """Glorot & Bengio (2010), uniform, Keras' default: float32 of `shape` [..., in, out].

    Drawn by numpy: a hundred kernel shapes would each compile a JAX program of their own.
    """
    receptive = int(np.prod(shape[:-2]))
    limit = np.sqrt(6.0 / (receptive * (shape[-2] + shape[-1])))
    return jnp.asarray(rng.uniform(-limit, limit, shape).astype(np.float32))


def constant(n: int, value: float) -> jax.Array:
    """float32 [n], all `value`; by numpy for the same reason."""
    return jnp.asarray(np.full(n, value, np.float32))


class _Biased(nnx.Module):
    """A layer that may have, or be given, a bias."""

    bias: nnx.Param
    use_bias: bool

    def _with_bias(self, y: jax.Array) -> jax.Array:
        return y + along(self.bias[...].astype(y.dtype), y) if self.use_bias else y


class Conv(_Biased):
    """2-D convolution, NHWC, kernel [h, w, in, out]."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int, int],
        *,
        stride: int = 1,
        padding: lowering.Padding = "SAME",
        use_bias: bool = False,
    ):
        self.kernel = nnx.Param(glorot_uniform(rng, shape))
        if use_bias:
            self.bias = nnx.Param(constant(shape[-1], 0))
        self.use_bias = use_bias
        self.stride = stride
        self.padding = padding

    def __call__(self, x: jax.Array | Grey) -> jax.Array:
        """[B, H, W, in], or `Grey` with `in` channels -> [B, h, w, out], in the dtype of `x`."""
        kernel = self.kernel[...]
        y = self._grey(x, kernel) if isinstance(x, Grey) else self._convolve(x, kernel)
        return self._with_bias(y)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lowering.convolve(x, kernel.astype(x.dtype), self.stride, self.padding)

    def _grey(self, x: Grey, kernel: jax.Array) -> jax.Array:
        scale, offset = (
            jnp.asarray(values, jnp.float32)[None, None, :, None] for values in (x.scale, x.offset)
        )
        y = self._convolve(x.pixels, (kernel * scale).sum(2, keepdims=True))
        if any(x.offset):
            # Padding is zero in every channel, not the grey of the offset: hence a map of its own
            # (of one image), which differs at the border, and not just a number.
            plane = jnp.ones((1, *x.pixels.shape[1:]), x.pixels.dtype)
            y = lowering.apart(y) + self._convolve(plane, (kernel * offset).sum(2, keepdims=True))
        return y


class DepthwiseConv(_Biased):
    """Depthwise 2-D convolution, NHWC, kernel [h, w, channels, 1] as Keras stores it."""

    def __init__(
        self,
        rng: np.random.Generator,
        size: int,
        channels: int,
        *,
        stride: int = 1,
        padding: lowering.Padding = "SAME",
    ):
        self.kernel = nnx.Param(glorot_uniform(rng, (size, size, channels, 1)))
        self.use_bias = False
        self.stride = stride
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, h, w, C], in the dtype of `x`."""
        y = lowering.depthwise(x, self.kernel[...].astype(x.dtype), self.stride, self.padding)
        return self._with_bias(y)


class Dense(nnx.Module):
    """Linear layer, kernel [in, out], bias [out]."""

    def __init__(self, rng: np.random.Generator, n_in: int, n_out: int):
        self.kernel = nnx.Param(glorot_uniform(rng, (n_in, n_out)))
        self.bias = nnx.Param(constant(n_out, 0))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, in] -> [B, out], in the dtype of `x`."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y + along(self.bias[...].astype(x.dtype), y)


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) over all axes but the last, as in Keras 3.

    Like Keras' and unlike PyTorch's, the running variance takes the biased variance of the batch.
    """

    def __init__(
        self, n: int, *, epsilon: float = 1e-3, momentum: float = 0.99, use_scale: bool = True
    ):
        if use_scale:
            self.scale = nnx.Param(constant(n, 1))
        self.bias = nnx.Param(constant(n, 0))
        self.mean = nnx.BatchStat(constant(n, 0))
        self.var = nnx.BatchStat(constant(n, 1))
        self.epsilon = epsilon
        self.momentum = momentum
        self.use_scale = use_scale

    def factor(self) -> jax.Array:
        """scale / sqrt(var + epsilon) by the stored variance, float32 [n]."""
        return self._scale() * lax.rsqrt(self.var[...] + self.epsilon)

    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        activation: str = batch_norm.LINEAR,
        known: Moments | None = None,
    ) -> jax.Array:
        """[B, ..., n] -> the same shape and dtype.

        Args:
          train: normalise with the statistics of this batch and move the running ones; otherwise
            with the running ones.
          activation: what follows, "linear", "relu" or "relu6".
          known: the moments of `x`, where they are at hand; looked at only with `train`.
        """
        scale, bias = self._scale(), self.bias[...]
        if not train:
            stored = Moments(self.mean[...], self.var[...])
            return batch_norm.normalise(x, scale, bias, stored, self.epsilon, activation)
        y: Any
        moments: Any = known
        if known is None:
            made: Any = batch_norm.normalise_batch(x, scale, bias, self.epsilon, activation)
            y, moments = made
        else:
            y = batch_norm.normalise(x, scale, bias, known, self.epsilon, activation)
        for running, batch in ((self.mean, moments.mean), (self.var, moments.var)):
            moved = self.momentum * running[...] + (1 - self.momentum) * batch
            # Not running[...] = moved, which would write into a numpy array of the caller.
            running.set_value(lax.stop_gradient(moved))
        return y

    def _scale(self) -> jax.Array:
        return self.scale[...] if self.use_scale else jnp.ones_like(self.bias[...])


class Identity(nnx.Module):
    """What is left of a batch norm that was folded into the convolution before it."""

    def __call__(
        self, x: jax.Array, *, train: bool = False, activation: str = batch_norm.LINEAR
    ) -> jax.Array:
        """`x`, activated."""
        return batch_norm.activate(x, activation)


def dropout(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Sets a fraction `rate` of the elements to 0 and divides the others by 1 - rate."""
    kept = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros_like(x))
