"""How convolution and pooling are lowered on each platform; every such choice is made here.

What is faster depends on the platform's back end, never on the network. `tests/test_lowering.py`
holds each choice to the plain XLA operation, in values and gradients. The one choice that cannot be
made here, which library XLA:CPU hands convolutions to, is a flag of the process: see `runtime`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cxrjax import runtime

# "SAME", "VALID" or (before, after) of each axis, none negative: Eigen's convolution in jaxlib
# 0.10.2 then reads beyond the image, whoever calls it.
Padding = str | Sequence[tuple[int, int]]
_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PARTS = 4  # of the rows of a product; 2 to 32 measure alike on two cores
_MANY_ROWS = 16384  # below, Eigen's products lose by being in parts, oneDNN's do not


def is_cpu(platform: str | None = None) -> bool:
    """Whether to lower for a CPU; None asks JAX for the platform in use."""
    return (platform or jax.default_backend()) == "cpu"


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding, *, platform: str | None = None
) -> jax.Array:
    """2-D convolution: x [B, H, W, in], kernel [h, w, in, out] -> [B, h', w', out].

    Args:
      platform: as for `max_pool`. cuDNN has no fast kernel for one input channel, so the stem of
        grey images goes over blocks of pixels instead.
    """
    size = kernel.shape[:2]
    if is_cpu(platform):
        return _convolution_cpu(x, kernel, stride, _pairs(x, size, stride, padding))
    if x.shape[-1] == 1 and stride == 2 and size != (1, 1):
        return _convolve_blocks(x, kernel, _pairs(x, size, stride, padding))
    return _convolution(x, kernel, stride, padding)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution_cpu(
    x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[tuple[int, int], ...]
) -> jax.Array:
    """The plain convolution, with a gradient of the kernel that XLA:CPU is fast at."""
    return _convolution(x, kernel, stride, padding)


def _convolution_forward(x, kernel, stride, padding):
    return _convolution(x, kernel, stride, padding), (x, kernel)


def _convolution_backward(stride, padding, kept, dy):
    x, kernel = kept
    (dx,) = jax.linear_transpose(lambda x: _convolution(x, kernel, stride, padding), x)(dy)
    if kernel.shape[:2] == (1, 1) and stride == 1 and padding == ((0, 0), (0, 0)):
        return dx, _pointwise_kernel_gradient(x, dy)[None, None].astype(kernel.dtype)
    d_kernel = _kernel_gradient(x, dy, kernel.shape[:2], stride, padding)
    return dx, d_kernel.astype(kernel.dtype)


def _pointwise_kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """x [B, H, W, in], dy [B, H, W, out] -> [in, out], for a convolution of 1 x 1 pixels.

    A matrix product over very many rows, of which XLA:CPU shares out only the few results among the
    cores: as a batch of parts of the rows it is up to twice as fast.
    """
    rows = x.size // x.shape[-1]
    parts = math.gcd(rows, _PARTS) if rows >= _MANY_ROWS or runtime.has_onednn() else 1
    x, dy = (a.reshape(parts, rows // parts, a.shape[-1]) for a in (x, dy))
    # In the dtype of the maps: bfloat16 products in float32 are a tenth of a training step slower.
    return jnp.einsum("pri,pro->pio", x, dy).sum(0, dtype=jnp.float32)


def _kernel_gradient(
    x: jax.Array,
    dy: jax.Array,
    size: Sequence[int],
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> jax.Array:
    """x [B, H, W, in], dy [B, h, w, out] -> [*size, in, out], by Eigen's convolution.

    The kernel of this convolution is as large as the image, which oneDNN is slow at. XLA leaves a
    convolution whose kernel is the result of a reversal to Eigen: so the maps of `dy` are reversed
    here, and those of the result back again.
    """
    around = []
    for k, side, out, (before, _) in zip(size, x.shape[1:3], dy.shape[1:3], padding, strict=True):
        around.append((before, k + stride * (out - 1) - side - before))
    if x.dtype == jnp.bfloat16:  # for which Eigen has nothing fast
        x, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    reversed_maps = lax.rev(dy.transpose(1, 2, 0, 3), (3,))
    gradient = lax.conv_general_dilated(
        x,
        reversed_maps,
        (1, 1),
        around,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "HWIO", "HWNC"),
    )
    return lax.rev(gradient, (3,))


_convolution_cpu.defvjp(_convolution_forward, _convolution_backward)


def apart(y: jax.Array) -> jax.Array:
    """`y`, the result of a convolution, which nothing added to it is made a part of.

    XLA:CPU lets oneDNN add a map of the result's size within its convolution; in bfloat16 oneDNN
    has no fast form of that for one input channel: 4.5 s instead of 5 ms for 32 images.
    """
    return lax.optimization_barrier(y) if is_cpu() else y


def _pairs(
    x: jax.Array, size: Sequence[int], stride: int, padding: Padding
) -> Sequence[tuple[int, int]]:
    """`padding` as (before, after) of each axis."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], size, (stride, stride), padding)
    return tuple((before, after) for before, after in padding)


