"""Batch norm with its activation against what differentiating the plain formula gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import config
from cxrjax.models import batch_norm, classifier
from cxrjax.models.batch_norm import Moments, activate, moments, normalise, normalise_batch

EPSILON = 1e-3
ACTIVATIONS = ("linear", "relu", "relu6")


def plain(x, scale, bias, mean, var, activation):
    along = (1,) * (x.ndim - 1) + (-1,)
    z = (x - mean.reshape(along)) / jnp.sqrt(var.reshape(along) + EPSILON)
    z = z * scale.reshape(along) + bias.reshape(along)
    return {"linear": z, "relu": jnp.maximum(z, 0), "relu6": jnp.clip(z, 0, 6)}[activation]


def plain_moments(x):
    axes = tuple(range(x.ndim - 1))
    return x.mean(axes), x.var(axes)


def inputs(seed, shape, spread=3.0):
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(rng.normal(size=channels), spread, shape).astype(np.float32)
    scale, bias = rng.normal(size=(2, channels)).astype(np.float32)
    return x, scale, bias, rng.normal(size=shape).astype(np.float32)


shapes = st.sampled_from([(2, 3, 4, 5), (7, 1), (16, 3), (1, 8, 8, 2)])


@given(seed=st.integers(0, 999), shape=shapes, activation=st.sampled_from(ACTIVATIONS))
@settings(max_examples=15, deadline=None)
def test_by_the_batchs_own_moments(seed, shape, activation):
    x, scale, bias, weight = inputs(seed, shape)

    def ours(x, scale, bias):
        y, _ = normalise_batch(x, scale, bias, EPSILON, activation)
        return jnp.sum(y * weight), y

    def theirs(x, scale, bias):
        y = plain(x, scale, bias, *plain_moments(x), activation)
        return jnp.sum(y * weight), y

    compare(ours, theirs, x, scale, bias)
    _, of_batch = normalise_batch(x, scale, bias, EPSILON, activation)
    for one, other in zip(of_batch, plain_moments(x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 999), shape=shapes, activation=st.sampled_from(ACTIVATIONS))
@settings(max_examples=15, deadline=None)
def test_by_moments_at_hand_whose_gradients_are_passed_on(seed, shape, activation):
    """As two consumers of the same maps use it: the moments are computed once for both."""
    x, scale, bias, weight = inputs(seed, shape)

    def ours(x, scale, bias):
        known = moments(x)
        y = normalise(x, scale, bias, known, EPSILON, activation)
        y += normalise(x, bias, scale, known, EPSILON, activation)
        return jnp.sum(y * weight), y

    def theirs(x, scale, bias):
        known = plain_moments(x)
        y = plain(x, scale, bias, *known, activation) + plain(x, bias, scale, *known, activation)
        return jnp.sum(y * weight), y

    compare(ours, theirs, x, scale, bias)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_by_stored_moments(activation):
    x, scale, bias, weight = inputs(0, (4, 5, 5, 3))
    stored = Moments(jnp.array([0.1, -1.0, 2.0]), jnp.array([1.0, 0.5, 4.0]))

    def ours(x, scale, bias):
        y = normalise(x, scale, bias, stored, EPSILON, activation)
        return jnp.sum(y * weight), y

    def theirs(x, scale, bias):
        y = plain(x, scale, bias, *stored, activation)
        return jnp.sum(y * weight), y

    compare(ours, theirs, x, scale, bias)


def compare(ours, theirs, *arguments):
    results = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(*arguments)
        for f in (ours, theirs)
    ]
    ((_, y), gradients), ((_, other_y), other_gradients) = results
    np.testing.assert_allclose(y, other_y, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients, other_gradients, strict=True):
        scale = max(float(np.abs(other).max()), 1e-2)
        assert np.abs(one - other).max() <= 1e-4 * scale + 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_stays_near_float32_and_has_its_dtype(activation):
    x, scale, bias, weight = inputs(1, (8, 6, 6, 4), spread=1.0)

    def loss(x, scale, bias):
        y, _ = normalise_batch(x, scale, bias, EPSILON, activation)
        return jnp.sum(y.astype(jnp.float32) * weight)

    exact = jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias)
    narrow = jax.grad(loss, argnums=(0, 1, 2))(jnp.asarray(x, jnp.bfloat16), scale, bias)
    assert [g.dtype for g in narrow] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for one, other in zip(narrow, exact, strict=True):
        one = np.asarray(one, np.float32)
        assert np.abs(one - other).mean() <= 0.03 * np.abs(other).max()


def test_large_means_do_not_spoil_the_variance():
    """Where E[x^2] - E[x]^2 has no correct digit left."""
    x = 1000 + np.random.default_rng(0).normal(size=(64, 4, 4, 2)).astype(np.float32)
    np.testing.assert_allclose(
        moments(jnp.asarray(x)).var, x.astype(np.float64).var((0, 1, 2)), rtol=1e-3
    )


def test_corners_pass_no_gradient():
    corners = jnp.array([-1.0, 0.0, 3.0, 6.0, 7.0])
    for activation, expected in (("relu", [0, 0, 1, 1, 1]), ("relu6", [0, 0, 1, 0, 0])):
        gradient = jax.vmap(jax.grad(lambda v, a=activation: activate(v, a)))(corners)
        np.testing.assert_array_equal(gradient, expected)


def test_densenet_computes_the_moments_of_each_channel_once(monkeypatch):
    """And that changes neither the features nor the running statistics."""
    settings = config.default()
    settings.model.name = "densenet121"
    model = classifier.build(settings.model, n_classes=4)
    graphdef, params, batch_stats = classifier.split(model)
    names = classifier.trainable_layer_names(model, -1)
    x = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    counted = []
    original = batch_norm.moments

    def run():
        network = classifier.merge(graphdef, params, batch_stats)
        maps = network.features(x, train_layers=names)
        return maps, classifier.batch_stats(network)

    from cxrjax.models import densenet

    def counting(x):
        counted.append(x.shape[-1])
        return original(x)

    with monkeypatch.context() as patch:
        patch.setattr(densenet, "moments", counting)
        ours = jax.jit(run)()
    # The first maps of each of four blocks, then the 32 that each of its layers adds.
    assert counted.count(32) == 58
    assert [n for n in counted if n != 32] == [64, 128, 256, 512]
    with monkeypatch.context() as patch:
        patch.setattr(densenet._GrowingMoments, "of", lambda self, x: original(x))
        theirs = jax.jit(run)()
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
