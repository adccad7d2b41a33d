"""Predictions over a whole split, and the files that say how good they are."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cxrjax import figures, log, metrics
from cxrjax.data.batches import Batch, Plan, evaluation_plan
from cxrjax.data.dataset import Dataset
from cxrjax.data.resident import ResidentInput
from cxrjax.errors import writing

Predict = Callable[[Batch], tuple[jax.Array, jax.Array]]
Predictions = tuple[np.ndarray, np.ndarray]
_REMEDY = "choose another --workdir"


def predict(
    step: Predict,
    batches: Callable[[Plan], Iterator[Batch]],
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


def predict_images(step: Predict, images: np.ndarray, batch_size: int, what: str) -> np.ndarray:
    """Probabilities float32 [N, K] of images uint8 [N, S, S] that are in no store."""
    source = ResidentInput(images, np.zeros(len(images), np.int32))
    return predict(step, source.batches, np.arange(len(images)), batch_size, what)[0]


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
    predictions: dict[str, Predictions],
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Writes predictions.csv and the figures; returns the per-split part of result.json.

    Args:
      predictions: by split name ("validation", "test"), in the order of dataset.splits.
      resamples: bootstrap resamples behind each interval; whole duplicate groups are drawn.
    """
    store = dataset.store
    result = {}
    for split, (probabilities, _) in predictions.items():
        positions = dataset.splits[split]
        result[split] = metrics.evaluate(
            store.labels[positions],
            probabilities,
            dataset.classes,
            groups=dataset.groups[positions],
            resamples=resamples,
            seed=seed,
        )
    with writing(folder, _REMEDY):
        _write_predictions(folder / "predictions.csv", dataset, predictions)
        figures_folder.mkdir(exist_ok=True)
        figures.curves(history, best_epoch, figures_folder / "curves.png")
        for split in predictions:
            figures.confusion_matrix(
                np.asarray(result[split]["confusion_matrix"]),
                dataset.classes,
                f"{split} split",
                figures_folder / f"confusion_matrix_{split}.png",
            )
        positions, probabilities = dataset.splits["test"], predictions["test"][0]
        figures.test_images(
            store.images,
            positions,
            store.labels[positions],
            probabilities,
            dataset.classes,
            [store.names[i] for i in positions],
            figures_folder / "test_images.png",
        )
    return result


def _write_predictions(path: Path, dataset: Dataset, predictions: dict[str, Predictions]) -> None:
    with log.replacing(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "index", "name", "label", *dataset.classes])
        for split, (probabilities, _) in predictions.items():
            for i, row in zip(dataset.splits[split], probabilities, strict=True):
                label = dataset.classes[dataset.store.labels[i]]
                numbers = [f"{p:.7g}" for p in row]
                writer.writerow([split, int(i), dataset.store.names[i], label, *numbers])
