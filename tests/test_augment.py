"""Augmentation: geometry held to SciPy, tone and border to NumPy, randomness to its keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cxrjax.config import default
from cxrjax.data import augment

RNG = np.random.default_rng(0)
STILL = {"shift": 0.0, "rotation": 0.0, "zoom": 0.0}


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


def run(images, seed=0, epoch=0, index=None, shift=0.1, rotation=15.0, zoom=0.2, **more):
    index = jnp.arange(len(images)) if index is None else jnp.asarray(index)
    more = more.get("border", 0.0), more.get("gamma", 0.0)
    return np.asarray(_run(jnp.asarray(images), seed, epoch, index, shift, rotation, zoom, *more))


@jax.jit(static_argnums=(1, 4, 5, 6, 7, 8))
def _run(images, seed, epoch, index, shift, rotation, zoom, border, gamma):
    keys = augment.example_keys(seed, epoch, index)
    geometry = {"shift": shift, "rotation_degrees": rotation, "zoom": zoom}
    return augment.augment(keys, images, **geometry, border=border, gamma=gamma)


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


@pytest.mark.parametrize(
    "limits",
    [{}, STILL | {"border": 0.25}, STILL | {"gamma": 1.0}, {"border": 0.25, "gamma": 1.0}],
    ids=["geometry", "border", "gamma", "all"],
)
def test_an_example_looks_the_same_in_any_batch_and_differs_by_seed_epoch_and_index(limits):
    images = noise(8)
    whole = run(images, index=range(10, 18), **limits)
    order = [5, 2, 7]
    np.testing.assert_array_equal(run(images[order], index=[15, 12, 17], **limits), whole[order])
    np.testing.assert_array_equal(run(images[3:4], index=[13], **limits), whole[3:4])
    same = np.repeat(images[:1], 2, axis=0)
    first = run(same, index=[3, 4], **limits)
    assert np.any(first[0] != first[1])
    assert np.any(run(same, index=[3, 4], epoch=1, **limits) != first)
    assert np.any(run(same, index=[3, 4], seed=1, **limits) != first)


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
    got = run(images, **STILL)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, images)
    lowered = _run.lower(images, 0, 0, jnp.arange(4), 0.0, 0.0, 0.0, 0.0, 0.0)
    program = lowered.compile().as_text()
    assert "while" not in program and "gather" not in program


@pytest.mark.parametrize(
    "limits",
    [
        *({"shift": 0.6}, {"shift": -0.1}, {"zoom": 0.3}),
        *({"border": 0.26}, {"border": -0.1}, {"gamma": 1.1}, {"gamma": -0.1}),
    ],
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ValueError, match="must lie in"):
        run(noise(), **limits)


KEYS = augment.example_keys(0, 0, jnp.arange(500))


def folded(number, keys=KEYS):
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def test_geometry_takes_its_amounts_from_the_example_key_itself():
    images = jnp.asarray(noise(8))
    draws = np.array([jax.random.uniform(key, [4], minval=-1, maxval=1) for key in KEYS[:8]])
    wanted = augment.warp(
        images,
        shift=jnp.asarray(draws[:, :2] * np.float32([0.1 * 24, 0.1 * 32])),
        radians=jnp.deg2rad(jnp.float32(15)) * draws[:, 2],
        scale=jnp.asarray(1 + np.float32(0.2) * draws[:, 3]),
    )
    np.testing.assert_allclose(run(images), wanted, atol=1e-2)


def test_geometry_comes_first_then_tone_then_border():
    images = noise(16)
    moved = jnp.asarray(run(images))
    bent = augment.bend_tones(folded(2**31 - 1, KEYS[:16]), moved, gamma=0.8)
    covered = augment.cover_border(folded(2**31 - 2, KEYS[:16]), bent, border=0.25)
    np.testing.assert_allclose(run(images, gamma=0.8), bent, atol=1e-2)
    np.testing.assert_allclose(run(images, gamma=0.8, border=0.25), covered, atol=1e-2)
    assert np.any(np.abs(covered - bent) > 1) and np.any(np.abs(bent - moved) > 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@given(
    side=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    border=st.floats(0, 0.25),
    epoch=st.integers(0, 2**31 - 1),
)
@settings(max_examples=8, deadline=None)
def test_border_overwrites_whole_pixels_within_its_limit_and_nothing_else(
    dtype, side, border, epoch
):
    images = noise(4, *side).astype(dtype)
    keys = augment.example_keys(1, epoch, jnp.arange(4))
    got = np.asarray(augment.cover_border(keys, jnp.asarray(images), border=border))
    assert got.dtype == np.float32
    most = np.floor(border * np.array([side[0], side[0], side[1], side[1]]))
    for key, image, mine in zip(keys, images, got, strict=True):
        *shares, level = np.asarray(jax.random.uniform(key, [5]))
        top, bottom, left, right = (int(s * (m + 1)) for s, m in zip(shares, most, strict=True))
        assert np.all([top, bottom, left, right] <= most)
        wanted = np.full(image.shape, 255 * level, np.float32)
        inner = (slice(top, side[0] - bottom), slice(left, side[1] - right))
        wanted[inner] = image[inner]
        np.testing.assert_allclose(mine, wanted, atol=1e-3)
        np.testing.assert_array_equal(mine[inner], image[inner])


def test_rims_are_of_one_level_and_their_widths_uniform_and_independent():
    outside = np.full([500, 40, 20, 1], 1000, np.float32)  # no grey level
    got = np.asarray(augment.cover_border(KEYS, jnp.asarray(outside), border=0.2))[..., 0]
    inside = got == 1000
    rows, columns = inside.any(2), inside.any(1)
    widths = np.stack([part.argmax(1) for part in (rows, rows[:, ::-1], columns, columns[:, ::-1])])
    for values, most in zip(widths, (8, 8, 4, 4), strict=True):
        counts = np.bincount(values, minlength=most + 1)
        assert len(counts) == most + 1  # 0 and the most among them
        np.testing.assert_allclose(counts / 500, 1 / (most + 1), atol=0.07)  # 3 standard errors
    assert np.all(inside == rows[:, :, None] & columns[:, None])  # a rectangle is left
    covered = ~inside.all((1, 2))
    rims = np.ma.masked_array(got, inside)[covered]
    assert np.all(rims.min((1, 2)) == rims.max((1, 2)))
    levels = rims.min((1, 2)).data
    assert levels.min() >= 0 and levels.max() < 255
    np.testing.assert_allclose(np.histogram(levels, 5, (0, 255))[0] / len(levels), 0.2, atol=0.06)
    drawn = np.vstack([widths[:, covered], levels])
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 0.15


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@given(gamma=st.floats(0, 1), epoch=st.integers(0, 2**31 - 1))
@settings(max_examples=8, deadline=None)
def test_tone_curves_keep_black_and_white_and_rise_between_them(dtype, gamma, epoch):
    ramp = np.arange(256).astype(dtype)
    keys = augment.example_keys(2, epoch, jnp.arange(4))
    images = jnp.tile(ramp.reshape(1, 16, 16, 1), (4, 1, 1, 1))
    got = np.asarray(augment.bend_tones(keys, images, gamma=gamma))
    assert got.dtype == np.float32 and got.shape == (4, 16, 16, 1)
    curves = got.reshape(4, 256)
    assert np.all(curves[:, 0] == 0) and np.all(curves[:, -1] == 255)
    assert np.all(np.diff(curves, axis=1) > 0)
    limit = math.log(1 + gamma)
    for key, curve in zip(keys, curves, strict=True):
        exponent = math.exp(limit * (2 * float(jax.random.uniform(key, [])) - 1))
        assert 1 / (1 + gamma) - 1e-6 <= exponent <= 1 + gamma + 1e-6
        np.testing.assert_allclose(curve, 255 * (np.arange(256) / 255) ** exponent, atol=1e-2)


def test_exponents_are_log_uniform_within_their_limits():
    grey = jnp.full([500, 1, 1, 1], 100, jnp.uint8)
    got = np.asarray(augment.bend_tones(KEYS, grey, gamma=0.6), np.float64).ravel()
    exponents = np.log(np.log(got / 255) / math.log(100 / 255)) / math.log(1.6)
    assert np.abs(exponents).max() <= 1 + 1e-5 and np.abs(exponents).max() > 0.98
    assert abs(exponents.mean()) < 0.12
    assert exponents.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)


def test_tones_outside_the_scale_are_black_or_white():
    images = jnp.asarray([-3.0, 300.0], jnp.float32).reshape(1, 1, 2, 1)
    got = augment.bend_tones(KEYS[:1], images, gamma=0.5)
    np.testing.assert_array_equal(np.ravel(got), [0, 255])


@pytest.mark.parametrize("field", ["shift", "rotation", "zoom", "border", "gamma"])
def test_each_field_alone_is_augmentation(field):
    config = default()
    assert not augment.active(config)
    config.augment[field] = 0.1
    assert augment.active(config)
