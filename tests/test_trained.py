"""A finished run opened again predicts what it predicted, frozen layers and one logit included."""

import csv
import shutil

import jax
import numpy as np
import pytest

from cxrjax import config as config_lib
from cxrjax import loop, trained
from cxrjax.errors import UserError


def tiny(**fields):
    config = config_lib.default()
    config.data.image_size = 32
    config.data.phantom.count = 40
    config.model.filters = 4
    config.train.epochs = 1
    config.train.batch_size = 8
    config.eval.resamples = 100
    config.eval.batch_size = 16
    flat = config_lib.fields(config)
    for field, value in fields.items():
        assert field.replace("__", ".") in flat
        section = config
        *path, last = field.split("__")
        for name in path:
            section = section[name]
        section[last] = value
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    config = tiny(data__classes=("clear", "consolidation"), model__trainable_layers=4)
    config.data.phantom.count = 80
    loop.train_and_evaluate(config, folder)
    return folder


def test_it_predicts_what_the_run_wrote(run):
    before = sorted(p.relative_to(run) for p in run.rglob("*"))
    found = trained.load(run)
    data = found.data()
    for split in ("validation", "test"):
        with open(run / "predictions.csv") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        theirs = np.array([[float(row[c]) for c in found.classes] for row in rows])
        ours = found.predict(data.store.images[data.splits[split]], batch_size=5)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert sorted(p.relative_to(run) for p in run.rglob("*")) == before


def test_no_images_are_no_predictions(run):
    assert trained.load(run).predict(np.zeros([0, 32, 32], np.uint8)).shape == (0, 2)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("config.json", "holds no run"),
        ("result.json", "is not finished"),
        ("checkpoints", "no checkpoint"),
    ],
)
def test_what_is_missing_is_said(run, tmp_path, missing, sentence):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / missing) if missing == "checkpoints" else (copy / missing).unlink()
    with pytest.raises(UserError, match=sentence):
        trained.load(copy)


def test_another_network_in_config_json_is_told(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"filters": 4', '"filters": 6'))
    with pytest.raises(UserError, match="another network"):
        trained.load(copy)


def test_weights_that_are_no_numbers_are_told(run, monkeypatch):
    note, saved = trained._newest(run)
    broken = jax.tree.map(lambda a: a * np.nan if a.dtype == np.float32 else a, saved)
    monkeypatch.setattr(trained, "_newest", lambda folder: (note, broken))
    with pytest.raises(UserError, match="holds weights that are no numbers"):
        trained.load(run)
