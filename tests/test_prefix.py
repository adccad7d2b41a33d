"""Stored maps of frozen layers: the same training as without them, kept, resumed, never stale."""

import contextlib
import functools
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cxrjax import config, evaluation, loop, prefix
from cxrjax.data import dataset
from cxrjax.errors import UserError
from cxrjax.models import classifier, registry, weights
from cxrjax.run_folder import RunFolder

QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart.py"
TINY = {
    "data.phantom.count": 64,
    "data.image_size": 32,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "augment.shift": 0,
    "augment.rotation": 0,
    "augment.zoom": 0,
    "model.filters": 4,
    "model.trainable_layers": 3,  # conv4 and its batch norm
    "model.head.dropout": 0.3,
    "train.epochs": 3,
    "train.batch_size": 8,
    "train.learning_rate": 0.01,
    "eval.batch_size": 8,
    "eval.resamples": 100,
}


def tiny(cache, **changes):
    changed = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    changed["data.cache"] = cache
    return config.load(str(QUICKSTART), {name: str(value) for name, value in changed.items()})


@contextlib.contextmanager
def opened(settings, workdir):
    with contextlib.closing(RunFolder(workdir, settings)) as folder:
        training = loop.Training(settings, dataset.prepare(settings), folder)
        with contextlib.closing(training.checkpoints):
            yield training


def trained(settings, workdir):
    with opened(settings, workdir) as training:
        training.fit()
        probabilities, _ = training.predict("test", *training.best)
        return training, jax.device_get(training.state), probabilities


