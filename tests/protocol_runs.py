"""Tiny runs of report B's protocol, for tests."""

import contextlib
import csv
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from cxrjax import config, loop
from cxrjax.data import dataset, ledger
from cxrjax.run_folder import RunFolder
from cxrjax.runtime import cache_root

QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart.py"
TINY = {
    "data.phantom.count": 64,
    "data.image_size": 32,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "augment.shift": 0,
    "augment.rotation": 0,
    "augment.zoom": 0,
    "input.normalize": "dataset",
    "model.filters": 4,
    "model.trainable_layers": 0,
    "train.epochs": 2,
    "train.patience": 0,
    "train.batch_size": 8,
    "train.learning_rate": 0.01,
    "eval.batch_size": 8,
    "eval.resamples": 100,
    "eval.shortcuts": False,
}
ALL = {"model__trainable_layers": -1}


def changed(changes):
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: str(value) for name, value in settings.items()}


def tiny(**changes):
    return config.load(str(QUICKSTART), changed(changes))


def arguments(workdir, **changes):
    fields = [f"--config.{name}={value}" for name, value in changed(changes).items()]
    return ["--config", str(QUICKSTART), "--workdir", str(workdir), *fields]


@contextlib.contextmanager
def opened(settings, workdir, data=None):
    with contextlib.closing(RunFolder(workdir, settings)) as folder:
        training = loop.Training(settings, data or dataset.prepare(settings), folder)
        with contextlib.closing(training.checkpoints):
            yield training


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def looks():
    path = cache_root("") / ledger.FILE
    return path.read_text() if path.exists() else ""


def rows(workdir):
    with open(workdir / "predictions.csv", newline="") as file:
        return {row["split"] for row in csv.DictReader(file)}


def assert_equal(ours, theirs):
    pairs = jax.tree.leaves(ours), jax.tree.leaves(jax.device_get(theirs))
    for one, other in zip(*pairs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)


def finished(settings, tmp_path_factory, name):
    """Folder of a new finished run; its data are kept where those of the tests are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRJAX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        folder = tmp_path_factory.mktemp("protocol") / name
        loop.train_and_evaluate(settings, folder)
    return folder
