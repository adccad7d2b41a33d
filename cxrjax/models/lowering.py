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


def depthwise(
    x: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    *,
    platform: str | None = None,
) -> jax.Array:
    """Depthwise 2-D convolution: x [B, H, W, C], kernel [h, w, C, 1] -> [B, h', w', C].

    Args:
      platform: as for `max_pool`. XLA:CPU runs a convolution of C groups 20 to 60 times slower than
        the sum of shifted, scaled inputs that it is.
    """
    height, width, channels, _ = kernel.shape
    if not is_cpu(platform):
        return lax.conv_general_dilated(
            x,
            kernel.reshape(height, width, 1, channels),
            (stride, stride),
            padding,
            dimension_numbers=_LAYOUT,
            feature_group_count=channels,
        )
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), padding)
    taps = kernel.reshape(height * width, channels)
    return _shifted_sum(x, taps, (height, width), stride, tuple(map(tuple, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted_sum(
    x: jax.Array,
    taps: jax.Array,
    size: tuple[int, int],
    stride: int,
    padding: tuple[tuple[int, int], ...],
) -> jax.Array:
    """The depthwise convolution with `taps` [h * w, C], as a sum over the places of the window."""
    shifted = _window_slices(_padded(x, padding), size, stride)
    scaled = [part * tap[None, None, None] for part, tap in zip(shifted, taps, strict=True)]
    return functools.reduce(jnp.add, scaled)


def _padded(x: jax.Array, padding: Sequence[tuple[int, int]], interior: int = 0) -> jax.Array:
    """`x` with zeros around, and `interior` zeros between the pixels."""
    around = [(0, 0, 0), *((*pair, interior) for pair in padding), (0, 0, 0)]
    # The barrier keeps the padding from being computed anew for each shift.
    return lax.optimization_barrier(lax.pad(x, jnp.zeros([], x.dtype), around))


def _shifted_forward(x, taps, size, stride, padding):
    return _shifted_sum(x, taps, size, stride, padding), (x, taps)


def _shifted_backward(size, stride, padding, kept, dy):
    x, taps = kept
    shifted = _window_slices(_padded(x, padding), size, stride)
    d_taps = jnp.stack([(part * dy).sum((0, 1, 2)) for part in shifted])
    # The gradient of the input is a depthwise convolution, too, with the taps in reverse.
    around = []
    for k, side, out, (before, _) in zip(size, x.shape[1:3], dy.shape[1:3], padding, strict=True):
        first = k - 1 - before
        around.append((first, side - first - stride * (out - 1) - 1 + k - 1))
    spread = _padded(dy, around, stride - 1)
    parts = zip(_window_slices(spread, size, 1), taps[::-1], strict=True)
    return functools.reduce(jnp.add, [p * tap[None, None, None] for p, tap in parts]), d_taps


_shifted_sum.defvjp(_shifted_forward, _shifted_backward)


def max_pool(
    x: jax.Array, size: int = 2, stride: int = 2, *, platform: str | None = None
) -> jax.Array:
    """Max pooling, no padding: [B, H, W, C] -> [B, h, w, C]. A tie's gradient goes to the first.

    Args:
      platform: "cpu" or another; None asks JAX for the one in use. On a CPU the gradient of
        `reduce_window` (select-and-scatter) is 10 times slower than that of slices, and one axis
        after the other is twice as fast again.
    """
    if not is_cpu(platform):
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
    # Columns first: of equal values in a window the first row's then wins, as in reduce_window.
    return _max_along(_max_along(x, size, stride, 2), size, stride, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x: jax.Array, size: int, stride: int, axis: int) -> jax.Array:
    """Maximum over windows along one axis, of the first of equal values."""
    return _max_forward(x, size, stride, axis)[0]


def _max_forward(x: jax.Array, size: int, stride: int, axis: int):
    windows = (x.shape[axis] - size) // stride + 1
    # Without the barrier whatever computes `x` is computed anew for each place of the window.
    x = lax.optimization_barrier(x)
    first, *others = (
        lax.slice_in_dim(x, k, k + stride * (windows - 1) + 1, stride, axis) for k in range(size)
    )
    which = jnp.zeros(first.shape, jnp.int8)
    for k, other in enumerate(others, start=1):
        stays = (first >= other) | (first != first)  # the second term passes NaN on
        which, first = jnp.where(stays, which, jnp.int8(k)), jnp.where(stays, first, other)
    return first, (which, x.shape[axis])


def _max_backward(size: int, stride: int, axis: int, kept, dy: jax.Array) -> tuple[jax.Array]:
    which, length = kept
    reach = -(-size // stride)  # windows that an element lies in
    longer = dy.shape[axis] + reach - 1
    phases = []  # of the positions modulo the stride
    for phase in range(stride):
        total = jnp.zeros([], dy.dtype)
        for k in range(phase, size, stride):
            part = jnp.where(which == k, dy, jnp.zeros_like(dy))
            before = k // stride
            total = total + _pad_along(part, before, reach - 1 - before, axis)
        phases.append(total)
    shape = [*dy.shape]
    shape[axis] = stride * longer
    dx = jnp.stack(phases, axis + 1).reshape(shape)
    dx = lax.slice_in_dim(dx, 0, min(length, stride * longer), axis=axis)
    return (_pad_along(dx, 0, length - dx.shape[axis], axis),)


_max_along.defvjp(_max_forward, _max_backward)


def _pad_along(x: jax.Array, before: int, after: int, axis: int) -> jax.Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (before, after)
    return jnp.pad(x, padding)


def average_pool(x: jax.Array, size: int = 2) -> jax.Array:
    """Mean over `size` x `size` windows, no overlap or padding: [B, H, W, C] -> [B, h, w, C]."""
    return functools.reduce(jnp.add, _window_slices(x, (size, size), size)) / size**2


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
    padded = _pad_along(x, reach, reach, axis)
    parts = [lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(size)]
    inside = [min(k, reach) + min(length - 1 - k, reach) + 1 for k in range(length)]
    shape = [1] * x.ndim
    shape[axis] = length
    return functools.reduce(jnp.add, parts) / jnp.asarray(inside, x.dtype).reshape(shape)


def _window_slices(x: jax.Array, size: tuple[int, int], stride: int) -> list[jax.Array]:
    """The strided views of `x` that hold one element of every window each, row by row."""
    rows, columns = ((n - k) // stride + 1 for n, k in zip(x.shape[1:3], size, strict=True))
    return [
        x[:, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size[0])
        for j in range(size[1])
    ]
