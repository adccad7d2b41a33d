"""Training in one process: early stopping, stopping and resuming at any step, what is refused."""

import contextlib
import csv
import json
import math
import signal
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from PIL import Image
from sklearn import metrics as sk

from cxrjax import build, calibration, config, loop, predictions, trained
from cxrjax.data import dataset
from cxrjax.errors import UserError
from cxrjax.run_folder import RunFolder

QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart.py"
TINY = {
    "data.phantom.count": 64,
    "data.image_size": 32,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "model.filters": 4,
    "train.epochs": 2,
    "train.batch_size": 8,  # the last of five batches is filled up
    "train.learning_rate": 0.01,
    "eval.batch_size": 8,
    "eval.resamples": 100,
}
COMPILED = {}


class Training(loop.Training):
    """A training that shares its compiled steps with others of the same recipe."""

    latest = None

    def __init__(self, settings, data, folder):
        super().__init__(settings, data, folder)
        own = (self._train_step, self._eval_step)
        key = (self.recipe, settings.train.optimizer)
        self._train_step, self._eval_step = COMPILED.setdefault(key, own)
        Training.latest = self


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    monkeypatch.setattr(loop, "Training", Training)


def tiny(**changes):
    changed = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return config.load(str(QUICKSTART), {name: str(value) for name, value in changed.items()})


@contextlib.contextmanager
def opened(settings, workdir):
    """A training in the claimed folder `workdir`, given back at the end."""
    with contextlib.closing(RunFolder(workdir, settings)) as folder:
        training = Training(settings, dataset.prepare(settings), folder)
        with contextlib.closing(training.checkpoints):
            yield training


def host(tree):
    return jax.tree.map(np.array, jax.device_get(tree))


def outcome(training):
    """All a resumed run must share with an uninterrupted one; wall-clock times are its own."""
    times = ("seconds", "images_per_second", "epoch_seconds", "config")
    note = {name: value for name, value in training.note.items() if name not in times}
    lines = [{k: v for k, v in line.items() if k not in times} for line in note["history"]]
    return host((training.state, training.best)), note | {"history": lines}


def assert_same(one, other):
    (arrays, note), (other_arrays, other_note) = one, other
    assert note == other_note
    assert jax.tree.structure(arrays) == jax.tree.structure(other_arrays)
    jax.tree.map(np.testing.assert_array_equal, arrays, other_arrays)


def stop_at(source, call, step, number=signal.SIGTERM):
    """Sends this process a signal when `source` hands out batch `step` of its pass `call`.

    Passes are counted from 0: the first epoch's training, its validation, the second epoch's ...
    """
    untouched, calls = source.batches, iter(range(1000))

    def batches(*plan):
        this = next(calls)
        for taken, batch in enumerate(untouched(*plan)):
            if (this, taken) == (call, step):
                signal.raise_signal(number)
            yield batch

    source.batches = batches


@pytest.fixture
def scripted(monkeypatch):
    """Replaces validation: losses are given, and the weights they stand for are recorded."""

    def script(losses):
        weights = []

        def validate(self, epoch):
            weights.append(host((self.state.params, self.state.batch_stats)))
            return {
                "epoch": epoch + 1,
                "split": "validation",
                "loss": losses[epoch],
                "accuracy": 0.5,
                "recall": dict.fromkeys(self.data.classes, 0.5),
                "lr": 0.01,
                "seconds": 0.1,
                "images_per_second": 1.0,
            }

        monkeypatch.setattr(Training, "_validate", validate)
        return weights

    return script


# --------------------------------------------------------------- the best epoch


