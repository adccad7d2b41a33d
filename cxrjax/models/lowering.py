"""How convolution and pooling are lowered on each platform; every such choice is made here.

What is faster depends on the platform's back end, never on the network. `tests/test_lowering.py`
holds each choice to the plain XLA operation, in values and gradients. The one choice that cannot be
made here, which library XLA:CPU hands convolutions to, is a flag of the process: see `runtime`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Padding = str | Sequence[tuple[int, int]]  # "SAME", "VALID" or (before, after) of each axis
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def is_cpu(platform: str | None = None) -> bool:
    """Whether to lower for a CPU; None asks JAX for the platform in use."""
    return (platform or jax.default_backend()) == "cpu"


def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """2-D convolution: x [B, H, W, in], kernel [h, w, in, out] -> [B, h', w', out]."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Depthwise 2-D convolution: x [B, H, W, C], kernel [h, w, C, 1] -> [B, h', w', C]."""
    height, width, channels, _ = kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel.reshape(height, width, 1, channels),
        (stride, stride),
        padding,
        dimension_numbers=_LAYOUT,
        feature_group_count=channels,
    )


def max_pool(
    x: jax.Array, size: int = 2, stride: int = 2, *, platform: str | None = None
) -> jax.Array:
    """Max pooling, no padding: [B, H, W, C] -> [B, h, w, C]. A tie's gradient goes to the first.

    Args:
      platform: "cpu" or another; None asks JAX for the one in use. On a CPU the gradient of
        `reduce_window` (select-and-scatter) is 5 to 10 times slower than that of slices.
    """
    if not is_cpu(platform):
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
    first, *others = _window_slices(x, size, stride)
    for other in others:
        # Not jnp.maximum, which shares the gradient of a tie; the second term passes NaN on.
        first = jnp.where((first >= other) | (first != first), first, other)
    return first


def average_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Mean over `size` x `size` windows, no overlap or padding: [B, H, W, C] -> [B, h, w, C]."""
    return functools.reduce(jnp.add, _window_slices(x, size, size)) / size**2


def average_pool_same(x: jax.Array, size: int = 3) -> jax.Array:
    """Mean over the `size` x `size` (odd) neighbours that lie inside: [B, H, W, C] -> the same.

    Rows and columns one after the other: 4 additions an element instead of 8.
    """
    for axis in (1, 2):
        x = _average_along(x, size, axis)
    return x


def global_average_pool(x: jax.Array) -> jax.Array:
    """[B, h, w, C] -> float32 [B, C]."""
    return x.mean((1, 2), dtype=jnp.float32)


def zero_pad(x: jax.Array, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, H + 2 width, W + 2 width, C]."""
    return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)))


def _average_along(x: jax.Array, size: int, axis: int) -> jax.Array:
    reach, length = size // 2, x.shape[axis]
    padding = [(0, 0)] * x.ndim
    padding[axis] = (reach, reach)
    padded = jnp.pad(x, padding)
    parts = [lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(size)]
    inside = [min(k, reach) + min(length - 1 - k, reach) + 1 for k in range(length)]
    shape = [1] * x.ndim
    shape[axis] = length
    return functools.reduce(jnp.add, parts) / jnp.asarray(inside, x.dtype).reshape(shape)


def _window_slices(x: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """The size² strided views of `x` that hold one element of every window each, row by row."""
    rows = (x.shape[1] - size) // stride + 1
    columns = (x.shape[2] - size) // stride + 1
    return [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
