"""predictions.csv and groups.json of a run: written once by the evaluation, read by what follows.

The two files and result.json are all that comparisons and decisions need: none of them loads an
image, and none of them reads the test split again.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import config as config_lib
from cxrjax import log
from cxrjax.data import ledger
from cxrjax.data.ledger import Looks
from cxrjax.errors import UserError
from cxrjax.runtime import cache_root

_AGAIN = "train it again, or name another run"


@dataclass(frozen=True)
class Split:
    """The predictions of one split, N images in the order of the split, K classes."""

    index: np.ndarray  # int64 [N], positions in the store
    names: tuple[str, ...]
    labels: np.ndarray  # int64 [N]
    probabilities: np.ndarray  # float64 [N, K], as the network gave them
    groups: np.ndarray  # int64 [N], equal for near-duplicates and films of one patient


@dataclass(frozen=True)
class Run:
    """What a finished run left behind."""

    folder: Path
    result: dict[str, Any]  # result.json
    classes: tuple[str, ...]
    splits: dict[str, Split]  # validation, test

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def looks(run: Run) -> Looks:
    """How often the run's test split was read so far, by all runs; at least what the run knew."""
    told = run.result.get("test_looks") or int("test" in run.result)
    data, digest = run.result.get("data_fingerprint"), run.result.get("split_digest")
    config = run.folder / "config.json"
    if data is None or digest is None or not config.is_file():
        return Looks(told, 0)
    settings = config_lib.load(str(config))
    now = ledger.count(cache_root(settings.data.cache), data, digest)
    return Looks(max(told, now.here), now.elsewhere)


def untested(folder: Path) -> UserError:
    """What to raise where test figures are asked of a run that left the test split alone."""
    return UserError(
        f"the run in {folder} was not tested (config field eval.test is False); once all else is "
        f"decided, test it by python -m cxrjax.main --workdir {folder} --config.eval.test=True."
    )


def write(folder: Path, splits: dict[str, Split], classes: tuple[str, ...]) -> None:
    """Writes predictions.csv and groups.json, each in one step."""
    path = folder / "predictions.csv"
    with log.replacing(path, newline="", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "index", "name", "label", *classes])
        for split, of in splits.items():
            for i, name, label, row in zip(
                of.index, of.names, of.labels, of.probabilities, strict=True
            ):
                numbers = [f"{p:.7g}" for p in row]
                writer.writerow([split, int(i), name, classes[label], *numbers])
    log.write_json(folder / "groups.json", {s: of.groups.tolist() for s, of in splits.items()})


def read(folder: Path, *, untested_too: bool = False) -> Run:
    """The results and predictions of a finished run.

    Args:
      untested_too: whether a run that left the test split alone will do; `splits` lacks it then.
    Raises:
      UserError: when there is no finished run, it was not tested, or its files are damaged or do
        not fit together.
    """
    result = result_of(folder)
    if "test" not in result and not untested_too:
        raise untested(folder)
    try:
        classes = tuple(result["classes"])
        with open(
            folder / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            header, *rows = csv.reader(file)
        if header != ["split", "index", "name", "label", *classes]:
            raise ValueError("its header is not that of the run's classes")
        groups = _groups(folder)
        splits = {
            split: _split([row for row in rows if row[0] == split], classes, groups.get(split))
            for split in ("validation", "test")
            if split in result
        }
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise damaged(folder, error) from error
    return Run(folder, result, classes, splits)


def result_of(folder: Path) -> dict[str, Any]:
    """The content of a finished run's result.json.

    Raises:
      UserError: when there is no finished run, or the file is damaged.
    """
    path = folder / "result.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name the --workdir of a finished run.")
    if not path.exists():
        begun = f", or finish this one by python -m cxrjax.main --workdir {folder}"
        mend = begun if (folder / "config.json").is_file() else ""
        raise UserError(f"{folder} holds no result.json; name a run that has finished{mend}.")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("result.json does not hold a JSON object")
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error
    return result


def damaged(folder: Path, error: Exception) -> UserError:
    """What to raise where the files of a finished run cannot be made sense of."""
    reason = f"{type(error).__name__}: {error}"
    return UserError(f"the results in {folder} cannot be read ({reason}); {_AGAIN}.")


def _groups(folder: Path) -> dict[str, list[int]]:
    path = folder / "groups.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _split(rows: list[list[str]], classes: tuple[str, ...], groups: list[int] | None) -> Split:
    label_of = {name: k for k, name in enumerate(classes)}
    index = np.array([int(row[1]) for row in rows])
    # A run of a version that kept no groups: every image alone.
    alone = np.arange(len(rows)) if groups is None else np.array(groups, int)
    if len(alone) != len(rows) or not rows:
        raise ValueError(f"{len(rows)} predictions for {len(alone)} images")
    probabilities = np.array([[float(p) for p in row[4:]] for row in rows])
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not a number")
    labels = np.array([label_of[row[3]] for row in rows])
    return Split(index, tuple(row[2] for row in rows), labels, probabilities, alone)
