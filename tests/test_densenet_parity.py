"""DenseNet121 against keras.applications: layers, every stage's maps, statistics."""

import io
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from cxrjax import config
from cxrjax.models import classifier, registry, weights

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

TOLERANCE = 2e-5  # of the largest value, float32; 1.6e-6 is usual
WEIGHT_FILE = "weights/densenet121_weights_tf_dim_ordering_tf_kernels_notop.float16.h5"
KERAS_NAMES = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def new_classifier():
    settings = config.default()
    settings.model.name = "densenet121"
    return classifier.build(settings.model, n_classes=4, channels=3)


def with_weights(path):
    graphdef, params, batch_stats = classifier.split(new_classifier())
    params, batch_stats = weights.assign(params, batch_stats, weights.load_tensors(path)[0])
    return graphdef, params, batch_stats


@pytest.fixture(scope="module")
def original():
    """Keras' network with random weights and random batch-norm statistics."""
    model = keras.applications.DenseNet121(weights=None, include_top=False)
    rng = np.random.default_rng(0)
    ranges = {"gamma": (0.5, 1.5), "beta": (-0.5, 0.5), "moving_mean": (-0.5, 0.5)}
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name == "kernel":
                limit = np.sqrt(6 / np.prod(weight.shape[:-1]))  # keeps the scale through ReLU
                weight.assign(rng.uniform(-limit, limit, weight.shape))
            else:
                weight.assign(rng.uniform(*ranges.get(weight.name, (0.5, 2.0)), weight.shape))
    return model


@pytest.fixture(scope="module")
def saved(original, tmp_path_factory):
    """The original in the file layout of the keras.applications releases."""
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    path = tmp_path_factory.mktemp("weights") / "densenet121.h5"
    with h5py.File(path, "w") as file:
        legacy.save_weights_to_hdf5_group(file, original)
    return path


@pytest.fixture(scope="module")
def ours(saved):
    return with_weights(saved)


def test_layers_are_keras_layers_in_keras_order(original):
    def canonical(name):  # Keras numbers its automatic names through the whole process
        return name.rstrip("0123456789").rstrip("_") if name.startswith(("zero", "input")) else name

    ours = new_classifier().backbone.layers
    assert [canonical(n) for n in ours] == [canonical(layer.name) for layer in original.layers]
    assert len(ours) == len(set(ours)) == 427


def test_every_parameter_is_there(original, ours):
    _, params, batch_stats = ours
    tensors = weights.backbone_tensors(params, batch_stats)
    assert sum(v.size for v in tensors.values()) == 7_037_504 == original.count_params()
    assert registry.spec("densenet121").parameters == 7_037_504
    for name, value in tensors.items():
        layer, tensor = name.split("/")
        kind = KERAS_NAMES.get(tensor, "beta" if layer.endswith("bn") else tensor)
        if tensor == "kernel":
            kind = "kernel"
        theirs = {w.name: w for w in original.get_layer(layer).weights}[kind]
        np.testing.assert_array_equal(value, theirs.numpy(), err_msg=name)


@pytest.mark.parametrize("size", [96, 109])
def test_every_stage_equals_keras(original, ours, size):
    x = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    maps = jax.jit(lambda p, b, x: classifier.merge(ours[0], p, b).backbone.stages(x))(*ours[1:], x)
    assert len(maps) == 64  # 58 dense blocks' outputs, 3 transitions, two of the stem, the last
    parts = keras.Model(original.input, [original.get_layer(name).output for name in maps])
    theirs = parts(x, training=False)
    errors = {
        name: relative_error(maps[name], there) for name, there in zip(maps, theirs, strict=True)
    }
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.2e}"
    assert min(np.abs(there).max() for there in theirs) > 1e-2  # and not because all is nought


def test_training_mode_equals_keras_in_maps_and_statistics(original, saved):
    """Only batch norm inside trainable layers uses, and moves, batch statistics."""
    count = 20
    graphdef, params, batch_stats = with_weights(saved)
    twin = keras.models.clone_model(original)
    twin.set_weights(original.get_weights())
    for layer in twin.layers:
        layer.trainable = layer in twin.layers[-count:]
    x = np.random.default_rng(2).normal(size=(3, 64, 64, 3)).astype(np.float32)
    theirs = twin(x, training=True)
    names = classifier.trainable_layer_names(new_classifier(), count)

    @jax.jit
    def forward(params, batch_stats, x):
        model = classifier.merge(graphdef, params, batch_stats)
        maps = model.features(x, train_layers=names)
        return maps, classifier.batch_stats(model)["backbone"]

    maps, moved = forward(params, batch_stats, x)
    assert relative_error(maps, theirs) <= TOLERANCE
    for layer, statistics in moved.items():
        mean, variance = twin.get_layer(layer).get_weights()[2:]
        assert relative_error(statistics["mean"], mean) <= TOLERANCE, layer
        assert relative_error(statistics["var"], variance) <= TOLERANCE, layer
        same = np.array_equal(statistics["var"], batch_stats["backbone"][layer]["var"])
        assert same == (layer not in names), layer


@pytest.mark.parametrize("count", [0, 1, 20, -1])
def test_trainable_tensors_are_those_of_keras(original, count):
    model = new_classifier()
    names = classifier.trainable_layer_names(model, count)
    _, params, batch_stats = classifier.split(model)
    for layer in original.layers:
        layer.trainable = True
    original.trainable = count != 0
    if count > 0:
        for layer in original.layers[:-count]:
            layer.trainable = False
    theirs = {w.path for w in original.trainable_weights}
    kept = {w.path for w in original.non_trainable_weights}
    original.trainable = True
    ours = {
        f"{layer}/{'beta' if layer.endswith('bn') and t == 'bias' else KERAS_NAMES.get(t, t)}"
        for layer, group in params["backbone"].items()
        for t in group
        if layer in names
    }
    assert ours == theirs
    statistics = {
        f"{layer}/{KERAS_NAMES[t]}"
        for layer, group in batch_stats["backbone"].items()
        for t in group
    }
    assert statistics <= kept
    assert len(statistics) == 2 * 121


def test_real_weights_on_a_real_radiograph_equal_keras(shared):
    path = shared(WEIGHT_FILE)
    with zipfile.ZipFile(shared("data/covid-normal.zip")) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".webp"))
        image = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((224, 224))
    pixels = np.repeat(np.asarray(image, np.float32)[None, :, :, None], 3, axis=3)
    x = keras.applications.densenet.preprocess_input(pixels.copy())
    entry = registry.spec("densenet121")
    np.testing.assert_allclose((pixels / 255 - entry.mean) / entry.std, x, atol=1e-5)
    original = keras.applications.DenseNet121(weights=str(path), include_top=False)
    graphdef, params, batch_stats = with_weights(path)
    maps = jax.jit(lambda p, b, x: classifier.merge(graphdef, p, b).features(x))(
        params, batch_stats, x
    )
    assert maps.shape == (1, 7, 7, 1024)
    assert relative_error(maps, original(x, training=False)) <= TOLERANCE
