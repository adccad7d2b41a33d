"""Augmentation: geometry held to SciPy, randomness to (seed, epoch, index) alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cxrjax.data import augment

RNG = np.random.default_rng(0)


def noise(batch=4, height=24, width=32):
    """White noise: the hardest image for interpolation."""
    return RNG.integers(0, 256, (batch, height, width, 1), dtype=np.uint8)


def warp(images, shift=(0.0, 0.0), degrees=0.0, scale=1.0):
    """The same warp for every image of the batch."""
    n = len(images)
    return np.asarray(
        augment.warp(
            jnp.asarray(images),
            shift=jnp.tile(jnp.array([shift], jnp.float32), (n, 1)),
            radians=jnp.full([n], math.radians(degrees), jnp.float32),
            scale=jnp.full([n], scale, jnp.float32),
        )
    )


def scipy_warp(image, shift, degrees, scale):
    radians = math.radians(degrees)
    matrix = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre / scale - shift
    return ndimage.affine_transform(
        image.astype(float), matrix / scale, offset, order=1, mode="nearest"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@given(
    shift=st.tuples(*[st.floats(-12, 12)] * 2),
    degrees=st.floats(-180, 180),
    scale=st.floats(0.75, 1.25),
)
@settings(max_examples=40, deadline=None)
def test_warp_is_scipys_affine_transform(dtype, shift, degrees, scale):
    images = noise().astype(dtype)
    got = warp(images, shift, degrees, scale)
    for image, mine in zip(images[..., 0], got[..., 0], strict=True):
        np.testing.assert_allclose(mine, scipy_warp(image, shift, degrees, scale), atol=0.01)


def test_coordinates_hold_the_largest_image_and_the_largest_changes():
    images = noise(1, 1024, 700)
    for sign in (1, -1):
        changes = (sign * 512, sign * 350), sign * 45, 0.75
        got = warp(images, *changes)[0, ..., 0]
        np.testing.assert_allclose(got, scipy_warp(images[0, ..., 0], *changes), atol=0.6)


def test_warp_agrees_with_jax_map_coordinates_for_amounts_that_differ_by_image():
    images = noise(6, 40, 40)
    shift = RNG.uniform(-10, 10, (6, 2)).astype(np.float32)
    radians, scale = RNG.uniform(-0.3, 0.3, 6), RNG.uniform(0.8, 1.2, 6)
    got = augment.warp(
        jnp.asarray(images),
        shift=jnp.asarray(shift),
        radians=jnp.asarray(radians, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
    )
    grid = np.indices((40, 40)) - 19.5
    for i in range(6):
        c, s = np.cos(radians[i]) / scale[i], np.sin(radians[i]) / scale[i]
        rows = c * grid[0] - s * grid[1] + 19.5 - shift[i, 0]
        columns = s * grid[0] + c * grid[1] + 19.5 - shift[i, 1]
        wanted = jax.scipy.ndimage.map_coordinates(
            jnp.asarray(images[i, ..., 0], jnp.float32), [rows, columns], order=1, mode="nearest"
        )
        np.testing.assert_allclose(got[i, ..., 0], wanted, atol=0.02)


@given(down=st.integers(-9, 9), right=st.integers(-9, 9))
@settings(max_examples=30, deadline=None)
def test_shift_by_whole_pixels_moves_them_and_repeats_the_edge(down, right):
    images = noise()
    padded = np.pad(images, [(0, 0), (9, 9), (9, 9), (0, 0)], mode="edge")
    wanted = np.roll(padded, (down, right), (1, 2))[:, 9:-9, 9:-9]
    np.testing.assert_array_equal(warp(images, (down, right)), wanted)


@pytest.mark.parametrize("side", [16, 17])
def test_no_change_is_exact_and_quarter_turns_go_clockwise(side):
    images = noise(3, side, side)
    np.testing.assert_array_equal(warp(images), images)
    for turns in (1, 2, -1):
        wanted = np.rot90(images, -turns, (1, 2))
        np.testing.assert_allclose(warp(images, degrees=90 * turns), wanted, atol=1e-3)


def test_magnification_above_one_enlarges():
    spot = np.zeros([1, 64, 64, 1], np.uint8)
    spot[:, 24:40, 24:40] = 200
    area = {scale: (warp(spot, scale=scale) > 100).sum() for scale in (0.8, 1.0, 1.25)}
    assert area == {0.8: 12**2, 1.0: 16**2, 1.25: 20**2}


@given(st.integers(0, 2**31 - 1))
@settings(max_examples=25, deadline=None)
def test_values_stay_in_range_and_the_mean_roughly_as_it_was(epoch):
    images = np.clip(ndimage.gaussian_filter(noise(8, 32, 32), (0, 9, 9, 0)) * 1.0, 90, 160)
    images[:, 8:20, 12:28] = 255
    got = run(images, epoch=epoch)
    assert got.dtype == np.float32 and got.shape == images.shape
    assert got.min() >= images.min() and got.max() <= 255
    assert abs(got.mean() - images.mean()) < 12
    constant = np.full([8, 16, 16, 1], 255, np.uint8)
    np.testing.assert_array_equal(run(constant, epoch=epoch), constant)


def run(images, seed=0, epoch=0, index=None, shift=0.1, rotation=15.0, zoom=0.2):
    index = jnp.arange(len(images)) if index is None else jnp.asarray(index)
    return np.asarray(_run(jnp.asarray(images), seed, epoch, index, shift, rotation, zoom))


@jax.jit(static_argnums=(1, 4, 5, 6))
def _run(images, seed, epoch, index, shift, rotation, zoom):
    keys = augment.example_keys(seed, epoch, index)
    return augment.augment(keys, images, shift=shift, rotation_degrees=rotation, zoom=zoom)


def recovered(**limits):
    """Shift (pixels), angle (degrees) and scale of 500 draws, read off two ramps."""
    side, n = 32, 500
    inner = slice(12, 20)  # far enough inside for the edge never to show
    grid = np.indices((side, side), np.float32)[..., None]
    rows, columns = (
        run(np.broadcast_to(ramp, (n, side, side, 1)), **limits)[:, inner, inner, 0]
        for ramp in grid
    )
    c = np.diff(rows, axis=1).mean((1, 2))
    s = np.diff(columns, axis=1).mean((1, 2))
    shift = 15.5 - np.stack([rows.mean((1, 2)), columns.mean((1, 2))], 1)
    return shift, np.degrees(np.arctan2(s, c)), 1 / np.hypot(c, s)


@pytest.mark.parametrize(
    ("limits", "largest"),
    [
        ({"shift": 0.2, "rotation": 0.0, "zoom": 0.0}, (6.4, 0, 0)),
        ({"shift": 0.0, "rotation": 15.0, "zoom": 0.0}, (0, 15, 0)),
        ({"shift": 0.0, "rotation": 0.0, "zoom": 0.2}, (0, 0, 0.2)),
        ({"shift": 0.1, "rotation": 10.0, "zoom": 0.1}, (3.2, 10, 0.1)),
    ],
)
def test_amounts_are_uniform_within_their_limits_and_independent(limits, largest):
    shift, degrees, scale = recovered(**limits)
    drawn = np.stack([shift[:, 0], shift[:, 1], degrees, scale - 1])
    for values, limit in zip(drawn, (largest[0], *largest), strict=True):
        assert np.abs(values).max() <= limit + 1e-4
        if limit:
            assert np.abs(values).max() > 0.98 * limit
            assert abs(values.mean()) < 0.12 * limit  # standard error 0.026
            assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)
    moving = drawn[[limit > 0 for limit in (largest[0], *largest)]]
    correlation = np.atleast_2d(np.corrcoef(moving))
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.15


def test_an_example_looks_the_same_in_any_batch_and_differs_by_seed_epoch_and_index():
    images = noise(8)
    whole = run(images, index=range(10, 18))
    order = [5, 2, 7]
    np.testing.assert_array_equal(run(images[order], index=[15, 12, 17]), whole[order])
    np.testing.assert_array_equal(run(images[3:4], index=[13]), whole[3:4])
    same = np.repeat(images[:1], 2, axis=0)
    first = run(same, index=[3, 4])
    assert np.any(first[0] != first[1])
    assert np.any(run(same, index=[3, 4], epoch=1) != first)
    assert np.any(run(same, index=[3, 4], seed=1) != first)


def test_keys_are_the_documented_fold_ins_whatever_the_default_generator():
    wanted = jax.random.key_data(
        jax.random.fold_in(jax.random.fold_in(jax.random.key(7, impl="threefry2x32"), 2), 11)
    )
    with jax.default_prng_impl("rbg"):
        keys = augment.example_keys(7, jnp.int32(2), jnp.array([11, 3], jnp.int32))
    np.testing.assert_array_equal(jax.random.key_data(keys)[0], wanted)


def test_pixels_do_not_depend_on_what_the_warp_is_compiled_into():
    """Coordinates that XLA rounds twice, differently, show as single pixels far off."""
    images = jnp.asarray(noise(32, 224, 224))
    keys = augment.example_keys(0, 0, jnp.arange(32))

    def plain(images):
        return augment.augment(keys, images, shift=0.1, rotation_degrees=15.0, zoom=0.2)

    def in_context(images):
        return jnp.concatenate([plain(images)] * 3, axis=-1) / 64 - 2

    alone = np.asarray(jax.jit(plain)(images))
    within = (np.asarray(jax.jit(in_context)(images)) + 2) * 64
    np.testing.assert_allclose(within, np.repeat(alone, 3, axis=-1), atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_switched_off_it_is_the_identity_and_costs_nothing(dtype):
    images = jnp.asarray(noise().astype(dtype))
    got = run(images, shift=0.0, rotation=0.0, zoom=0.0)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, images)
    program = _run.lower(images, 0, 0, jnp.arange(4), 0.0, 0.0, 0.0).compile().as_text()
    assert "while" not in program and "gather" not in program


@pytest.mark.parametrize("limits", [{"shift": 0.6}, {"shift": -0.1}, {"zoom": 0.3}])
def test_limits_that_coordinates_cannot_hold_are_refused(limits):
    with pytest.raises(ValueError, match="must lie in"):
        run(noise(), **limits)
