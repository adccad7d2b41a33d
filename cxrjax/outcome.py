"""From the best weights of a run to its result.json: the only place that reads the test split."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from cxrjax import evaluation, optim, runtime, step, verdict
from cxrjax.audit import shortcuts
from cxrjax.config import Config
from cxrjax.data import dataset
from cxrjax.run_folder import RunFolder
from cxrjax.trained import weights_digest


class Training(Protocol):
    """What is asked of a run whose training has ended; see `loop.Training`."""

    config: Config
    data: dataset.Dataset
    folder: RunFolder
    note: dict[str, Any]
    state: step.TrainState
    best: Any  # (params, batch statistics)
    input: Any  # the input path

    def predict(self, split: str, params: Any, batch_stats: Any) -> evaluation.Predictions: ...

    def predict_images(self, images: np.ndarray, what: str) -> np.ndarray: ...


def write(training: Training) -> dict[str, Any]:
    """Evaluates the best weights and writes the files of the result; returns that of result.json.

    The test split is read here, once; not at all where `eval.test` is False.
    """
    data, note, config = training.data, training.note, training.config
    trained, batch_stats = training.best
    predictions = {"validation": training.predict("validation", *training.best)}
    looks = dataset.test_looks(data)
    if config.eval.test:
        looks = dataset.record_test_look(data, str(training.folder.path))
        predictions["test"] = training.predict("test", *training.best)
    splits = evaluation.report(
        training.folder.path,
        training.folder.figures,
        data,
        note["history"],
        note["best_epoch"],
        predictions,
        config,
    )
    audit = data.audit
    if config.eval.test and config.eval.shortcuts:
        audit = audit | {"shortcuts": _shortcuts(training, predictions["test"][0])}
    result = {
        "task": config.data.name,
        "model": config.model.name,
        "classes": list(data.classes),
        "n": {split: len(positions) for split, positions in data.splits.items()},
        "epochs": len(note["history"]) // 2,
        "best_epoch": note["best_epoch"],
        "trained_on": list(dataset.training_splits(config)),
        **splits,
        "audit": audit,
        "test_looks": looks.here,
        "weights_digest": weights_digest(
            optim.combine(trained, training.state.frozen), batch_stats
        ),
        "split_digest": data.digest,
        "data_fingerprint": data.fingerprint,
        "input": note["input"] | {"path": training.input.name},
        "parameters": {
            "trainable": optim.count(training.state.params),
            "frozen": optim.count(training.state.frozen),
        },
        "seconds": round(sum(line["seconds"] for line in note["history"]), 1),
        **runtime.describe(),
    }
    result["verdict"] = verdict.line(result)
    training.folder.write_result(result)
    return result


def _shortcuts(training: Training, intact: np.ndarray) -> dict[str, Any]:
    """What the best weights know of the test images without lungs: part of the one look at them."""
    without = shortcuts.deprived(training.config.data.frame)
    return shortcuts.of_split(
        lambda images: training.predict_images(images, "test without lungs"),
        training.data,
        training.data.splits["test"],
        views=(without,),
        without=without,
        intact=intact,
        resamples=training.config.eval.resamples,
    )
