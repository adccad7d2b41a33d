"""Random geometry, tone and border of images: pure functions of a key, run on the device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from cxrjax.config import Config

# Folded into an example's key; far from the counters behind the draws of its geometry.
_GAMMA_STREAM, _BORDER_STREAM = 2**31 - 1, 2**31 - 2


def active(config: Config) -> bool:
    """Whether a configuration augments its training images."""
    return any(config.augment.values())


def example_keys(seed: jax.Array | int, epoch: jax.Array | int, index: jax.Array) -> jax.Array:
    """One random key per example: what an example looks like depends on nothing else.

    Neither the batch it falls into nor the number of devices matters, so both input paths agree and
    a resumed run continues exactly.

    Args:
      seed: int32 [], of the run.
      epoch: int32 [].
      index: int32 [B], positions in the store.
    Returns:
      typed PRNG keys [B].
    """
    # Pinned, whatever the user's default: under vmap rbg keys draw per batch, not per key.
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), epoch)
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def augment(
    keys: jax.Array,
    images: jax.Array,
    *,
    shift: float,
    rotation_degrees: float,
    zoom: float,
    border: float = 0.0,
    gamma: float = 0.0,
) -> jax.Array:
    """Changes every image by amounts of its own: geometry, then tone, then border; no flips.

    Args:
      keys: typed PRNG keys [B], see `example_keys`.
      images: uint8 or float [B, H, W, 1]; on the 0..255 scale where border or gamma is not 0.
      shift: largest shift on each axis, as a fraction of that side, at most 0.5; static.
      rotation_degrees: largest rotation, either way; static.
      zoom: magnification is drawn from [1 - zoom, 1 + zoom], zoom at most 0.25; static.
      border: widest rim, see `cover_border`, at most 0.25; static.
      gamma: the exponent of the tone curve is drawn log-uniformly from [1 / (1 + gamma),
        1 + gamma], gamma at most 1; static.
    Returns:
      float32 [B, H, W, 1] in the units of `images`; the very pixels when all five are 0.
    Raises:
      ValueError: for a shift, zoom, border or gamma out of range.
    """
    if not (0 <= shift <= 0.5 and 0 <= zoom <= 0.25):
        raise ValueError(f"shift {shift} must lie in [0, 0.5] and zoom {zoom} in [0, 0.25]")
    if not (0 <= border <= 0.25 and 0 <= gamma <= 1):
        raise ValueError(f"border {border} must lie in [0, 0.25] and gamma {gamma} in [0, 1]")
    if shift == rotation_degrees == zoom == 0:
        images = images.astype(jnp.float32)
    else:
        draw = jax.vmap(lambda key: jax.random.uniform(key, [4], jnp.float32, -1, 1))(keys)
        height, width = images.shape[1:3]
        images = warp(
            images,
            shift=draw[:, :2] * jnp.array([[shift * height, shift * width]], jnp.float32),
            radians=jnp.deg2rad(jnp.float32(rotation_degrees)) * draw[:, 2],
            scale=1 + zoom * draw[:, 3],
        )
    if gamma:
        images = bend_tones(_stream(keys, _GAMMA_STREAM), images, gamma=gamma)
    if border:
        images = cover_border(_stream(keys, _BORDER_STREAM), images, border=border)
    return images


def _stream(keys: jax.Array, number: int) -> jax.Array:
    """Keys [B] for draws apart from those of the geometry, which stay as they are without them."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def bend_tones(keys: jax.Array, images: jax.Array, *, gamma: float) -> jax.Array:
    """Gives every image a tone curve of its own, as every hospital has one: 255 (x / 255)^g.

    Args:
      keys: typed PRNG keys [B].
      images: uint8 or float [B, H, W, 1], 0..255; what lies outside counts as 0 or 255.
      gamma: log g is uniform in [-log(1 + gamma), log(1 + gamma)]; static.
    Returns:
      float32 [B, H, W, 1], 0..255; black and white stay.
    """
    limit = math.log1p(gamma)
    draw = jax.vmap(lambda key: jax.random.uniform(key, [], jnp.float32, -limit, limit))(keys)
    # A negative number to such a power is NaN.
    share = jnp.clip(images.astype(jnp.float32) / 255, 0, 1)
    return 255 * share ** jnp.exp(draw)[:, None, None, None]


