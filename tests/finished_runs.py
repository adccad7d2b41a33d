"""Folders as finished runs leave them, without training: for the commands that read runs."""

import json

import numpy as np

from cxrjax import calibration, config, log, metrics, predictions, uncertainty

CLASSES = ("COVID", "Normal", "Viral Pneumonia")
AIMS = uncertainty.Aims(0.9, 0.9, 0.95)


def split(n, quality, seed, prefix="image", luck=0, lift=2.5):
    """Predictions that are right with a chance of `quality`, and too sure of themselves."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    told = np.where(np.random.default_rng(luck).uniform(size=n) < quality, labels, (labels + 1) % 3)
    z = rng.normal(size=(n, 3))
    z[np.arange(n), told] += lift
    names = tuple(f"{prefix}-{i}.png" for i in range(n))
    probabilities = np.float32(calibration.scaled(np.exp(z), 0.5))
    return predictions.Split(np.arange(n), names, labels, probabilities, np.arange(n) // 2)


def make(folder, quality=0.9, n=160, classes=CLASSES, cache=None, luck=0, lift=2.5, **changes):
    """Writes result.json, predictions.csv, groups.json, calibration.json and config.json."""
    folder.mkdir()
    test = split(n, quality, 2, luck=luck, lift=lift)
    splits = {"validation": split(90, quality, 1, lift=lift), "test": test}
    predictions.write(folder, splits, classes)
    found = {
        name: metrics.evaluate(of.labels, of.probabilities, classes, of.groups, 100)
        for name, of in splits.items()
    }
    no_leaks = dict.fromkeys(("train-validation", "train-test", "validation-test"), 0)
    result = {
        "task": "folder",
        "model": "baseline",
        "classes": list(classes),
        "epochs": 2,
        "best_epoch": 1,
        "split_digest": "d" * 64,
        "data_fingerprint": "f",
        "test_looks": 1,
        "audit": {"leaks": {"pairs": no_leaks, "patients": no_leaks}, "summary": []},
        **found,
    }
    log.write_json(folder / "result.json", result | changes)
    fitted = uncertainty.assess(splits, classes, np.full(3, 1 / 3), AIMS, 100, 0)
    log.write_json(folder / "calibration.json", fitted)
    settings = config.default()
    settings.data.cache = str(cache or folder / "cache")
    (folder / "config.json").write_text(config.to_json(settings))
    return folder


def change(path, **values):
    """Replaces fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