@pytest.mark.parametrize(
    ("losses", "patience", "stop", "best"),
    [
        ([3.0, 1.0, 2.0, 1.0, 0.0], 2, 4, 2),  # as good is not better
        ([3.0, 2.0, 2.5, 1.0, 1.5, 2.0, 0.0], 2, 6, 4),  # a better epoch starts the count anew
        ([3.0, 2.0, 1.0], 2, 3, 3),
        ([1.0, 2.0, 3.0, 4.0], 0, 4, 1),
    ],
)
def test_early_stopping_keeps_the_best_epoch(tmp_path, scripted, losses, patience, stop, best):
    weights = scripted(losses)
    settings = tiny(train__epochs=len(losses), train__patience=patience)
    with opened(settings, tmp_path / "run") as training:
        training.fit()
    assert len(weights) == len(training.note["history"]) // 2 == stop
    assert training.note["best_epoch"] == best
    assert training.note["best_loss"] == losses[best - 1]
    jax.tree.map(np.testing.assert_array_equal, host(training.best), weights[best - 1])


def test_the_test_split_is_predicted_with_the_best_weights(tmp_path, scripted):
    weights = scripted([3.0, 1.0, 2.0, 1.5, 0.0])
    settings = tiny(train__epochs=5, train__patience=2)
    result, _ = loop.train_and_evaluate(settings, tmp_path / "run")
    assert (result["epochs"], result["best_epoch"]) == (4, 2)
    training = Training.latest
    _, written = read_predictions(tmp_path / "run", "test", result["classes"])
    best, last = (training.predict("test", *weights[epoch - 1])[0] for epoch in (2, 4))
    np.testing.assert_allclose(written, best, rtol=1e-6)
    assert np.abs(best - last).max() > 1e-3, "the epochs cannot be told apart"


