"""Layers against Keras, the head, the baseline, split and merge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import config
from cxrjax.errors import UserError
from cxrjax.models import classifier, registry
from cxrjax.models.head import Head
from cxrjax.models.layers import BatchNorm, Conv, dropout


def model_config(**fields):
    settings = config.default()
    settings.update_from_flattened_dict({f"model.{k}": v for k, v in fields.items()})
    return settings.model


REPORT_F = {"head.batch_norm": True, "head.dense": 256, "head.dropout": 0.3}


# Layers


@pytest.mark.parametrize(("stride", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_convolution_equals_keras(stride, padding):
    keras = pytest.importorskip("keras")
    layer = Conv(
        np.random.default_rng(0), (3, 3, 2, 5), stride=stride, padding=padding, use_bias=True
    )
    layer.bias.set_value(jnp.arange(5.0))
    original = keras.layers.Conv2D(5, 3, strides=stride, padding=padding.lower())
    original.build((None, None, None, 2))
    original.set_weights([np.asarray(layer.kernel[...]), np.arange(5.0)])
    x = np.random.default_rng(1).normal(size=(2, 10, 9, 2)).astype(np.float32)
    np.testing.assert_allclose(layer(x), original(x), atol=1e-5)


def test_initial_kernels_have_the_spread_of_keras():
    keras = pytest.importorskip("keras")
    shape = (3, 3, 32, 64)
    ours = np.asarray(Conv(np.random.default_rng(0), shape).kernel[...])
    theirs = np.asarray(keras.initializers.GlorotUniform(seed=0)(shape))
    assert ours.std() == pytest.approx(theirs.std(), rel=0.02)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.01)


@pytest.mark.parametrize("shape", [(8, 5, 6, 3), (8, 3)])
def test_batch_norm_trains_as_keras_does(shape):
    keras = pytest.importorskip("keras")
    rng = np.random.default_rng(0)
    scale, bias, mean = rng.normal(size=(3, 3)).astype(np.float32)
    var = np.exp(mean)
    layer, original = BatchNorm(3), keras.layers.BatchNormalization()
    for variable, value in zip(
        (layer.scale, layer.bias, layer.mean, layer.var), (scale, bias, mean, var), strict=True
    ):
        variable.set_value(jnp.asarray(value))
    original.build(shape)
    original.set_weights([scale, bias, mean, var])
    x = (3 + 2 * rng.normal(size=shape)).astype(np.float32)
    for train in (True, True, False):  # the running statistics of two steps, then their use
        np.testing.assert_allclose(layer(x, train=train), original(x, training=train), atol=1e-4)
    np.testing.assert_allclose(layer.mean[...], original.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(layer.var[...], original.moving_variance, rtol=1e-5)


def test_batch_norm_keeps_its_precision_far_from_zero():
    x = (1e4 + np.random.default_rng(0).normal(size=(64, 3))).astype(np.float32)
    layer = BatchNorm(3, epsilon=0)
    assert layer(x, train=True).std() == pytest.approx(1, abs=0.01)


def test_dropout_keeps_the_mean_and_the_fraction():
    x = dropout(jnp.ones((200, 200)), 0.3, jax.random.key(0))
    assert float((x == 0).mean()) == pytest.approx(0.3, abs=0.02)
    assert float(x.mean()) == pytest.approx(1, abs=0.02)


# Head


def test_head_of_report_f_equals_keras():
    keras = pytest.importorskip("keras")
    head = Head(np.random.default_rng(0), 6, 4, model_config(**REPORT_F).head)
    original = keras.Sequential(
        [
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(4),
        ]
    )
    original.build((None, 3, 3, 6))
    statistics = np.random.default_rng(1).uniform(0.5, 1.5, (4, 6)).astype(np.float32)
    norm = head.batch_norm
    for variable, value in zip(
        (norm.scale, norm.bias, norm.mean, norm.var), statistics, strict=True
    ):
        variable.set_value(jnp.asarray(value))
    kernels = [head.dense.kernel, head.dense.bias, head.logits.kernel, head.logits.bias]
    original.set_weights([*statistics, *(np.asarray(k[...]) for k in kernels)])
    maps = np.random.default_rng(2).normal(size=(5, 3, 3, 6)).astype(np.float32)
    np.testing.assert_allclose(head(maps), original(maps, training=False), atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "n_classes", "layers", "n_logits"),
    [
        ({}, 2, {"logits"}, 1),
        ({"head.dense": 128, "head.dropout": 0.3}, 2, {"dense", "logits"}, 1),
        ({"head.one_logit": False}, 2, {"logits"}, 2),
        (REPORT_F, 4, {"batch_norm", "dense", "logits"}, 4),
    ],
)
def test_head_follows_the_configuration(fields, n_classes, layers, n_logits):
    model = classifier.build(model_config(filters=2, **fields), n_classes)
    _, params, _ = classifier.split(model)
    assert set(params["head"]) == layers
    logits = model.classify(jnp.ones((3, 2, 2, 8)))
    assert logits.shape == (3, n_logits)


def test_dropout_acts_in_training_only_and_follows_its_key():
    model = classifier.build(model_config(filters=2), 3)
    maps = jnp.ones((4, 2, 2, 8))
    first, again, other = (
        model.classify(maps, train=True, key=jax.random.key(seed), rate=0.5) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(model.classify(maps), model.classify(maps))
    with pytest.raises(ValueError, match="key"):
        model.classify(maps, train=True, rate=0.5)


# Classifier


def test_split_and_merge_are_inverse_and_the_trees_are_plain_and_two_levels_deep():
    model = classifier.build(model_config(filters=2, **REPORT_F), 4)
    graphdef, params, batch_stats = classifier.split(model)
    for tree in (params, batch_stats):
        assert set(tree) == {"backbone", "head"}
        for layer in (group for part in tree.values() for group in part.values()):
            assert type(layer) is dict
            assert all(isinstance(tensor, jax.Array) for tensor in layer.values())
    assert set(params["backbone"]) <= set(model.backbone.layers)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    twin = classifier.merge(graphdef, params, batch_stats)
    np.testing.assert_array_equal(
        twin.classify(twin.features(x)), model.classify(model.features(x))
    )


def test_same_seed_same_weights_and_other_seed_others():
    def kernels(seed):
        return classifier.split(classifier.build(model_config(filters=2), 2, seed=seed))[1]

    jax.tree.map(np.testing.assert_array_equal, kernels(0), kernels(0))
    one, other = kernels(0), kernels(1)
    assert not np.array_equal(one["head"]["logits"]["kernel"], other["head"]["logits"]["kernel"])
    assert not np.array_equal(
        one["backbone"]["conv2"]["kernel"], other["backbone"]["conv2"]["kernel"]
    )


def test_only_named_layers_move_their_statistics():
    model = classifier.build(model_config(filters=2), 2)
    before = classifier.batch_stats(model)["backbone"]
    names = classifier.trainable_layer_names(model, 2)
    assert names == {"bn4", "relu4"}
    model.features(jnp.ones((2, 64, 64, 1)), train_layers=names)
    after = classifier.batch_stats(model)["backbone"]
    changed = {n for n in before if not np.array_equal(before[n]["var"], after[n]["var"])}
    assert changed == {"bn4"}


def test_bfloat16_computes_in_bfloat16_and_answers_in_float32():
    fields = model_config(filters=4, **REPORT_F)
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype(np.float32)
    answers = []
    for dtype in ("float32", jnp.bfloat16):
        model = classifier.build(fields, 4, dtype=dtype)
        _, params, batch_stats = classifier.split(model)
        kept = {leaf.dtype.name for leaf in jax.tree.leaves((params, batch_stats))}
        assert kept == {"float32"}
        assert model.features(x).dtype == dtype
        answers.append(model.classify(model.features(x)))
    assert answers[1].dtype == jnp.float32
    np.testing.assert_allclose(answers[0], answers[1], atol=0.05 * np.abs(answers[0]).max())


def test_every_parameter_receives_a_gradient():
    model = classifier.build(model_config(filters=2, **REPORT_F), 4)
    graphdef, params, batch_stats = classifier.split(model)
    x = np.random.default_rng(0).normal(size=(4, 64, 64, 1)).astype(np.float32)

    def loss(params):
        model = classifier.merge(graphdef, params, batch_stats)
        maps = model.features(x, train_layers=frozenset(model.backbone.layers))
        logits = model.classify(maps, train=True, key=jax.random.key(0))
        return jnp.sum(jnp.square(logits - 1) * jnp.arange(4.0)[None, :])

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params)):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize(("size", "side"), [(64, 8), (99, 12), (128, 16)])
def test_baseline_takes_any_size(size, side):
    model = classifier.build(model_config(filters=2), 2)
    assert model.features(jnp.zeros((1, size, size, 1))).shape == (1, side, side, 8)


def test_baseline_learns_within_a_few_steps():
    model = classifier.build(model_config(filters=4), 2)
    graphdef, params, batch_stats = classifier.split(model)
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2
    x = rng.normal(size=(16, 64, 64, 1)).astype(np.float32)
    x[labels == 1, 20:40, 20:40] += 1  # a blurred patch marks the second class
    tx = optax.adam(1e-2)

    @jax.jit
    def step(params, batch_stats, memory):
        def loss(params):
            model = classifier.merge(graphdef, params, batch_stats)
            maps = model.features(x, train_layers=frozenset(model.backbone.layers))
            logits = model.classify(maps, train=True)[:, 0]
            losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(np.float32))
            return losses.mean(), classifier.batch_stats(model)

        (value, moved), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, memory = tx.update(gradient, memory)
        return optax.apply_updates(params, updates), moved, memory, value

    memory, values = tx.init(params), []
    for _ in range(15):
        params, batch_stats, memory, value = step(params, batch_stats, memory)
        values.append(float(value))
    assert values[-1] < 0.3 * values[0]


def test_impossible_requests_are_explained():
    model = classifier.build(model_config(filters=2), 2)
    with pytest.raises(UserError, match="has 16 layers"):
        classifier.trainable_layer_names(model, 17)
    assert classifier.trainable_layer_names(model, 16) == frozenset(model.backbone.layers)
    assert classifier.trainable_layer_names(model, 0) == frozenset()
    with pytest.raises(UserError, match="did you mean densenet121"):
        registry.spec("densnet121")
    contract = {"model": "mobilenetv2", "channels": 1}
    with pytest.raises(UserError, match="those of mobilenetv2, not of densenet121"):
        classifier.build(model_config(name="densenet121"), 2, contract=contract)


@pytest.mark.parametrize("name", registry.names())
def test_registry_agrees_with_the_networks(name):
    entry = registry.spec(name)
    assert len(entry.mean) == len(entry.std) == entry.channels
    backbone = entry.load()(np.random.default_rng(0), channels=entry.channels)
    assert entry.cam_layer == backbone.layers[-1]
    shape = (1, max(64, entry.smallest), max(64, entry.smallest), entry.channels)
    stages = jax.eval_shape(backbone.stages, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert [name for name, _ in backbone.chain()][-1] == entry.cam_layer
    assert stages[entry.cam_layer].shape[-1] == backbone.features
    assert set(stages) <= set(backbone.layers)
