"""Whole runs on tiny phantoms: files, resuming bit for bit, and one sentence for every mistake."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import metrics as sk

from cxrjax import build, config, loop, main, runtime
from cxrjax.data import dataset
from cxrjax.data.batches import training_plan
from cxrjax.models import registry
from cxrjax.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs/quickstart.py")
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
TINY = {
    "data.phantom.count": 64,
    "data.image_size": 32,
    "model.filters": 4,
    "train.epochs": 3,
    "train.batch_size": 8,
    "eval.batch_size": 8,
    "eval.resamples": 100,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
}


def arguments(workdir, **changes):
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["--config", QUICKSTART, "--workdir", str(workdir), *fields]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished tiny run, made once."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    cache = tmp_path_factory.getbasetemp() / "cache"
    assert main.main(arguments(workdir, data__cache=cache)) == 0
    return workdir


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_times(workdir):
    times = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in times} for line in read_lines(workdir)]


def test_a_run_leaves_every_file_of_the_interface(finished):
    for name in ("config.json", "metrics.jsonl", "result.json", "predictions.csv", "checkpoints"):
        assert (finished / name).exists(), name
    for name in ("curves", "confusion_matrix_test", "confusion_matrix_validation", "test_images"):
        assert (finished / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((finished / "result.json").read_text())
    for name in (
        "task",
        "classes",
        "n",
        "best_epoch",
        "audit",
        "test_looks",
        "seconds",
        "device",
        "versions",
    ):
        assert name in result, name
    for split in ("validation", "test"):
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "ece"):
            assert set(result[split][name]) >= {"value", "low", "high", "n"}
            assert result[split][name]["low"] <= result[split][name]["high"]
            assert result[split][name]["n"] == result["n"][split]
    lines = read_lines(finished)
    assert [line["split"] for line in lines] == ["train", "validation"] * (len(lines) // 2)
    assert {"epoch", "loss", "accuracy", "recall", "lr", "seconds", "images_per_second"} <= set(
        lines[0]
    )
    best = min(lines[1::2], key=lambda line: line["loss"])
    assert result["best_epoch"] == best["epoch"]
    assert result["test_looks"] >= 1


def test_predictions_count_every_example_once_and_agree_with_sklearn(finished):
    result = json.loads((finished / "result.json").read_text())
    with open(finished / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for split in ("validation", "test"):
        part = [row for row in rows if row["split"] == split]
        assert len(part) == len({row["index"] for row in part}) == result["n"][split]
        labels = [result["classes"].index(row["label"]) for row in part]
        probabilities = np.array([[float(row[c]) for c in result["classes"]] for row in part])
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
        probabilities /= probabilities.sum(axis=1, keepdims=True)  # undo the file's rounding
        chosen = probabilities.argmax(axis=1)
        wanted = {
            "accuracy": sk.accuracy_score(labels, chosen),
            "macro_f1": sk.f1_score(labels, chosen, average="macro", zero_division=0),
            "log_loss": sk.log_loss(labels, probabilities, labels=range(4)),
            "auroc": sk.roc_auc_score(labels, probabilities, multi_class="ovr"),
        }
        for name, value in wanted.items():
            assert result[split][name]["value"] == pytest.approx(value, rel=1e-4), name
        np.testing.assert_array_equal(
            result[split]["confusion_matrix"], sk.confusion_matrix(labels, chosen)
        )
    best = read_lines(finished)[2 * result["best_epoch"] - 1]
    assert result["validation"]["accuracy"]["value"] == pytest.approx(best["accuracy"])
    assert result["validation"]["log_loss"]["value"] == pytest.approx(best["loss"], rel=1e-4)


def test_running_again_says_finished_and_changes_nothing(finished, capsys):
    before = (finished / "result.json").read_bytes()
    cache = json.loads((finished / "config.json").read_text())["data"]["cache"]
    assert main.main(arguments(finished, data__cache=cache)) == 0
    assert "is finished" in capsys.readouterr().err
    assert main.main(["--workdir", str(finished)]) == 0  # config.json rebuilds the run alone
    assert (finished / "result.json").read_bytes() == before


def test_a_run_of_another_config_is_refused_and_untouched(finished, capsys):
    before = {p: p.read_bytes() for p in finished.glob("*") if p.is_file()}
    cache = json.loads((finished / "config.json").read_text())["data"]["cache"]
    assert main.main(arguments(finished, data__cache=cache, train__epochs=4)) == 2
    assert "train.epochs was 3, now 4" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in finished.glob("*") if p.is_file()} == before


def saved_steps(workdir):
    return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


LONG = {"train__epochs": 20, "train__patience": 0, "data__phantom__count": 200}
COMMAND = [sys.executable, "-m", "cxrjax.main"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run by the command, of which others are broken off; its cache, and its line of a device."""
    workdir, cache = tmp_path_factory.mktemp("runs") / "whole", tmp_path_factory.mktemp("cache")
    run = {"cwd": ROOT, "env": dict(os.environ, CXRJAX_CACHE=str(cache))}
    done = subprocess.run(
        [*COMMAND, *arguments(workdir, **LONG)], capture_output=True, text=True, **run
    )
    assert done.returncode == 0, done.stderr
    device = f"device: {json.loads((workdir / 'result.json').read_text())['device']}\n"
    assert done.stderr.startswith(device)
    return workdir, run, device


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_equals_uninterrupted(whole, tmp_path, number):
    unbroken, run, device = whole
    broken = tmp_path / "broken"
    command = [*COMMAND, *arguments(broken, **LONG)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **run
    )
    deadline = time.monotonic() + 120
    while not saved_steps(broken) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert not (broken / "result.json").exists(), "the run ended before it could be killed"
    if number == signal.SIGTERM:
        assert process.returncode == 130
        assert "saved" in errors and "Traceback" not in errors
    done = subprocess.run(command, capture_output=True, text=True, **run)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(device) and "resumed after step" in done.stderr
    assert without_times(broken) == without_times(unbroken)
    predictions = (unbroken / "predictions.csv").read_bytes()
    assert (broken / "predictions.csv").read_bytes() == predictions


