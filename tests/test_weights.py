"""Weight files: found, downloaded, read and assigned strictly; what is wrong with one is named."""

import hashlib
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import config, convert
from cxrjax.errors import UserError
from cxrjax.models import classifier, keras_h5, registry, weights

h5py = pytest.importorskip("h5py")

DENSENET = registry.spec("densenet121")
RELEASE = "densenet121_weights_tf_dim_ordering_tf_kernels_notop"
PARAMS = {
    "backbone": {
        "conv1": {"kernel": np.zeros((3, 3, 1, 2), np.float32)},
        "bn1": {"scale": np.zeros(2, np.float32), "bias": np.zeros(2, np.float32)},
    },
    "head": {"logits": {"kernel": np.full((2, 1), 7.0, np.float32)}},
}
STATISTICS = {"backbone": {"bn1": {"mean": np.zeros(2), "var": np.zeros(2)}}}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    names = weights.backbone_tensors(PARAMS, STATISTICS)
    return {name: rng.normal(size=old.shape).astype(np.float32) for name, old in names.items()}


def write_keras_file(path, layers, group=None):
    """`layers`: {layer: {weight name: array}}, laid out as Keras 2 does."""
    with h5py.File(path, "w") as file:
        root = file.create_group(group) if group else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, values in layers.items():
            layer_group = root.create_group(layer)
            layer_group.attrs["weight_names"] = [name.encode() for name in values]
            for name, value in values.items():
                layer_group.create_dataset(name, data=value)
    return path


LAYERS = {
    "input_1": {},
    "conv1": {"conv1/kernel:0": np.full((3, 3, 1, 2), 0.1, np.float16)},
    "bn1": {
        "bn1/gamma:0": np.full(2, 1.0, np.float32),
        "bn1/beta:0": np.full(2, 2.0, np.float32),
        "bn1/moving_mean:0": np.full(2, 3.0, np.float32),
        "bn1/moving_variance:0": np.full(2, 4.0, np.float32),
    },
}


# Assignment


def test_assign_takes_every_tensor_leaves_the_head_and_changes_nothing_given():
    new = tensors()
    params, statistics = weights.assign(PARAMS, STATISTICS, new)
    assert weights.backbone_tensors(params, statistics).keys() == new.keys()
    for name, value in weights.backbone_tensors(params, statistics).items():
        np.testing.assert_array_equal(value, new[name])
    assert params["head"] is PARAMS["head"]
    assert not PARAMS["backbone"]["conv1"]["kernel"].any()


@given(name=st.sampled_from(sorted(tensors())), how=st.sampled_from(["lacks", "extra", "shape"]))
@settings(max_examples=20)
def test_assign_names_the_tensor_that_does_not_fit(name, how):
    new = tensors()
    if how == "lacks":
        del new[name]
    elif how == "extra":
        name = name.replace("/", "x/")
        new[name] = np.zeros(2, np.float32)
    else:
        new[name] = np.zeros((*new[name].shape, 1), np.float32)
    with pytest.raises(UserError, match=name):
        weights.assign(PARAMS, STATISTICS, new)


def test_only_the_imagenet_top_is_left_out():
    new = tensors() | {"fc1000/kernel": np.zeros((2, 1000)), "fc1000/bias": np.zeros(1000)}
    weights.assign(PARAMS, STATISTICS, new)
    with pytest.raises(UserError, match="fc1001/kernel"):
        weights.assign(PARAMS, STATISTICS, new | {"fc1001/kernel": np.zeros((2, 1000))})


# Keras files