def assert_same_training(one, other, atol=2e-5):
    (first, state, probabilities), (second, other_state, other_probabilities) = one, other
    for line, counterpart in zip(first.note["history"], second.note["history"], strict=True):
        assert line["loss"] == pytest.approx(counterpart["loss"], abs=atol)
    for ours, theirs in zip(
        jax.tree.leaves((state.params, state.batch_stats, state.opt_state)),
        jax.tree.leaves((other_state.params, other_state.batch_stats, other_state.opt_state)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=atol)
    np.testing.assert_allclose(probabilities, other_probabilities, atol=atol)


@pytest.mark.parametrize("layers", [0, 3, 7])
def test_training_on_stored_maps_equals_training_on_images(tmp_path, layers):
    runs = [
        trained(
            tiny(tmp_path / "cache", cache__prefix=kept, model__trainable_layers=layers),
            tmp_path / str(kept),
        )
        for kept in (True, False)
    ]
    assert isinstance(runs[0][0].input, prefix.FrozenMaps)
    assert not isinstance(runs[1][0].input, prefix.FrozenMaps)
    assert_same_training(*runs)


def test_a_whole_frozen_network_in_bfloat16_loses_nothing_by_stored_maps(tmp_path):
    settings = tiny(
        tmp_path / "cache", model__trainable_layers=0, train__precision="bfloat16", train__epochs=1
    )
    training, _, of_maps = trained(settings, tmp_path / "run")
    images = training.data.store.images[training.data.splits["test"]]
    of_images = by_the_whole_network(training, np.asarray(images))
    np.testing.assert_allclose(of_maps, of_images, rtol=0, atol=1e-6)


def by_the_whole_network(training, images):
    params, batch_stats = training.best
    run = functools.partial(training._eval_step, params, training.state.frozen, batch_stats)
    return evaluation.predict_images(run, images, training.config.eval.batch_size, "images")


def test_images_that_are_in_no_store_pass_the_programs_that_are_there(tmp_path):
    training, _, _ = trained(tiny(tmp_path / "cache", train__epochs=1), tmp_path / "run")
    side = training.config.data.image_size
    images = np.random.default_rng(0).integers(0, 256, (21, side, side), np.uint8)
    compiled = training._eval_step._cache_size()
    ours = training.predict_images(images, "images")
    assert training._eval_step._cache_size() == compiled
    theirs = by_the_whole_network(training, images)
    assert training._eval_step._cache_size() == compiled + 1
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_frozen_weights_may_come_from_a_file(tmp_path):
    settings = tiny(tmp_path / "cache", train__epochs=1)
    first = trained(settings, tmp_path / "first")
    whole = (first[1].params["backbone"] | first[1].frozen["backbone"], first[1].batch_stats)
    tensors = weights.backbone_tensors({"backbone": whole[0]}, whole[1])
    weights.save_npz(tmp_path / "weights.npz", tensors, {})
    changes = {"model__weights": tmp_path / "weights.npz", "train__epochs": 1}
    second = trained(tiny(tmp_path / "cache", **changes), tmp_path / "second")
    assert isinstance(second[0].input, prefix.FrozenMaps)
    frozen = second[1].frozen["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(frozen, tensors["conv1/kernel"])


def test_as_many_views_as_epochs_equal_augmenting_anew(tmp_path):
    augmented = {"augment__shift": 0.1, "augment__rotation": 10, "augment__zoom": 0.1}
    augmented |= {"augment__border": 0.2, "augment__gamma": 0.3}
    anew = trained(tiny(tmp_path / "cache", **augmented), tmp_path / "anew")
    assert not isinstance(anew[0].input, prefix.FrozenMaps)
    views = trained(tiny(tmp_path / "cache", cache__views=3, **augmented), tmp_path / "views")
    assert isinstance(views[0].input, prefix.FrozenMaps)
    assert_same_training(anew, views)
    few = trained(tiny(tmp_path / "cache", cache__views=1, **augmented), tmp_path / "few")
    losses = [[line["loss"] for line in run[0].note["history"]] for run in (views, few)]
    assert losses[0][0] == pytest.approx(losses[1][0], abs=2e-5)  # the first epoch's view
    assert abs(losses[0][2] - losses[1][2]) > 1e-4  # the second epoch sees the same again


def test_maps_are_computed_once_and_only_for_splits_that_are_read(tmp_path, monkeypatch):
    rows = []
    write = prefix.MapsFile.write
    monkeypatch.setattr(
        prefix.MapsFile, "write", lambda self, r, v: (rows.extend(r), write(self, r, v))[1]
    )
    with opened(tiny(tmp_path / "cache"), tmp_path / "one") as training:
        training.fit()
        test = set(training.data.splits["test"])
        assert len(rows) == len(set(rows)) == 64 - len(test)
        assert not test & set(rows)
        training.predict("test", *training.best)
        assert set(rows) == set(range(64))
    with opened(tiny(tmp_path / "cache", seed=0), tmp_path / "two") as training:
        training.fit()
    assert len(rows) == 64


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"train__learning_rate": 0.02}, False),
        ({"model__head__dropout": 0.0}, False),
        ({"seed": 1}, True),  # other random frozen layers
        ({"model__trainable_layers": 7}, True),
        ({"data__image_size": 40}, True),
        ({"input__normalize": "dataset"}, True),
        ({"cache__dtype": "bfloat16"}, True),
    ],
)
def test_what_maps_depend_on_is_in_their_key(tmp_path, change, anew):
    names = []
    for k, changes in enumerate(({}, change)):
        with opened(tiny(tmp_path / "cache", **changes), tmp_path / str(k)) as training:
            names.append(training.input._file._maps.name)
    assert (names[0] != names[1]) == anew


@pytest.mark.parametrize("field", ["shift", "rotation", "zoom", "border", "gamma"])
def test_how_images_are_augmented_is_in_the_key_of_stored_views(tmp_path, field):
    names = []
    for k, amount in enumerate((0.1, 0.2)):
        changes = {f"augment__{field}": amount, "cache__views": 1}
        with opened(tiny(tmp_path / "cache", **changes), tmp_path / str(k)) as training:
            names.append(training.input._file._maps.name)
    assert names[0] != names[1]


def test_stored_in_bfloat16_they_take_half_the_room(tmp_path):
    sizes, losses = [], []
    for dtype in ("float32", "bfloat16"):
        training, *_ = trained(tiny(tmp_path / "cache", cache__dtype=dtype), tmp_path / dtype)
        sizes.append(training.input._file._maps.stat().st_size)
        losses.append(training.note["history"][0]["loss"])
    assert sizes[0] == 2 * sizes[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_stopped_while_maps_are_computed_goes_on_from_there(tmp_path, monkeypatch):
    written = []
    write = prefix.MapsFile.write

    def counting(self, rows, values):
        written.append(len(rows))
        if len(written) == 2:
            signal.raise_signal(signal.SIGINT)
        return write(self, rows, values)

    monkeypatch.setattr(prefix.MapsFile, "write", counting)
    settings = tiny(tmp_path / "cache")
    with (
        opened(settings, tmp_path / "run") as training,
        pytest.raises(KeyboardInterrupt, match="resume"),
    ):
        training.fit()
    assert sum(written) < 48
    whole = trained(settings, tmp_path / "run")
    assert sum(written) == 64
    assert_same_training(whole, trained(settings, tmp_path / "other"), atol=0)


def test_a_damaged_note_has_maps_computed_again(tmp_path):
    settings = tiny(tmp_path / "cache")
    first = trained(settings, tmp_path / "one")
    first[0].input._file._done.write_bytes(b"damaged")
    assert_same_training(first, trained(settings, tmp_path / "two"), atol=0)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda maps: os.truncate(maps, 1000)])