def test_the_streamed_path_gives_the_same_run(finished, tmp_path):
    cache = json.loads((finished / "config.json").read_text())["data"]["cache"]
    streamed = tmp_path / "streamed"
    assert main.main(arguments(streamed, data__cache=cache, input__path="tfdata")) == 0
    assert without_times(streamed) == without_times(finished)
    predictions = (streamed / "predictions.csv").read_bytes()
    assert predictions == (finished / "predictions.csv").read_bytes()


class Clock:
    """Seconds that pass only where a test says so, but for a microsecond per look."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1e-6
        return self.now


@pytest.mark.parametrize("steps", [2, 3, 6])
def test_images_per_second_are_of_steps_taken_in_that_time(tmp_path, monkeypatch, steps):
    clock, seconds = Clock(), iter([60.0])  # the first step, which compiles, then 1 each
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(runtime, "steps_per_dispatch", lambda: 1)
    changes = TINY | {"train.epochs": 2, "train.batch_size": 36 // steps}
    settings = config.load(QUICKSTART, {name: str(value) for name, value in changes.items()})
    with contextlib.closing(RunFolder(tmp_path, settings)) as folder:
        training = loop.Training(settings, dataset.prepare(settings), folder)
        take = training._train_step

        def timed(state, batch):
            clock.now += next(seconds, 1.0)
            return take(state, batch)

        training._train_step = timed
        with contextlib.closing(training.checkpoints):
            training.fit()
    assert training._steps_per_epoch == steps
    rates = [line["images_per_second"] for line in training.note["history"][::2]]
    assert rates == pytest.approx([36 / steps] * 2, rel=1e-3)


@pytest.fixture
def barely_optimised():
    """For what is compiled to run once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("barely_optimised")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_takes_one_step(path):
    smallest = registry.spec(config.load(str(path)).model.name).smallest
    settings = config.load(
        str(path),
        {
            "data.name": "phantom",
            "data.phantom.count": "64",
            "data.image_size": str(max(64, smallest)),
            "data.draw": "()",
            "model.weights": "none",
            "train.batch_size": "4",
            "data.classes": "clear,consolidation"
            if len(config.load(str(path)).data.classes) == 2
            else "()",
        },
    )
    data = dataset.prepare(settings)
    model, recipe, variables = build.network(settings, data)
    tx, run = build.train_program(settings, recipe)
    state = build.init_state(variables, recipe, tx, build.settings(settings, data))
    plan = training_plan(data.splits["train"], 4, 0, 0)
    batch = next(build.make_input(settings, data).batches(plan))
    state, loss = run(state, batch)
    assert np.isfinite(float(loss))
    assert int(state.step) == 1
    assert model.backbone.layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__epoch": 3}, "did you mean train.epochs"),
        ({"model__name": "densnet121"}, "did you mean densenet121"),
        ({"data__name": "radiography"}, "CXRJAX_DATA"),
        ({"data__name": "folder", "data__dir": "/does/not/exist"}, "/does/not/exist"),
        ({"model__weights": "/does/not/exist.h5"}, "/does/not/exist.h5"),
        ({"model__trainable_layers": 99}, "trainable_layers"),
        (
            {
                "train__optimizer": "sgd",
                "train__learning_rate": 100,
                "model__head__dense": 8,
                "model__head__l2": 10,
            },
            "diverged",
        ),
        ({"data__classes": "clear,consolidaton"}, "consolidation"),
        (
            {"train__accumulate": 12, "train__epochs": 30, "train__patience": 1},
            "has 10 batches (5 in each epoch) before train.patience (1) may end it",
        ),
        ({"train__accumulate": 16}, "the whole training has 15 batches (5 in each epoch)"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, changes, words):
    assert main.main(arguments(tmp_path / "run", **changes)) == 2
    captured = capsys.readouterr().err
    last = captured.strip().splitlines()[-1]
    assert last.startswith("cxrjax: ") and words in last, captured
    assert "Traceback" not in captured


def test_a_folder_with_foreign_files_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.doc").write_text("precious")
    assert main.main(arguments(tmp_path)) == 2
    assert "thesis.doc" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.doc"]
