"""Methods that turn a score into a map: class activation maps, and gradients at the input.

A CAM method takes `score`, a function of maps [B, h, w, F] that returns float [B], and the maps; an
input method the same with images [B, H, W, 1] on the 0..255 scale. Both return a raw signed map
float32 without the last axis: nothing is scaled, so maps of two images compare. The ReLU of the
papers is `positive`, taken where evidence is counted or shown.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Score = Callable[[jax.Array], jax.Array]
Method = Callable[[Score, jax.Array], jax.Array]
_TINY = 1e-6  # as pytorch-grad-cam has it
_ABLATED = 32  # channels left out at a time: bounds the memory
_IG_STEPS, _NOISE_DRAWS, _NOISE = 16, 16, 0.15


def positive(maps: jax.Array) -> jax.Array:
    """Evidence for the target alone."""
    return jnp.maximum(maps, 0)


def _gradient(score: Score, at: jax.Array) -> jax.Array:
    return jax.grad(lambda x: score(x).sum())(at).astype(jnp.float32)


def grad_cam(score: Score, maps: jax.Array) -> jax.Array:
    """Selvaraju et al. 2017 (arXiv 1610.02391), equations 1 and 2 before the ReLU."""
    weights = _gradient(score, maps).mean((1, 2))
    return jnp.einsum("bhwf,bf->bhw", maps.astype(jnp.float32), weights)


def grad_cam_plus_plus(score: Score, maps: jax.Array) -> jax.Array:
    """Chattopadhay et al. 2018 (arXiv 1710.11063), equation 19 for an exponential of the score.

    `_TINY` in the denominator, as pytorch-grad-cam has it, to which a test holds this, damps small
    gradients: where squared ones are near 1e-6 and below, it is not the equation exactly.
    """
    gradient, a = _gradient(score, maps), maps.astype(jnp.float32)
    squared = gradient**2
    alpha = squared / (2 * squared + a.sum((1, 2), keepdims=True) * squared * gradient + _TINY)
    alpha = jnp.where(gradient != 0, alpha, 0)
    weights = (alpha * positive(gradient)).sum((1, 2))
    return jnp.einsum("bhwf,bf->bhw", a, weights)


def hires_cam(score: Score, maps: jax.Array) -> jax.Array:
    """Draelos & Carin 2020 (arXiv 2011.08891): gradient times map, summed over channels."""
    return (_gradient(score, maps) * maps.astype(jnp.float32)).sum(-1)


def layer_cam(score: Score, maps: jax.Array) -> jax.Array:
    """Jiang et al. 2021 (doi 10.1109/TIP.2021.3089943), equations 5 and 6 before the ReLU."""
    return (positive(_gradient(score, maps)) * maps.astype(jnp.float32)).sum(-1)


def ablation_cam(score: Score, maps: jax.Array) -> jax.Array:
    """Desai & Ramaswamy 2020 (Ablation-CAM): a channel weighs what the score loses without it.

    The paper divides by the score, which a negative logit would turn upside down; positive scores
    give the same map up to a factor.
    """
    b, h, w, f = maps.shape
    whole = score(maps)
    size = min(_ABLATED, f)
    index = jnp.arange(-(-f // size) * size).reshape(-1, size)

    def lost(channels):
        kept = jnp.where(jnp.arange(f)[None] == channels[:, None], 0, 1).astype(maps.dtype)
        without = (maps[None] * kept[:, None, None, None]).reshape(size * b, h, w, f)
        return whole[None] - score(without).reshape(size, b)

    weights = jax.lax.map(lost, index).reshape(-1, b)[:f]
    return jnp.einsum("bhwf,fb->bhw", maps.astype(jnp.float32), weights.astype(jnp.float32))


def integrated_gradients(score: Score, images: jax.Array) -> jax.Array:
    """Sundararajan et al. 2017 (arXiv 1703.01365) from black, midpoint rule; sums to the change."""
    b = len(images)
    alpha = (jnp.arange(_IG_STEPS, dtype=jnp.float32) + 0.5) / _IG_STEPS
    path = alpha[:, None, None, None, None] * images[None]
    gradient = _gradient(score, path.reshape(_IG_STEPS * b, *images.shape[1:]))
    return (gradient.reshape(path.shape).mean(0) * images)[..., 0]


def smooth_grad(score: Score, images: jax.Array) -> jax.Array:
    """Smilkov et al. 2017 (arXiv 1706.03825): size of the mean gradient under noise.

    It has no sign: of two classes with opposite scores, the maps are the same.
    """
    b = len(images)
    shape = (_NOISE_DRAWS, *images.shape)
    noisy = images[None] + 255 * _NOISE * jax.random.normal(jax.random.key(0), shape)
    gradient = _gradient(score, noisy.reshape(_NOISE_DRAWS * b, *images.shape[1:]))
    return jnp.abs(gradient.reshape(shape).mean(0))[..., 0]


CAMS: dict[str, Method] = {
    "grad_cam": grad_cam,
    "grad_cam++": grad_cam_plus_plus,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "ablation_cam": ablation_cam,
}
AT_INPUT: dict[str, Method] = {
    "integrated_gradients": integrated_gradients,
    "smooth_grad": smooth_grad,
}
METHODS = (*CAMS, *AT_INPUT)