def _convolve_blocks(
    x: jax.Array, kernel: jax.Array, padding: Sequence[tuple[int, int]]
) -> jax.Array:
    """A convolution of stride 2 over x [B, H, W, 1] as one of stride 1 over blocks of 2 x 2 pixels.

    The four pixels are four channels; four more of zeros make the eight that tensor cores take.
    """
    around, blocks, images = [(0, 0, 0)], [], x.shape[0]
    for side, k, (before, after) in zip(x.shape[1:3], kernel.shape[:2], padding, strict=True):
        taps = -(-k // 2)
        outputs = (side + before + after - k) // 2 + 1
        around.append((before, 2 * (outputs - 1 + taps) - before - side, 0))
        blocks.append((outputs - 1 + taps, taps))
    (rows, down), (columns, across) = blocks
    x = lax.pad(x, jnp.zeros([], x.dtype), [*around, (0, 0, 0)])
    x = x.reshape(images, rows, 2, columns, 2).transpose(0, 1, 3, 2, 4)
    x = jnp.pad(x.reshape(images, rows, columns, 4), ((0, 0), (0, 0), (0, 0), (0, 4)))
    height, width, _, out = kernel.shape
    kernel = jnp.pad(kernel[:, :, 0], ((0, 2 * down - height), (0, 2 * across - width), (0, 0)))
    kernel = kernel.reshape(down, 2, across, 2, out).transpose(0, 2, 1, 3, 4)
    kernel = jnp.pad(kernel.reshape(down, across, 4, out), ((0, 0), (0, 0), (0, 4), (0, 0)))
    return _convolution(x, kernel, 1, "VALID")


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
    padding = _pairs(x, (height, width), stride, padding)
    taps = kernel.reshape(height * width, channels)
    return _shifted_sum(x, taps, (height, width), stride, padding)


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
      platform: "cpu" or another; None asks JAX for the one in use. The gradient of `reduce_window`
        (select-and-scatter) is 10 times slower than that of slices on a CPU, where one axis after
        the other is twice as fast again, and slower on a GPU, where both axes at once are fewer
        passes.
    """
    if not is_cpu(platform):
        return _max_over(x, size, stride, (1, 2))
    # Columns first: of equal values in a window the first row's then wins, as in reduce_window.
    return _max_over(_max_over(x, size, stride, (2,)), size, stride, (1,))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_over(x: jax.Array, size: int, stride: int, axes: tuple[int, ...]) -> jax.Array:
    """Maximum over windows along `axes`, of the first of equal values."""
    return _max_forward(x, size, stride, axes)[0]


def _max_forward(x: jax.Array, size: int, stride: int, axes: tuple[int, ...]):
    # Without the barrier whatever computes `x` is computed anew for each place of the window.
    x = lax.optimization_barrier(x)

    def place(offsets: tuple[int, ...]) -> jax.Array:
        index = [slice(None)] * x.ndim
        for axis, k in zip(axes, offsets, strict=True):
            windows = (x.shape[axis] - size) // stride + 1
            index[axis] = slice(k, k + stride * (windows - 1) + 1, stride)
        return x[tuple(index)]

    first, *others = map(place, itertools.product(range(size), repeat=len(axes)))
    which = jnp.zeros(first.shape, jnp.int8)
    for k, other in enumerate(others, start=1):
        stays = (first >= other) | (first != first)  # the second term passes NaN on
        which, first = jnp.where(stays, which, jnp.int8(k)), jnp.where(stays, first, other)
    return first, (which, x.shape)


def _max_backward(size: int, stride: int, axes: tuple[int, ...], kept, dy: jax.Array):
    which, shape = kept
    reach = -(-size // stride)  # windows that an element lies in, along one axis
    places = list(itertools.product(range(size), repeat=len(axes)))
    phases = []  # of the positions modulo the stride
    for phase in itertools.product(range(stride), repeat=len(axes)):
        total = jnp.zeros([], dy.dtype)
        for number, offsets in enumerate(places):
            if tuple(k % stride for k in offsets) == phase:
                part = jnp.where(which == number, dy, jnp.zeros_like(dy))
                for axis, k in zip(axes, offsets, strict=True):
                    part = _pad_along(part, k // stride, reach - 1 - k // stride, axis)
                total = total + part
        phases.append(total)
    for axis in reversed(axes):
        phases = [_interleave(phases[k : k + stride], axis) for k in range(0, len(phases), stride)]
    (dx,) = phases
    for axis in axes:
        dx = lax.slice_in_dim(dx, 0, min(shape[axis], dx.shape[axis]), axis=axis)
        dx = _pad_along(dx, 0, shape[axis] - dx.shape[axis], axis)
    return (dx,)


_max_over.defvjp(_max_forward, _max_backward)


def _interleave(parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """a0 b0 ... a1 b1 ... along an axis."""
    shape = [*parts[0].shape]
    shape[axis] *= len(parts)
    return jnp.stack(parts, axis + 1).reshape(shape)


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
