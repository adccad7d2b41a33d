"""Every lowering that a platform may choose, against the plain operation: values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import runtime
from cxrjax.models import lowering
from cxrjax.models.layers import Conv, Grey
from cxrjax.models.lowering import (
    average_pool,
    average_pool_same,
    convolve,
    depthwise,
    max_pool,
)


@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    window=st.sampled_from([(2, 2), (3, 2)]),  # size, stride
    seed=st.integers(0, 2**16),
)
def test_max_pool_by_slices_equals_reduce_window_in_value_and_gradient(height, width, window, seed):
    rng = np.random.default_rng(seed)
    # Few levels, so that most windows hold ties; both lowerings must break them alike.
    x = rng.integers(-2, 3, (2, height, width, 3)).astype(np.float32)
    shape = (2, (height - window[0]) // 2 + 1, (width - window[0]) // 2 + 1, 3)
    cotangent = rng.normal(size=shape).astype(np.float32)

    def plain(x):
        around = (1, window[0], window[0], 1), (1, 2, 2, 1), "VALID"
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, *around)

    def value_and_gradient(pool):
        value, pull_back = jax.vjp(pool, x)
        return value, pull_back(cotangent)[0]

    pools = [
        functools.partial(max_pool, size=window[0], stride=2, platform=platform)
        for platform in ("cpu", "gpu")
    ]
    (value, gradient), *ours = jax.jit(lambda: [value_and_gradient(p) for p in (plain, *pools)])()
    for our_value, our_gradient in ours:
        np.testing.assert_array_equal(our_value, value)
        np.testing.assert_allclose(our_gradient, gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_max_pool_passes_nan_on(platform):
    for place in range(4):
        x = np.zeros(4, np.float32)
        x[place] = np.nan
        assert np.isnan(max_pool(jnp.asarray(x).reshape(1, 2, 2, 1), platform=platform)).all()


def test_pools_equal_keras_on_odd_sides():
    keras = pytest.importorskip("keras")
    x = np.random.default_rng(0).normal(size=(2, 9, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(average_pool(x), keras.layers.AveragePooling2D(2)(x), rtol=1e-5)
    np.testing.assert_array_equal(max_pool(x), keras.layers.MaxPooling2D(2)(x))
    np.testing.assert_array_equal(max_pool(x, 3, 2), keras.layers.MaxPooling2D(3, strides=2)(x))
    np.testing.assert_allclose(
        average_pool_same(x),
        keras.layers.AveragePooling2D(3, strides=1, padding="same")(x),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("side", [1, 2, 8])
def test_average_pool_counts_only_what_lies_inside(side):
    ones = jnp.ones((1, side, side + 1, 2))
    np.testing.assert_allclose(average_pool_same(ones), ones, rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", ((1, 1), (1, 1))])
@pytest.mark.parametrize("shape", [(8, 8), (9, 6)])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_depthwise_equals_a_convolution_for_each_channel(stride, padding, shape, platform):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5, 1)).astype(np.float32)

    def plain(x, kernel):
        return jnp.concatenate(
            [
                jax.lax.conv_general_dilated(
                    x[..., c : c + 1],
                    kernel[:, :, c : c + 1],
                    (stride, stride),
                    padding,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
                for c in range(5)
            ],
            axis=-1,
        )

    fast = functools.partial(depthwise, stride=stride, padding=padding, platform=platform)
    ours, theirs = fast(x, kernel), plain(x, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    weight = rng.normal(size=theirs.shape).astype(np.float32)
    for argument in (0, 1):
        gradients = [
            jax.grad(lambda *a, f=f: jnp.sum(f(*a) * weight), argument)(x, kernel)
            for f in (fast, plain)
        ]
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 12), (9, 14)])
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((3, 3), (3, 3)), ((0, 1), (0, 1))])
def test_the_stem_over_blocks_equals_the_plain_convolution(shape, size, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 1)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 5)).astype(np.float32)
    values, gradients = [], []
    for platform in ("cpu", "gpu"):
        convolution = functools.partial(convolve, stride=2, padding=padding, platform=platform)
        value, pull_back = jax.vjp(convolution, x, kernel)
        weight = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
        values.append(value)
        gradients.append(pull_back(weight))
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    for ours, plain in zip(*gradients, strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-4)


def _plain_convolution(x, kernel, stride, padding):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=layout
    )


@pytest.mark.parametrize("size", [1, 3, (1, 7), 4])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 1), (2, 0))])
@pytest.mark.parametrize("batch", [2, 160])  # 160 x 9 x 12 rows: a product in parts
def test_convolution_on_a_cpu_equals_the_plain_one_in_value_and_gradients(
    size, stride, padding, batch
):
    rng = np.random.default_rng(0)
    height, width = (size, size) if isinstance(size, int) else size
    x = rng.normal(size=(batch, 9, 12, 6)).astype(np.float32)
    kernel = rng.normal(size=(height, width, 6, 5)).astype(np.float32)
    fast = functools.partial(convolve, stride=stride, padding=padding, platform="cpu")
    plain = functools.partial(_plain_convolution, stride=stride, padding=padding)
    (value, pull_back), (expected, pull_back_plain) = (jax.vjp(f, x, kernel) for f in (fast, plain))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    weight = rng.normal(size=expected.shape).astype(np.float32)
    for ours, theirs in zip(pull_back(weight), pull_back_plain(weight), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("size", [1, 3])
def test_convolution_on_a_cpu_keeps_bfloat16_and_is_near_the_one_in_float32(size):
    rng = np.random.default_rng(0)
    x, kernel, dy = (
        jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
        for shape in ((160, 9, 12, 6), (size, size, 6, 5), (160, 9, 12, 5))
    )
    found = []
    for dtype in (jnp.bfloat16, jnp.float32):
        arguments = x.astype(dtype), kernel.astype(dtype)
        value, pull_back = jax.vjp(lambda *a: convolve(*a, 1, "SAME", platform="cpu"), *arguments)
        found.append((value, *pull_back(dy.astype(dtype))))
        assert {a.dtype for a in found[-1]} == {jnp.dtype(dtype)}
    for half, whole in zip(*found, strict=True):
        scale = np.abs(whole).max()
        np.testing.assert_allclose(half.astype(np.float32), whole, rtol=0.01, atol=0.01 * scale)


@pytest.mark.skipif(not runtime.has_onednn(), reason="this jaxlib has no oneDNN")
def test_gradients_of_kernels_are_not_left_to_onednn():
    def calls(f):
        x, kernel = jnp.ones((8, 32, 32, 32)), jnp.ones((3, 3, 32, 32))

        def gradient(x, kernel):
            value, pull_back = jax.vjp(lambda kernel: f(x, kernel, 1, "SAME"), kernel)
            return value, pull_back(value)[0]

        return jax.jit(gradient).lower(x, kernel).compile().as_text().count("onednn$conv")

    if not calls(_plain_convolution):
        pytest.skip("on this processor oneDNN is not asked")
    assert calls(_plain_convolution) > calls(convolve) > 0


@pytest.mark.skipif(not runtime.has_onednn(), reason="this jaxlib has no oneDNN")
def test_the_stem_of_grey_images_keeps_its_map_out_of_onednns_convolution(monkeypatch):
    stem = Conv(np.random.default_rng(0), (7, 7, 3, 64), stride=2)

    def text():
        def apply(pixels):
            return stem(Grey(pixels, scale=(1.0, 1.0, 1.0), offset=(0.5, 0.5, 0.5)))

        return jax.jit(apply).lower(jnp.ones((8, 64, 64, 1), jnp.bfloat16)).compile().as_text()

    kept_apart = text()
    monkeypatch.setattr(lowering, "apart", lambda y: y)
    if "BINARY_ADD" not in text():
        pytest.skip("on this processor oneDNN is not asked to add")
    assert "onednn$conv" in kept_apart and "BINARY_ADD" not in kept_apart
