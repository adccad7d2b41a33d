"""Every file layout Keras writes gives the same tensors under our names, whatever its numbering."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from cxrjax.errors import UserError
from cxrjax.models import keras_h5, weights

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

OURS = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}
SUFFIXES = pytest.mark.parametrize("suffix", [".h5", ".keras", ".weights.h5"])


def backbone(seed=0, name="backbone"):
    """Automatic and given names, convolutions with and without bias, batch norm without scale."""
    layers, rng = keras.layers, np.random.default_rng(seed)
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(image)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Rescaling(2.0)(x * 1.0)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="wide_depthwise")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(5, 1, name="project")(x)
    x = layers.Conv2D(5, 1)(x)
    model = keras.Model(image, x, name=name)
    model.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in model.get_weights()])
    return model


def expected(model):
    """{"layer/tensor": array} of a model, automatic names numbered from 0 in order of creation."""
    counts, tensors = {}, {}
    for layer in model.layers:
        if not layer.weights:
            continue
        name = layer.name
        for kind in ("conv2d", "batch_normalization"):
            if name.startswith(kind):
                counts[kind] = counts.get(kind, -1) + 1
                name = f"{kind}_{counts[kind]}" if counts[kind] else kind
        for weight in layer.weights:
            tensors[f"{name}/{OURS.get(weight.name, weight.name)}"] = np.asarray(weight)
    return tensors


def save(model, path):
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def assert_same(read, wanted):
    assert sorted(read) == sorted(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
        assert read[name].dtype == np.float32


@SUFFIXES
@pytest.mark.parametrize("shift", [0, 1])
def test_names_do_not_depend_on_what_was_built_before(tmp_path, suffix, shift):
    keras.utils.clear_session(free_memory=False)
    for _ in range(shift):
        backbone()
    model = backbone(seed=1)
    names = [layer.name for layer in model.layers if "conv2d" in layer.name]
    assert names == [["conv2d", "conv2d_1"], ["conv2d_2", "conv2d_3"]][shift]
    if (
        suffix == ".weights.h5"
    ):  # has no config: three tensors of batch norm are beta's, as ours are
        assert model.get_layer(names[0]) is model.layers[1]
    assert_same(keras_h5.read(save(model, tmp_path / f"w{suffix}")), expected(model))


def nestings():
    def sequential(model):
        layers = keras.layers
        return keras.Sequential([keras.Input((8, 8, 3)), model, layers.Flatten(), layers.Dense(2)])

    def functional(model):
        image = keras.Input((8, 8, 3))
        augmented = keras.Sequential([keras.layers.RandomFlip()])
        x = keras.layers.GlobalAveragePooling2D()(model(augmented(image)))
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Dropout(0.5)(keras.layers.Dense(3, name="conv2d_90")(x))
        classifier = keras.Model(image, keras.layers.Dense(2, name="top")(x))
        classifier.compile("adam", "mse")
        classifier.optimizer.build(classifier.trainable_variables)  # is saved too
        return classifier

    def deep(model):
        return keras.Sequential([keras.Input((8, 8, 3)), sequential(model)])

    return {"sequential": sequential, "functional": functional, "deep": deep}


@SUFFIXES
@pytest.mark.parametrize("nesting", nestings())
def test_a_backbone_inside_a_classifier_is_found(tmp_path, suffix, nesting):
    model = backbone(seed=2)
    path = save(nestings()[nesting](model), tmp_path / f"w{suffix}")
    if (nesting, suffix) == ("deep", ".h5"):
        # The old layout lists both models' tensors in one group: the head cannot be told apart.
        assert any("dense" in name for name in keras_h5.read(path))
        return
    assert_same(keras_h5.read(path), expected(model))


@SUFFIXES
def test_layers_beside_a_backbone_that_is_not_a_layer_count(tmp_path, suffix):
    model = backbone()
    x = keras.layers.Dense(2, name="mine")(keras.layers.Flatten()(model.output))
    path = save(keras.Model(model.input, x), tmp_path / f"w{suffix}")
    assert {"mine/kernel", "mine/bias"} < set(keras_h5.read(path))


@SUFFIXES
def test_two_backbones_are_one_too_many(tmp_path, suffix):
    image = keras.Input((8, 8, 3))
    parts = [backbone(name=name)(image) for name in ("first", "second")]
    path = save(keras.Model(image, keras.layers.Add()(parts)), tmp_path / f"w{suffix}")
    with pytest.raises(UserError, match=r"several models as layers \(first, second\)"):
        keras_h5.read(path)


@SUFFIXES
def test_other_layers_are_named(tmp_path, suffix):
    image = keras.Input((4,))
    x = keras.layers.LayerNormalization(name="norm")(image)
    x = keras.layers.Embedding(3, 2, name="mine")(x)
    path = save(keras.Model(image, x), tmp_path / f"w{suffix}")
    with pytest.raises(UserError, match=r"'mine/[\w/]+' of a kind unknown|'norm/\d'"):
        keras_h5.read(path)


def test_tensors_below_other_groups_are_not_passed_over(tmp_path):
    path = save(backbone(), tmp_path / "w.weights.h5")
    with h5py.File(path, "a") as file:
        file["layers/conv2d/lora/vars/0"] = np.ones(3, np.float32)
    with pytest.raises(UserError, match="lora/vars/0' of a kind unknown"):
        keras_h5.read(path)


def test_the_config_of_an_archive_decides_what_a_tensor_is(tmp_path):
    """Three tensors of a batch norm can be without gamma or without beta."""
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, keras.layers.BatchNormalization(center=False, name="bn")(image))
    assert set(keras_h5.read(save(model, tmp_path / "w.keras"))) == {
        *("bn/scale", "bn/mean", "bn/var")
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return save(backbone(), tmp_path_factory.mktemp("archive") / "w.keras")


def rewritten(source, target, **changes):
    """The archive `source` with members changed; None leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = changes.get(name.split(".")[0], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"model": None},
        {"config": b"{"},
        {"config": b"[" * 100_000},
        {"config": json.dumps({"config": {"layers": []}}).encode()},
        {"model": b"no hdf5"},
    ],
)
def test_a_damaged_archive_is_told(archive, tmp_path, changes):
    path = rewritten(archive, tmp_path / "w.keras", **changes)
    with pytest.raises(UserError, match="damaged, cut short or not a Keras weight file"):
        weights.load_tensors(path)