def test_maps_deleted_or_cut_short_are_computed_again(tmp_path, spoil):
    settings = tiny(tmp_path / "cache")
    first = trained(settings, tmp_path / "one")
    spoil(first[0].input._file._maps)
    assert_same_training(first, trained(settings, tmp_path / "two"), atol=0)


@pytest.mark.parametrize("replaced", [False, True])
def test_maps_deleted_in_use_stay_whole_and_spoil_no_others(tmp_path, replaced):
    path, of = tmp_path / "maps" / "key", (10, (2,), np.float32)
    one = prefix.MapsFile(path, *of)
    one.write(np.arange(8), np.full((8, 2), 7.0))
    one.save()
    shutil.rmtree(path.parent)
    other = prefix.MapsFile(path, *of) if replaced else None
    one.write(np.array([8]), np.full((1, 2), 7.0))
    one.save()
    np.testing.assert_array_equal(one.map()[:9], 7)
    if other is not None:
        other.write(np.array([9]), np.full((1, 2), 5.0))
        other.save()
    later = prefix.MapsFile(path, *of)
    assert later.done.tolist() == [False] * 9 + [replaced]


def test_a_disk_too_small_for_all_maps_is_told_before_the_first(tmp_path, monkeypatch):
    settings = tiny(tmp_path / "cache", augment__shift=0.1, cache__views=2)
    with opened(settings, tmp_path / "run") as training:
        maps = training.input._file
        counts = [len(training.data.splits[name]) for name in ("train", "validation")]
        needed = (2 * counts[0] + counts[1]) * maps._row_bytes
        left = SimpleNamespace(f_bavail=needed - 1, f_frsize=1)
        monkeypatch.setattr(prefix.os, "fstatvfs", lambda file: left)
        with pytest.raises(UserError, match=r"no room for .* GB of stored maps; free some"):
            training.fit()
        assert not maps.done.any()
        left.f_bavail += 1
        training.fit()


def test_views_of_nothing_frozen_are_told(tmp_path, capsys):
    settings = tiny(
        tmp_path / "cache", augment__shift=0.1, cache__views=2, model__trainable_layers=-1
    )
    with opened(settings, tmp_path / "run"):
        assert "cache.views is not used" in capsys.readouterr().err


def test_views_without_augmentation_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cache\.views"):
        tiny(tmp_path, cache__views=4)


@pytest.mark.parametrize(
    ("network", "layers", "stage"),
    [
        ("densenet121", 20, "conv5_block13_concat"),
        ("densenet121", 0, "relu"),
        ("densenet121", 1, "relu"),  # the last layer has no parameters
        ("densenet121", -1, None),
        ("resnet50v2", 20, "conv5_block1_out"),
        ("mobilenetv2", 20, "block_14_add"),
        ("inceptionv3", 20, "mixed9"),
        ("inceptionv3", 100, "mixed6"),
    ],
)
def test_the_cut_lies_behind_the_last_frozen_stage(network, layers, stage):
    settings = config.default()
    settings.model.name = network
    model = classifier.build(settings.model, n_classes=4)
    trained_layers = classifier.trainable_layer_names(model, layers)
    assert classifier.last_frozen_stage(model, trained_layers) == stage
    if stage is None:
        return
    before = model.backbone.layers[: model.backbone.layers.index(stage) + 1]
    with_parameters = classifier.split(model)[1]["backbone"]
    assert not [n for n in before if n in trained_layers and n in with_parameters]
    assert registry.spec(network).cam_layer != stage or layers in (0, 1)
