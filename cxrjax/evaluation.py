"""Predictions over a whole split, and the files that say how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import evaluation_figures, figures, log, metrics, predictions, uncertainty
from cxrjax.config import Config
from cxrjax.data.batches import Batch, Plan, evaluation_plan
from cxrjax.data.dataset import Dataset, training_positions
from cxrjax.data.resident import ResidentInput
from cxrjax.errors import writing

Predict = Callable[[Batch], tuple[jax.Array, jax.Array]]
Predictions = tuple[np.ndarray, np.ndarray]
Source = Callable[[Plan], Iterator[Batch]]
_REMEDY = "choose another --workdir"


def predict(
    step: Predict,
    batches: Source,
    positions: np.ndarray,
    batch_size: int,
    what: str,
) -> Predictions:
    """Runs `step` over a split; every example counts once.

    Args:
      step: batch -> (probabilities [B, K], cross-entropy [B]).
      batches: plan -> batches on the device.
      positions: int [N] into the store.
      what: label of the progress bar.
    Returns:
      probabilities float32 [N, K] and cross-entropy float32 [N], in the order of `positions`.
    """
    plan = evaluation_plan(positions, batch_size)
    outputs, previous = [], None
    with log.progress_bar(total=len(positions), what=what, unit="images") as bar:
        for batch in batches(plan):
            outputs.append(step(batch))
            # Waiting for the batch before keeps the bar true and the device busy.
            if previous is not None:
                jax.block_until_ready(previous)
            previous = outputs[-1]
            bar.update(min(batch_size, len(positions) - bar.n))
    host = jax.device_get(outputs)
    rows = plan.mask.ravel()
    return (
        np.concatenate([probabilities for probabilities, _ in host])[rows],
        np.concatenate([loss for _, loss in host])[rows],
    )


def predict_images(
    step: Predict,
    images: np.ndarray,
    batch_size: int,
    what: str,
    behind: Callable[[Source], Source] = lambda batches: batches,
) -> np.ndarray:
    """Probabilities float32 [N, K] of images uint8 [N, S, S] that are in no store.

    Args:
      behind: from batches of images to what `step` takes.
    """
    source = ResidentInput(images, np.zeros(len(images), np.int32))
    return predict(step, behind(source.batches), np.arange(len(images)), batch_size, what)[0]


def summarise_epoch(
    labels: np.ndarray, predictions: Predictions, classes: tuple[str, ...]
) -> dict[str, Any]:
    """Loss, accuracy and per-class recall of one pass, for metrics.jsonl (no intervals: a log)."""
    probabilities, loss = predictions
    hit = probabilities.argmax(axis=1) == labels
    recall = {c: float(hit[labels == k].mean()) for k, c in enumerate(classes)}
    return {
        "loss": float(loss.mean(dtype=np.float64)),
        "accuracy": float(hit.mean()),
        "recall": recall,
    }


def report(
    folder: Path,
    figures_folder: Path,
    dataset: Dataset,
    history: list[dict[str, Any]],
    best_epoch: int,
    predicted: dict[str, Predictions],
    config: Config,
) -> dict[str, Any]:
    """Writes predictions, calibration.json and the figures; returns the splits of result.json.

    Args:
      predicted: by split name ("validation", and "test" where it is read), in the order of
        dataset.splits.
      config: the whole configuration; `eval` says how many resamples stand behind each interval
        (whole duplicate groups are drawn) and what is asked of the cuts.
    """
    splits = {name: _split(dataset, name, of[0]) for name, of in predicted.items()}
    resamples, seed = config.eval.resamples, config.seed
    result = {
        name: metrics.evaluate(
            of.labels, of.probabilities, dataset.classes, of.groups, resamples, seed
        )
        for name, of in splits.items()
    }
    aims = uncertainty.Aims(
        config.eval.conformal_level, config.eval.coverage, config.eval.sensitivity
    )
    prior, seen = _prior(dataset, config), config.train.on_validation
    if seen:
        result["validation"]["trained_on"] = True
    calibration = uncertainty.assess(
        splits, dataset.classes, prior, aims, resamples, seed, seen=seen
    )
    with writing(folder, _REMEDY):
        predictions.write(folder, splits, dataset.classes)
        log.write_json(folder / "calibration.json", calibration)
        figures_folder.mkdir(exist_ok=True)
        figures.curves(history, best_epoch, figures_folder / "curves.png")
        for split in splits:
            figures.confusion_matrix(
                np.asarray(result[split]["confusion_matrix"]),
                dataset.classes,
                f"{split} split" + (", trained on" if "trained_on" in result[split] else ""),
                figures_folder / f"confusion_matrix_{split}.png",
            )
        if (test := splits.get("test")) is None:
            return result
        figures.test_images(
            dataset.store.images,
            test.index,
            test.labels,
            test.probabilities,
            dataset.classes,
            test.names,
            figures_folder / "test_images.png",
        )
        evaluation_figures.calibration(calibration, figures_folder / "calibration.png")
    return result


def _split(dataset: Dataset, name: str, probabilities: np.ndarray) -> predictions.Split:
    positions, store = dataset.splits[name], dataset.store
    return predictions.Split(
        positions,
        tuple(store.names[i] for i in positions),
        np.asarray(store.labels[positions]),
        probabilities,
        dataset.groups[positions],
    )


def _prior(dataset: Dataset, config: Config) -> np.ndarray:
    """Class frequencies as the training loss weighs them: even ones under balanced weights."""
    k = len(dataset.classes)
    counts = np.bincount(dataset.store.labels[training_positions(dataset, config)], minlength=k)
    return np.full(k, 1 / k) if config.train.class_weights == "balanced" else counts / counts.sum()
