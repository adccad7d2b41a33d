"""A U-Net of twelve small convolutions (Ronneberger et al. 2015, arXiv 1505.04597)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIDE = 64  # pixels; films are brought to this size
_CHANNELS = (8, 16, 32, 48)  # by level; each level halves the side

Params = dict[str, jax.Array]


def init(seed: int) -> Params:
    """Kernels HWIO by He et al. (2015) and zero biases, float32, by name of the convolution."""
    rng = np.random.default_rng(seed)
    params: Params = {}
    for name, (size, n_in, n_out) in _shapes().items():
        deviation = np.sqrt(2 / (size * size * n_in))
        kernel = rng.normal(0, deviation, (size, size, n_in, n_out))
        params[f"{name}/kernel"] = jnp.asarray(kernel, jnp.float32)
        params[f"{name}/bias"] = jnp.zeros(n_out, jnp.float32)
    return params


def _shapes() -> dict[str, tuple[int, int, int]]:
    """Side of the kernel, channels in and out of every convolution."""
    shapes, n_in = {}, 1
    for level, n in enumerate(_CHANNELS):
        shapes |= {f"down{level}a": (3, n_in, n), f"down{level}b": (3, n, n)}
        n_in = n
    for level in range(len(_CHANNELS) - 2, -1, -1):
        n = _CHANNELS[level]
        shapes[f"up{level}"] = (3, n_in + n, n)
        n_in = n
    return shapes | {"out": (1, n_in, 1)}


def apply(params: Params, films: jax.Array) -> jax.Array:
    """Films on any linear grey scale, float32 [B, SIDE, SIDE], to logits of lung, the same shape.

    Each film is standardised to mean 0 and deviation 1 first.
    """
    x = films - films.mean(axis=(1, 2), keepdims=True)
    x = x / (jnp.sqrt(jnp.square(x).mean(axis=(1, 2), keepdims=True)) + 1e-3)
    x, skips = x[..., None], []
    for level in range(len(_CHANNELS)):
        if level:
            skips.append(x)
            x = _halved(x)
        x = jax.nn.relu(_convolution(params, f"down{level}a", x))
        x = jax.nn.relu(_convolution(params, f"down{level}b", x))
    for level in range(len(_CHANNELS) - 2, -1, -1):
        x = jnp.concatenate([_doubled(x), skips.pop()], axis=-1)
        x = jax.nn.relu(_convolution(params, f"up{level}", x))
    return _convolution(params, "out", x)[..., 0]


def _convolution(params: Params, name: str, x: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    kernel, bias = params[f"{name}/kernel"], params[f"{name}/bias"]
    y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return y + bias[None, None, None]


def _halved(x: jax.Array) -> jax.Array:
    """Means over 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def _doubled(x: jax.Array) -> jax.Array:
    """Every pixel four times."""
    batch, height, width, channels = x.shape
    wide = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return wide.reshape(batch, 2 * height, 2 * width, channels)