def cover_border(keys: jax.Array, images: jax.Array, *, border: float) -> jax.Array:
    """Overwrites a rim of every image with one random grey level.

    Letters, tags and the collimator's edges stand there: they must not tell the class.

    Args:
      keys: typed PRNG keys [B].
      images: uint8 or float [B, H, W, 1], 0..255.
      border: each of the four rims is 0 to border * H (top, bottom) or border * W (left, right)
        whole pixels wide, all widths alike likely, independent of the others; static.
    Returns:
      float32 [B, H, W, 1]; the rim's level is uniform in [0, 255), the same on all four sides.
    """
    draw = jax.vmap(lambda key: jax.random.uniform(key, [5], jnp.float32))(keys)
    inside = jnp.array(True)
    for axis, (before, after) in ((1, (0, 1)), (2, (2, 3))):
        side = images.shape[axis]
        # The draw is below 1, so the widest is the whole pixels in border * side.
        rim = jnp.floor(draw * (math.floor(border * side) + 1)).astype(jnp.int32)
        rim = rim[:, :, None, None, None]
        at = jax.lax.broadcasted_iota(jnp.int32, (1, *images.shape[1:]), axis)
        inside &= (at >= rim[:, before]) & (at < side - rim[:, after])
    return jnp.where(inside, images.astype(jnp.float32), 255 * draw[:, 4, None, None, None])


def warp(images: jax.Array, *, shift: jax.Array, radians: jax.Array, scale: jax.Array) -> jax.Array:
    """Shifts each image, then turns and magnifies it about the centre; bilinear interpolation.

    Output pixel p shows input point R(p - c) / scale + c - shift, where c is the centre. Outside
    the frame the nearest edge pixel is repeated, as Keras' ImageDataGenerator does by default:
    black corners would show the network how an image was turned, and shift the pixel statistics.

    Coordinates are whole multiples of 2^-bits pixel. With floating point ones XLA may round a
    coordinate differently where it indexes the pixels and where it weighs them (it recomputes and
    contracts as it likes); beside a pixel's centre that takes the wrong neighbour at full weight.

    Args:
      images: uint8 or float [B, H, W, 1], 2 <= H, W.
      shift: float32 [B, 2], pixels down and to the right, at most half a side.
      radians: float32 [B], clockwise as displayed.
      scale: float32 [B], at least 0.75; above 1 magnifies.
    Returns:
      float32 [B, H, W, 1], within the range of each image.
    """
    batch, height, width, _ = images.shape
    # Within the limits above coordinates stay below 2 sides, so that 31 bits hold them; 24 bits of
    # fraction are as many as float32 holds.
    bits = min(24, 30 - (max(height, width) - 1).bit_length())
    sine, cosine = (
        jnp.round(f(radians) / scale * 2.0 ** (bits - 1)).astype(jnp.int32)[:, None, None]
        for f in (jnp.sin, jnp.cos)
    )
    offset = jnp.round(shift * 2.0**bits).astype(jnp.int32)[:, :, None, None]
    # In half pixels from the centre, which makes them whole numbers for even sides too.
    down = 2 * jax.lax.broadcasted_iota(jnp.int32, (1, height, width), 1) - (height - 1)
    right = 2 * jax.lax.broadcasted_iota(jnp.int32, (1, height, width), 2) - (width - 1)
    top, y = _split(cosine * down - sine * right - offset[:, 0], height, bits)
    left, x = _split(sine * down + cosine * right - offset[:, 1], width, bits)

    # One row per image and four gathers from it: XLA fuses all of this into a single loop.
    corner = (top * width + left).reshape(batch, -1)
    pixels = images.reshape(batch, -1)

    def neighbour(step: int) -> jax.Array:
        taken = jnp.take_along_axis(pixels, corner + step, axis=1, mode="promise_in_bounds")
        return taken.astype(jnp.float32).reshape(batch, height, width)

    # a + f * (b - a), not (1 - f) * a + f * b: it never leaves [a, b].
    upper = neighbour(0) + x * (neighbour(1) - neighbour(0))
    lower = neighbour(width) + x * (neighbour(width + 1) - neighbour(width))
    return (upper + y * (lower - upper))[..., None]


def _split(centred: jax.Array, side: int, bits: int) -> tuple[jax.Array, jax.Array]:
    """Fixed-point coordinates as the pixel before (at most side - 2) and the next one's weight."""
    clipped = jnp.clip(centred + ((side - 1) << (bits - 1)), 0, (side - 1) << bits)
    before = jnp.minimum(clipped >> bits, side - 2)
    weight = (clipped - (before << bits)).astype(jnp.float32) * 2.0**-bits
    return before, weight