# ------------------------------------------------------------- stop and resume


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The outcome of a resident run with the last N layers trained, made once for each N."""
    made = {}

    def run(layers):
        if layers not in made:
            settings = tiny(model__trainable_layers=layers, input__path="resident")
            with opened(settings, tmp_path_factory.mktemp("whole") / "run") as training:
                training.fit()
            made[layers] = outcome(training)
        return made[layers]

    return run


@pytest.mark.parametrize(
    ("path", "layers", "epoch", "step", "number"),
    [
        ("resident", -1, 1, 0, signal.SIGTERM),
        ("resident", -1, 2, 2, signal.SIGINT),
        ("resident", -1, 2, 4, signal.SIGTERM),
        ("resident", 4, 1, 2, signal.SIGINT),
        ("tfdata", -1, 2, 0, signal.SIGINT),
        ("tfdata", -1, 1, 2, signal.SIGTERM),
        ("tfdata", -1, 1, 4, signal.SIGTERM),
    ],
)
def test_stopped_within_an_epoch_and_resumed_equals_uninterrupted(
    tmp_path, uninterrupted, path, layers, epoch, step, number
):
    settings = tiny(model__trainable_layers=layers, input__path=path)
    taken = 5 * (epoch - 1) + step + 1
    with opened(settings, tmp_path / "run") as training:
        assert len(training.train_positions) == 36  # five batches of eight
        stop_at(training.input, 2 * (epoch - 1), step, number)
        with pytest.raises(KeyboardInterrupt, match="resume"):
            training.fit()
        assert int(training.state.step) == taken
        assert len(training.note["history"]) == 2 * (epoch - 1)
    with opened(settings, tmp_path / "run") as training:
        training.resume()
        assert int(training.state.step) == taken
        training.fit()
    if layers == 4:
        assert set(training.state.frozen["backbone"]) >= {"conv1", "bn1"}
    assert_same(outcome(training), uninterrupted(layers))


RECIPE = {
    "train__schedule": "cosine",
    "train__warmup": 0.6,  # three of five batches
    "train__backbone_rate": 0.5,
    "train__label_smoothing": 0.1,
    "train__ema": 0.9,
}


def test_a_run_by_the_whole_recipe_resumes_and_tells_its_rate(tmp_path):
    settings = tiny(**RECIPE)
    with opened(settings, tmp_path / "whole") as training:
        training.fit()
    uninterrupted = outcome(training)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.01, 3, 10)
    rates = [line["lr"] for line in training.note["history"]]
    np.testing.assert_allclose(rates, [schedule(at) for at in (4, 4, 9, 9)], rtol=1e-5)
    with opened(settings, tmp_path / "run") as training:
        stop_at(training.input, 2, 2)
        with pytest.raises(KeyboardInterrupt, match="resume"):
            training.fit()
    with opened(settings, tmp_path / "run") as training:
        training.resume()
        assert int(training.state.step) == 8
        training.fit()
    assert_same(outcome(training), uninterrupted)


def test_averaged_weights_are_validated_kept_and_opened(tmp_path):
    # The last epoch is kept, whatever its loss.
    settings = tiny(train__ema=0.9, train__on_validation=True, train__patience=0)
    result, _ = loop.train_and_evaluate(settings, tmp_path / "run")
    training = Training.latest
    average = host(training.state.average)
    plain = (training.state.params, training.state.batch_stats)
    losses = [training.predict("validation", *of)[1].mean() for of in (average, plain)]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    assert training.note["history"][-1]["loss"] == pytest.approx(losses[0], rel=1e-6)
    assert result["validation"]["log_loss"]["value"] == pytest.approx(losses[0], rel=1e-4)
    found = trained.load(tmp_path / "run")
    for kept in (host(training.best), host((found.params, found.batch_stats))):
        jax.tree.map(np.testing.assert_array_equal, kept, average)


def test_label_smoothing_is_of_the_training_loss_alone(tmp_path):
    lines = []
    for smoothing in (0.0, 0.5):
        # Nothing is learnt, so that both runs have the same weights.
        settings = tiny(train__label_smoothing=smoothing, train__learning_rate=0, train__epochs=1)
        with opened(settings, tmp_path / str(smoothing)) as training:
            training.fit()
        lines.append([line["loss"] for line in training.note["history"]])
    assert lines[0][0] != lines[1][0] and lines[0][1] == lines[1][1]


def test_stopped_within_the_last_validation_leaves_the_test_split_unseen(
    tmp_path, uninterrupted, monkeypatch
):
    settings = tiny(data__cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        make = build.make_input

        def make_input(*arguments):
            source = make(*arguments)
            stop_at(source, 3, 0)
            return source

        patch.setattr(build, "make_input", make_input)
        with pytest.raises(KeyboardInterrupt, match="resume"):
            loop.train_and_evaluate(settings, tmp_path / "run")
    assert not looks(tmp_path / "cache")
    assert not (tmp_path / "run" / "result.json").exists()
    result, before = loop.train_and_evaluate(settings, tmp_path / "run")
    assert (result["epochs"], result["test_looks"], before) == (2, 1, False)
    assert int(Training.latest.state.step) == 10
    assert_same(outcome(Training.latest), uninterrupted(-1))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_validation_loss_that_is_not_finite_is_told_and_not_saved(
    tmp_path, scripted, loss, epoch
):
    scripted([1.0] * (epoch - 1) + [loss, 1.0])
    with opened(tiny(), tmp_path / "run") as training:
        with pytest.raises(UserError, match=f"diverged in epoch {epoch}") as error:
            training.fit()
        assert "\n" not in str(error.value)
    with opened(tiny(), tmp_path / "run") as training:
        training.resume()
        assert len(training.note["history"]) == 2 * (epoch - 1)
        assert not training.note["finished"]


# ------------------------------------------------------------------ whole runs


def read_predictions(workdir, split, classes):
    """Labels int [N] and probabilities float [N, K] of a split in predictions.csv."""
    with open(workdir / "predictions.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    labels = np.array([classes.index(row["label"]) for row in rows])
    return labels, np.array([[float(row[name]) for name in classes] for row in rows])


def looks(cache):
    ledger = cache / "test_looks.jsonl"
    return ledger.read_text().splitlines() if ledger.exists() else []


def test_two_classes_by_one_logit(tmp_path):
    settings = tiny(data__classes="clear,perihilar", data__phantom__count=96, train__patience=0)
    result, _ = loop.train_and_evaluate(settings, tmp_path / "run")
    assert result["classes"] == ["clear", "perihilar"]
    shapes = [leaf.shape for leaf in jax.tree.leaves(Training.latest.state.params["head"])]
    assert sorted(shapes) == [(1,), (16, 1)]
    for split in ("validation", "test"):
        labels, probabilities = read_predictions(tmp_path / "run", split, result["classes"])
        assert probabilities.shape == (result["n"][split], 2)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
        auroc = sk.roc_auc_score(labels, probabilities[:, 1])
        assert result[split]["auroc"]["value"] == pytest.approx(auroc, abs=1e-9)
        accuracy = sk.accuracy_score(labels, probabilities.argmax(axis=1))
        assert result[split]["accuracy"]["value"] == pytest.approx(accuracy)
        assert set(result[split]["per_class"]) == {"clear", "perihilar"}
    run = predictions.read(tmp_path / "run")
    assert run.result == result and result["verdict"].startswith("accuracy ")
    fitted = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert fitted["training_prior"] == {"clear": 0.5, "perihilar": 0.5}
    assert 0.05 <= fitted["temperature"]["value"] <= 20
    scaled = calibration.scaled(run.splits["test"].probabilities, fitted["temperature"]["value"])
    wanted = sk.log_loss(run.splits["test"].labels, scaled)
    assert fitted["after"]["log_loss"]["value"] == pytest.approx(wanted, rel=1e-4)
    assert (tmp_path / "run" / "figures" / "calibration.png").exists()


def test_every_finished_run_on_a_split_counts_as_one_look(tmp_path):
    settings = tiny(train__epochs=1, data__cache=tmp_path / "cache")
    for k, name in enumerate(("first", "second"), start=1):
        result, before = loop.train_and_evaluate(settings, tmp_path / name)
        assert (result["test_looks"], before) == (k, False)
    result, before = loop.train_and_evaluate(settings, tmp_path / "first")
    assert (result["test_looks"], before) == (1, True)
    assert len(looks(tmp_path / "cache")) == 2


# --------------------------------------------------------------------- refused


def test_a_folder_in_use_is_refused(tmp_path):
    settings = tiny()
    with contextlib.closing(RunFolder(tmp_path / "run", settings)):
        with pytest.raises(UserError, match="in use by another process") as error:
            RunFolder(tmp_path / "run", settings)
        assert "\n" not in str(error.value)
    RunFolder(tmp_path / "run", settings).close()


def test_other_pixels_under_the_same_names_are_refused(tmp_path):
    phantoms = dataset.prepare(tiny()).store
    for name, image in zip(phantoms.names, phantoms.images, strict=True):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(file)
    settings = tiny(data__name="folder", data__dir=tmp_path / "images")
    with opened(settings, tmp_path / "run") as training:
        data = training.data
        stop_at(training.input, 0, 1)
        with pytest.raises(KeyboardInterrupt):
            training.fit()
    with opened(settings, tmp_path / "run") as training:
        training.resume()
        assert int(training.state.step) == 2
    changed = tmp_path / "images" / data.store.names[data.splits["train"][0]]
    Image.fromarray(255 - np.asarray(Image.open(changed))).save(changed)
    (tmp_path / "images").rename(tmp_path / "others")
    elsewhere = tiny(data__name="folder", data__dir=tmp_path / "others")
    kept = (tmp_path / "run/config.json").read_bytes()
    with opened(elsewhere, tmp_path / "run") as training:
        assert training.data.digest == data.digest
        with pytest.raises(UserError, match="other data") as error:
            training.resume()
        assert "\n" not in str(error.value)
        assert int(training.state.step) == 0
    assert (tmp_path / "run/config.json").read_bytes() == kept  # what is refused changes nothing