@pytest.mark.parametrize("group", [None, "model_weights"])
def test_keras_file_is_read_under_our_names_as_float32(tmp_path, group):
    path = write_keras_file(tmp_path / "w.h5", LAYERS, group)
    read, metadata = weights.load_tensors(path)
    assert {name: (value.ravel()[0], value.dtype) for name, value in read.items()} == {
        "conv1/kernel": (np.float32(np.float16(0.1)), np.float32),
        "bn1/scale": (1, np.float32),
        "bn1/bias": (2, np.float32),
        "bn1/mean": (3, np.float32),
        "bn1/var": (4, np.float32),
    }
    assert metadata["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert metadata["path"] == str(path)
    weights.assign(PARAMS, STATISTICS, read)


def test_slashes_in_layer_names_of_the_old_releases(tmp_path):
    layers = {"conv1/bn": {"conv1/bn/gamma:0": np.ones(2, np.float32)}}
    path = write_keras_file(tmp_path / "w.h5", layers)
    assert list(keras_h5.read(path)) == ["conv1_bn/scale"]


def damaged_files(folder):
    good = write_keras_file(folder / "good.h5", LAYERS).read_bytes()
    (folder / "page.h5").write_bytes(b"\n<!DOCTYPE html><html>not found</html>")
    (folder / "cut.h5").write_bytes(good[: len(good) // 2])
    (folder / "empty.h5").write_bytes(b"")
    (folder / "text.npz").write_bytes(b"no archive")
    (folder / "weights.pkl").write_bytes(b"x")
    with h5py.File(folder / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    write_keras_file(folder / "kind.h5", {"a": {"a/codebook:0": np.zeros(2)}})
    write_keras_file(folder / "integers.h5", {"a": {"a/kernel:0": np.zeros(2, np.int32)}})
    write_keras_file(folder / "nan.h5", {"a": {"a/kernel:0": np.full(2, np.nan)}})
    with h5py.File(write_keras_file(folder / "huge.h5", {"a": {}}), "a") as file:
        file["a"].attrs["weight_names"] = [b"kernel"]
        file["a"].create_dataset("kernel", (1 << 40,), np.float32, chunks=(1 << 20,))
    np.savez(folder / "foreign.npz", a=np.zeros(2))
    weights.save_npz(folder / "double.npz", {"a/kernel": np.zeros(2)}, {})
    (folder / "page.keras").write_bytes(b"<html>moved</html>")
    (folder / "text.keras").write_bytes(b"no archive")
    with zipfile.ZipFile(folder / "empty.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
    weights.save_npz(folder / "first.npz", {"a/kernel": np.ones(2, np.float32)}, {})
    with np.load(folder / "first.npz") as archive:
        np.savez(folder / "altered.npz", **{**archive, "a/kernel": np.zeros(2, np.float32)})
    pickled = np.array([{}], dtype=object)
    with open(folder / "pickle.npz", "wb") as file:
        np.savez(file, **{"__metadata__": np.array("{}"), "a/kernel": pickled})


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("page.h5", "is a web page"),
        ("cut.h5", "cut short"),
        ("empty.h5", "cut short"),
        ("other.h5", "no layer_names"),
        ("kind.h5", "a/codebook"),
        ("integers.h5", "int32"),
        ("nan.h5", "a/kernel holds NaN"),
        ("huge.h5", "no weight"),
        ("text.npz", "damaged"),
        ("foreign.npz", "not written by cxrjax"),
        ("double.npz", "a/kernel is not a float32"),
        ("pickle.npz", "damaged"),
        ("weights.pkl", "unknown ending"),
        ("page.keras", "is a web page"),
        ("text.keras", "damaged, cut short"),
        ("empty.keras", "damaged, cut short"),
        ("altered.npz", "a/kernel is not as it was written"),
        ("missing.h5", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(tmp_path, name, words):
    damaged_files(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        weights.load_tensors(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_damaged_file_never_ends_in_another_exception(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    suffix = data.draw(st.sampled_from([".h5", ".npz"]))
    path = folder / f"w{suffix}"
    if suffix == ".h5":
        write_keras_file(path, LAYERS)
    else:
        weights.save_npz(path, tensors(), {})
    content = bytearray(path.read_bytes())
    # Only .npz: some altered bytes send the HDF5 library itself into an endless loop.
    for _ in range(data.draw(st.integers(0, 8)) if suffix == ".npz" else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        weights.load_tensors(path)
    except UserError as error:
        assert str(path) in str(error)


def test_a_contract_that_no_network_can_meet_is_told(tmp_path):
    thirds = {"mean": [0.5] * 3, "std": [0.5] * 3, "channels": 3, "input_size": 224}
    contract = {"model": "resnet50v2", "convention": "keras", "preprocessing": "tf", **thirds}
    sizes = ({"input_size": 0}, {"input_size": True})
    for odd in ({"channels": 3.0}, {"mean": ["0.5"] * 3}, {"std": [10**400] * 3}, *sizes):
        weights.save_npz(tmp_path / "w.npz", tensors(), {"contract": contract | odd})
        with pytest.raises(UserError, match="states an input contract that is none"):
            weights.load_tensors(tmp_path / "w.npz")
    spec = registry.spec("resnet50v2")
    assert spec.with_contract(contract).convention == "keras"
    with pytest.raises(UserError, match="'torch', which it does not have"):
        spec.with_contract(contract | {"convention": "torch"})


@pytest.mark.parametrize("member", ["__metadata__", "__sha256__"])
def test_an_npz_whose_json_is_no_object_is_told(tmp_path, member):
    path, members = tmp_path / "w.npz", {"__metadata__": "{}", member: "5"}
    np.savez(path, **{name: np.array(text) for name, text in members.items()}, **tensors())
    with pytest.raises(UserError, match="not a cxrjax weight file"):
        weights.load_tensors(path)


def test_npz_gives_back_what_was_saved(tmp_path):
    path = tmp_path / "new" / "w.npz"
    weights.save_npz(path, tensors(), {"model": "x"})
    read, metadata = weights.load_tensors(path)
    assert metadata["source"] == {"model": "x"}
    assert read.keys() == tensors().keys()
    for name, value in tensors().items():
        np.testing.assert_array_equal(read[name], value)
    assert [file.name for file in path.parent.iterdir()] == ["w.npz"]


# Finding


def test_find_prefers_the_folder_then_the_cache(tmp_path, monkeypatch):
    folder, cache = tmp_path / "folder", tmp_path / "cache"
    cache.mkdir()
    folder.mkdir()
    monkeypatch.setenv("CXRJAX_WEIGHTS", str(folder))
    cached = cache / f"{RELEASE}.h5"
    cached.touch()
    (folder / "another.h5").touch()
    assert weights.find(DENSENET, "imagenet", cache) == cached
    near = folder / f"{RELEASE}.float16.h5"
    near.touch()
    assert weights.find(DENSENET, "imagenet", cache) == near
    exact = folder / f"{RELEASE}.h5"
    exact.touch()
    assert weights.find(DENSENET, "imagenet", cache) == exact
    assert weights.find(DENSENET, str(near), cache) == near
    assert weights.find(DENSENET, "none", cache) is None


@pytest.mark.parametrize(
    ("spec", "given_as", "words"),
    [
        (DENSENET, "nowhere.h5", "nowhere.h5 does not exist"),
        (DENSENET, "", "does not exist"),
        (registry.spec("baseline"), "imagenet", "baseline has no imagenet weights"),
    ],
)
def test_find_explains_what_it_cannot_find(spec, given_as, words, tmp_path):
    with pytest.raises(UserError, match=words):
        weights.find(spec, given_as, tmp_path)


def test_release_and_digest_are_those_keras_publishes():
    densenet = pytest.importorskip("keras.src.applications.densenet")
    assert DENSENET.weights_url == densenet.DENSENET121_WEIGHT_PATH_NO_TOP
    with open(densenet.__file__) as file:
        lines = file.read().split(f'"{DENSENET.weights_file}",')[1].splitlines()
    assert DENSENET.weights_md5 in "".join(lines[:5])


# Command line


def test_convert_writes_what_it_checked(shared, tmp_path, capsys):
    source = shared(f"weights/{RELEASE}.float16.h5")
    out = tmp_path / "densenet121.npz"
    assert convert.main([str(source), str(out)]) == 0
    assert "7,037,504 parameters" in capsys.readouterr().out
    original, before = weights.load_tensors(source)
    copy, after = weights.load_tensors(out)
    assert after["source"]["sha256"] == before["sha256"]
    assert original.keys() == copy.keys()
    for name, value in original.items():
        np.testing.assert_array_equal(copy[name], value)
    settings = config.default()
    settings.model.name = "densenet121"
    _, params, statistics = classifier.split(classifier.build(settings.model, 4))
    weights.assign(params, statistics, copy)


def test_convert_explains_itself(tmp_path, capsys):
    path = write_keras_file(
        tmp_path / "w.h5", {"conv1": LAYERS["conv1"], "mine": {"mine/bias:0": np.ones(2)}}
    )
    assert convert.main([str(path), str(tmp_path / "o.npz")]) == 2
    assert "does not tell which network it is of; give --model" in capsys.readouterr().err
    assert convert.main([str(path), str(tmp_path / "o.npz"), "--model", "densenet121"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cxrjax: {path}: the weights lack ")
    assert not (tmp_path / "o.npz").exists()
    assert convert.main([str(path), str(tmp_path / "o.npz"), "--model", "densenet"]) == 2
    assert "did you mean densenet121" in capsys.readouterr().err
    assert convert.main([str(path), str(tmp_path / "o.h5")]) == 2
    assert ".npz" in capsys.readouterr().err


def test_list_shows_every_network(capsys):
    assert convert.main(["--list"]) == 0
    table = capsys.readouterr().out
    for name in registry.names():
        entry = registry.spec(name)
        assert all(text in table for text in (name, entry.citation, entry.weights_url or "none"))
    assert "7,037,504" in table


def test_metadata_survives_as_json(tmp_path):
    weights.save_npz(tmp_path / "w.npz", {}, {"a": [1, {"b": None}]})
    with np.load(tmp_path / "w.npz", allow_pickle=False) as archive:
        assert json.loads(str(archive["__metadata__"])) == {"a": [1, {"b": None}]}