def test_sizes_claimed_by_an_archive_are_bounded(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(keras_h5, "_MAX_CONFIG", 100)
    with pytest.raises(UserError, match=r"claims more data in config\.json"):
        keras_h5.read(archive)
    monkeypatch.undo()
    monkeypatch.setattr(keras_h5, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match=r"claims more data in model\.weights\.h5"):
        keras_h5.read(archive)


def test_linked_groups_are_no_endless_tree(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_h5, "_MOST", 100)
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        group = file.create_group("layers")
        for _ in range(40):  # 2^40 paths
            inner = group.create_group("a")
            group["b"] = inner
            group = inner.create_group("layers")
    with pytest.raises(UserError, match="damaged"):
        keras_h5.read(path)


@pytest.mark.parametrize("how", ["soft", "external", "raw"])
def test_a_file_cannot_point_elsewhere(tmp_path, how):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(2 * 4))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["kernel"] = np.ones(2, np.float32)
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"kernel"]
        if how == "soft":
            file["elsewhere"] = np.ones(2, np.float32)
            group["kernel"] = h5py.SoftLink("/elsewhere")
        elif how == "external":
            group["kernel"] = h5py.ExternalLink("other.h5", "kernel")
        else:
            stored = [(os.fsencode(secret), 0, 8)]
            group.create_dataset("kernel", (2,), np.float32, external=stored)
    with pytest.raises(UserError, match="damaged"):
        keras_h5.read(path)


def test_the_depthwise_kernel_of_keras_2_has_a_name_of_its_own(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = [b"dw"]
        group = file.create_group("dw")
        group.attrs["weight_names"] = [b"dw/depthwise_kernel:0"]
        group["dw/depthwise_kernel:0"] = np.ones((3, 3, 2, 1), np.float32)
    assert keras_h5.read(tmp_path / "w.h5")["dw/kernel"].shape == (3, 3, 2, 1)


def test_a_file_is_read_under_any_suffix(archive, tmp_path):
    shutil.copy(archive, tmp_path / "w.h5")
    assert_same(weights.load_tensors(tmp_path / "w.h5")[0], keras_h5.read(archive))


@pytest.mark.parametrize("name", ["MobileNetV2", "InceptionV3"])
def test_networks_of_keras_applications_come_back_under_their_layer_names(tmp_path, name):
    keras.utils.clear_session(free_memory=False)
    backbone()  # so that the numbering does not begin at 0
    model = getattr(keras.applications, name)(weights=None, include_top=name == "MobileNetV2")
    by_number = {}
    for layer in model.layers:
        number = layer.name.rpartition("_")[2]
        if name == "InceptionV3" and number.isdecimal() and "mixed" not in layer.name:
            by_number.setdefault(type(layer).__name__, []).append((int(number), layer))
    wanted = {}
    for layer in model.layers:
        ours = layer.name
        of_kind = sorted(by_number.get(type(layer).__name__, []), key=lambda item: item[0])
        for place, (_, numbered) in enumerate(of_kind):
            if numbered is layer:
                prefix = layer.name.rpartition("_")[0]
                ours = f"{prefix}_{place}" if place else prefix
        for weight in layer.weights:
            wanted[f"{ours}/{OURS.get(weight.name, weight.name)}"] = np.asarray(weight)
    read = keras_h5.read(save(model, tmp_path / "w.keras"))
    assert_same(read, wanted)
    if name == "InceptionV3":
        assert {"conv2d/kernel", "conv2d_93/kernel", "batch_normalization_93/bias"} < set(read)
        assert len(read) == 94 * 4
