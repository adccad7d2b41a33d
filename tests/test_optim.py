"""Optimizers and losses against Keras', and what frozen parameters cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.utils.class_weight import compute_class_weight

from cxrjax import losses, optim


@pytest.mark.parametrize(
    ("name", "momentum"), [("adam", 0.0), ("adamax", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
)
def test_ten_steps_equal_keras(name, momentum):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    grads = rng.normal(size=(10, 5, 3)).astype(np.float32)
    theirs = {
        "adam": lambda: keras.optimizers.Adam(1e-2),
        "adamax": lambda: keras.optimizers.Adamax(1e-2),
        "sgd": lambda: keras.optimizers.SGD(1e-2, momentum=momentum),
    }[name]()
    variable = keras.Variable(start)
    theirs.build([variable])
    tx = optim.optimizer(name, momentum)
    params = jnp.asarray(start)
    state = tx.init(params)
    for grad in grads:
        theirs.apply([keras.ops.convert_to_tensor(grad)])
        updates, state = tx.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u: 1e-2 * u, updates))
    np.testing.assert_allclose(params, np.asarray(variable), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("warmup", "total"), [(0, 12), (3, 12), (11, 12), (4, None)])
def test_the_rate_warms_up_and_falls_as_optax_has_it(warmup, total):
    theirs = optax.linear_schedule(0.0, 1.0, warmup)
    if total is not None:
        theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, total)
    lengths = [n and jnp.float32(n) for n in (warmup or None, total)]
    steps = jnp.arange(15)
    ours = jax.jit(jax.vmap(optim.rate_factor, in_axes=(0, None, None)))(steps, *lengths)
    np.testing.assert_allclose(ours, [theirs(int(step)) for step in steps], atol=1e-6)
    assert optim.rate_factor(steps) == 1


def test_losses_equal_keras():
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 4)).astype(np.float32) * 5
    labels = rng.integers(0, 4, 20)
    theirs = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    ours = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    theirs = keras.losses.binary_crossentropy(
        (labels > 1)[:, None].astype("float32"), logits[:, :1], from_logits=True
    )
    ours = losses.cross_entropy(jnp.asarray(logits[:, :1]), jnp.asarray(labels > 1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothed_losses_equal_keras(smoothing):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 4)).astype(np.float32) * 5
    labels = rng.integers(0, 4, 20)
    options = {"from_logits": True, "label_smoothing": smoothing}
    theirs = keras.losses.categorical_crossentropy(np.eye(4)[labels], logits, **options)
    ours = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), jnp.float32(smoothing))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    positive = (labels > 1)[:, None]
    theirs = keras.losses.binary_crossentropy(positive.astype("float32"), logits[:, :1], **options)
    ours = losses.cross_entropy(jnp.asarray(logits[:, :1]), jnp.asarray(labels > 1), smoothing)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_one_logit_is_the_evidence_for_class_one():
    probabilities = losses.probabilities(jnp.array([[2.0], [-1.0]]))
    np.testing.assert_allclose(probabilities[:, 1], 1 / (1 + np.exp([-2.0, 1.0])), rtol=1e-6)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def test_balanced_class_weights_equal_sklearn():
    labels = np.array([0] * 7 + [1] * 2 + [2])
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(optim.class_weights("balanced", labels, 3), theirs)
    assert optim.class_weights("none", labels, 3) == (1.0, 1.0, 1.0)


def test_partition_is_undone_by_combine_and_frozen_leaves_cost_no_optimizer_memory():
    params = {
        "backbone": {f"layer{i}": {"kernel": jnp.full((4, i + 1), i)} for i in range(5)},
        "head": {"logits": {"kernel": jnp.ones((5, 2))}},
    }
    trainable, frozen = optim.partition(params, frozenset({"layer3", "layer4"}))
    assert set(trainable["backbone"]) == {"layer3", "layer4"}
    assert "head" not in frozen
    jax.tree.map(np.testing.assert_array_equal, optim.combine(trainable, frozen), params)
    shapes = [leaf.shape for leaf in jax.tree.leaves(optim.optimizer("adam").init(trainable))]
    moments = sorted(shape for shape in shapes if shape)
    assert moments == sorted([(4, 4), (4, 5), (5, 2)] * 2)
    assert optim.count(trainable) == 16 + 20 + 10
