"""Batch normalisation and the activation behind it as functions whose gradients cost few passes.

On a CPU, and in bfloat16 on a GPU, these layers are bound by memory: what counts is how often the
maps are read and written. Backwards, the activation is computed anew from the input instead of
being stored, and the gradients are those of the closed form (Ioffe & Szegedy 2015, section 3)
rather than what differentiating each operation gives. `tests/test_batch_norm.py` holds them to
that.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

LINEAR, RELU, RELU6 = "linear", "relu", "relu6"


class Moments(NamedTuple):
    """Mean and biased variance of each channel, float32 [C]."""

    mean: jax.Array
    var: jax.Array


def activate(x: jax.Array, activation: str) -> jax.Array:
    """`activation` is "linear", "relu" or "relu6"; gradients are 0 at the corners, as in Keras."""
    if activation == RELU:
        return jax.nn.relu(x)
    if activation == RELU6:
        return lax.clamp(jnp.zeros([], x.dtype), x, jnp.asarray(6, x.dtype))
    return x


@jax.custom_vjp
def moments(x: jax.Array) -> Moments:
    """Moments over all axes of `x` [B, ..., C] but the last.

    In float32 in two passes: E[x^2] - E[x]^2 in one has ten times the rounding error (5e-5 against
    4e-6 over DenseNet121's last 20 layers). In bfloat16 that is far below the input's own rounding.
    """
    axes = tuple(range(x.ndim - 1))
    narrow, x = x.dtype != jnp.float32, x.astype(jnp.float32)
    mean = x.mean(axes)
    if narrow:
        return Moments(mean, jnp.maximum(jnp.square(x).mean(axes) - jnp.square(mean), 0))
    return Moments(mean, jnp.square(x - along(mean, x)).mean(axes))


def _moments_forward(x: jax.Array) -> tuple[Moments, tuple[jax.Array, jax.Array]]:
    result = moments(x)
    return result, (x, result.mean)


def _moments_backward(kept: tuple[jax.Array, jax.Array], change: Moments) -> tuple[jax.Array]:
    x, mean = kept
    n = x.size // x.shape[-1]
    # The variance also depends on the mean, but the deviations from it sum to nought.
    centred = x.astype(jnp.float32) - along(mean, x)
    return ((along(change.mean / n, x) + along(2 / n * change.var, x) * centred).astype(x.dtype),)


moments.defvjp(_moments_forward, _moments_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def normalise(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    given: Moments,
    epsilon: float,
    activation: str,
) -> jax.Array:
    """activation((x - mean) * scale / sqrt(var + epsilon) + bias), in the dtype of `x` [B, ..., C].

    Args:
      scale, bias: float32 [C].
      given: stored statistics, or the `moments` of `x`; gradients reach them too.
    """
    factor = scale * lax.rsqrt(given.var + epsilon)
    z = (x.astype(jnp.float32) - along(given.mean, x)) * along(factor, x) + along(bias, x)
    return activate(z, activation).astype(x.dtype)


def _normalise_forward(x, scale, bias, given, epsilon, activation):
    return normalise(x, scale, bias, given, epsilon, activation), (x, scale, bias, given)


def _normalise_backward(epsilon, activation, kept, dy):
    x, scale, bias, given = kept
    rate = lax.rsqrt(given.var + epsilon)
    factor = scale * rate
    centred, dz = _through_activation(x, given.mean, factor, bias, activation, dy)
    d_bias, d_factor = _sums(dz), _sums(dz * centred)
    d_given = Moments(-factor * d_bias, -0.5 * d_factor * factor * jnp.square(rate))
    return (dz * along(factor, x)).astype(x.dtype), d_factor * rate, d_bias, d_given


normalise.defvjp(_normalise_forward, _normalise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, activation: str
) -> tuple[jax.Array, Moments]:
    """`normalise` by the moments of `x` itself, and these (no gradient passes through them)."""
    of_batch = moments(x)
    return normalise(x, scale, bias, of_batch, epsilon, activation), of_batch


def _batch_forward(x, scale, bias, epsilon, activation) -> Any:
    of_batch = moments(x)
    y = normalise(x, scale, bias, of_batch, epsilon, activation)
    return (y, of_batch), (x, scale, bias, of_batch)


def _batch_backward(epsilon, activation, kept, change):
    x, scale, bias, of_batch = kept
    rate = lax.rsqrt(of_batch.var + epsilon)
    factor = scale * rate
    n = x.size // x.shape[-1]
    centred, dz = _through_activation(x, of_batch.mean, factor, bias, activation, change[0])
    d_bias, d_factor = _sums(dz), _sums(dz * centred)
    slope = jnp.square(rate) * d_factor / n
    dx = along(factor, x) * (dz - along(d_bias / n, x) - centred * along(slope, x))
    return dx.astype(x.dtype), d_factor * rate, d_bias


normalise_batch.defvjp(_batch_forward, _batch_backward)


def _through_activation(x, mean, factor, bias, activation, dy):
    """x - mean and the gradient in front of the activation, both float32."""
    centred, dz = x.astype(jnp.float32) - along(mean, x), dy.astype(jnp.float32)
    if activation == LINEAR:
        return centred, dz
    z = centred * along(factor, x) + along(bias, x)
    passes = z > 0 if activation == RELU else (z > 0) & (z < 6)
    return centred, jnp.where(passes, dz, jnp.zeros_like(dz))


def _sums(x: jax.Array) -> jax.Array:
    return x.sum(tuple(range(x.ndim - 1)))


def along(vector: jax.Array, x: jax.Array) -> jax.Array:
    """`vector` [C] shaped to stand beside `x` [..., C]: rank promotion is an error here."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)
