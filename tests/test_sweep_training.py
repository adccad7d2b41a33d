"""Trials trained side by side against each of them trained alone by the command for one run."""

import json

import jax
import numpy as np
import pytest

from cxrjax import config, loop, prefix
from cxrjax.data import dataset
from cxrjax.sweep import grid, plan, run_unit, trials

# Stacked matrix products sum in another order; Adam's division by small second moments then
# magnifies the last digit. What is compared are losses near 1.4 after several epochs.
TOLERANCE = 5e-5
TINY = {
    "data.phantom.count": 96,
    "data.image_size": 32,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "model.filters": 4,
    "model.head.dense": 8,
    "train.epochs": 3,
    "train.patience": 0,
    "train.learning_rate": 0.01,
    "eval.batch_size": 16,
    "eval.resamples": 100,
    "eval.shortcuts": False,
}
HEADS = {
    "train.batch_size": (8, 16),  # 54 images: the last batch of both is filled up
    "model.head.dropout": (0.0, 0.4),
    "train.learning_rate": (0.02, 0.005),
}
TAILS = {
    "train.class_weights": ("none", "balanced"),
    "model.head.l2": (0.0, 0.1),
    "train.optimizer": ("adam", "sgd"),
}


def sweep_of(values, **changes):
    base = config.default()
    for field, value in (TINY | {k.replace("__", "."): v for k, v in changes.items()}).items():
        config.assign(base, field, value, "test")
    return grid.expand(base, values, "test")


def run_all(sweep, stacked=True, should_stop=lambda: False):
    """Record and arrays of each trial by its key."""
    data = dataset.prepare(sweep.config)
    units = plan.plan(sweep.points, prefix.is_frozen, lambda cohort: stacked)
    finished = {}
    for unit in units:
        for record, arrays in run_unit.run(unit, data, "data", should_stop, lambda share: None):
            assert record["key"] not in finished
            finished[record["key"]] = record, arrays
    return finished


def alone(point, folder):
    """What the command for one run writes of a trial: history and validation probabilities."""
    result, _ = loop.train_and_evaluate(point.config, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train, validation = lines[::2], lines[1::2]
    history = [
        (a["loss"], a["accuracy"], b["loss"], b["accuracy"])
        for a, b in zip(train, validation, strict=True)
    ]
    return result, np.asarray(history)


def assert_equal_losses(history, other):
    np.testing.assert_allclose(history[:, ::2], other[:, ::2], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (HEADS, {"model__trainable_layers": 0, "augment__shift": 0.1, "augment__rotation": 10.0}),
        (HEADS, {"model__trainable_layers": 0, "augment__shift": 0.1, "cache__views": 2}),
        (HEADS, {"model__trainable_layers": 0, "model__head__batch_norm": True}),
        (
            TAILS,
            {
                "model__trainable_layers": 4,
                "train__batch_size": 8,
                "data__phantom__label_noise": 0.3,  # leaves the classes unbalanced
            },
        ),
        (
            {"train.learning_rate": (0.02, 0.005)},
            # Adam on a whole network, through batch norm, makes much of the last digit.
            {"train__batch_size": 8, "train__optimizer": "sgd", "augment__zoom": 0.1},
        ),
        (
            {"train.epochs": (2, 3), "train.warmup": (0.5, 1.0)},
            {
                "model__trainable_layers": 4,
                "train__batch_size": 8,
                "train__schedule": "cosine",
                "train__backbone_rate": 0.5,
                "train__label_smoothing": 0.1,
                "train__ema": 0.9,
            },
        ),
    ],
    ids=["live", "views", "stored", "tail", "whole", "recipe"],
)
def test_side_by_side_equals_alone(tmp_path, values, changes):
    sweep = sweep_of(values, **changes)
    stacked, separate = run_all(sweep), run_all(sweep, stacked=False)
    assert set(stacked) == set(separate) == {point.key for point in sweep.points}
    for key, (record, arrays) in stacked.items():
        assert_equal_losses(arrays["history"], separate[key][1]["history"])
        assert record["how"].startswith("stacked")
    last = sweep.points[-1]  # one only: it compiles a whole run of its own
    result, history = alone(last, tmp_path / "run")
    record, arrays = stacked[last.key]
    assert_equal_losses(arrays["history"], history)
    assert record["best_epoch"] == result["best_epoch"]
    assert record["validation"]["accuracy"] == result["validation"]["accuracy"]
    assert len({str(arrays["history"].round(6)) for _, arrays in stacked.values()}) == len(stacked)


def test_trials_stop_early_each_on_its_own_and_leave_the_others_alone():
    """At these rates the fast trials turn worse at once; the slow ones go on."""
    values = {"train.learning_rate": (0.5, 1e-3, 0.7, 2e-3, 0.6)}
    frozen = {"model__trainable_layers": 0, "train__batch_size": 8}
    early = run_all(sweep_of(values, train__epochs=8, train__patience=1, **frozen))
    late = run_all(sweep_of(values, train__epochs=8, **frozen))
    epochs = [record["epochs"] for record, _ in early.values()]
    assert len(set(epochs)) > 1
    by_rate = {record["values"]["train.learning_rate"]: a for record, a in late.values()}
    for record, arrays in early.values():
        n = record["epochs"]
        whole = by_rate[record["values"]["train.learning_rate"]]["history"]
        assert_equal_losses(arrays["history"], whole[:n])
        losses = whole[:, 2]
        worse = next((e for e in range(1, 8) if losses[e] >= losses[:e].min()), 7)
        assert n == worse + 1
        assert record["best_epoch"] == 1 + int(losses[:n].argmin())
        assert arrays["probabilities"].shape == (20, 4)


def test_a_trial_that_diverges_is_recorded_and_the_others_go_on():
    values = {"train.learning_rate": (100.0, 0.01), "train.optimizer": ("sgd",)}
    found = run_all(sweep_of(values, train__batch_size=8, model__head__l2=10.0))
    by_rate = {record["values"]["train.learning_rate"]: record for record, _ in found.values()}
    assert by_rate[100.0]["status"] == trials.DIVERGED
    assert by_rate[100.0]["validation"] is None
    json.dumps(by_rate[100.0], allow_nan=False)
    assert by_rate[0.01]["status"] == trials.FINISHED


def test_too_large_for_the_device_is_halved_and_then_recorded(monkeypatch):
    """A device that holds two trials at most, and none of batch size 16."""
    sweep = sweep_of(HEADS, model__trainable_layers=0)
    make = run_unit.Running.__init__

    def small(self, cohort, stream, data):
        if len(cohort.points) > 2 or cohort.config.train.batch_size > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        make(self, cohort, stream, data)

    monkeypatch.setattr(run_unit.Running, "__init__", small)
    found = [record for record, _ in run_all(sweep).values()]
    assert len(found) == 8
    status = {record["values"]["train.batch_size"]: set() for record in found}
    for record in found:
        status[record["values"]["train.batch_size"]].add((record["status"], record["how"]))
    assert status == {8: {(trials.FINISHED, "stacked of 2")}, 16: {(trials.OUT_OF_MEMORY, "alone")}}


def test_another_error_is_not_taken_for_a_small_device(monkeypatch):
    def broken(self, cohort, stream, data):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(run_unit.Running, "__init__", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run_all(sweep_of({"train.learning_rate": (0.1, 0.2)}))


def test_stopping_ends_between_batches():
    with pytest.raises(trials.Stopped):
        run_all(sweep_of({"train.learning_rate": (0.1,)}), should_stop=lambda: True)
