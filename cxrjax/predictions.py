"""predictions.csv and groups.json of a run: written once by the evaluation, read by what follows.

The two files and result.json are all that comparisons and decisions need: none of them loads an
image, and none of them reads the test split again.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import config as config_lib
from cxrjax import log
from cxrjax.data import ledger
from cxrjax.data.ledger import Looks
from cxrjax.errors import MALFORMED, UserError, reason
from cxrjax.runtime import cache_root

_AGAIN = "train it again, or name another run"
_EVEN = 1e-6  # probabilities closer than this may have changed places when they were written
_SUM = 1e-4  # how far from 1 float32 probabilities of any number of classes may add up, and more


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


def looks(folder: Path, result: dict[str, Any]) -> Looks:
    """How often a run's test split was read so far, by all runs; at least what the run knew.

    Args:
      folder, result: of the finished run, and what its result.json holds.
    """
    told = result.get("test_looks")
    if type(told) is not int or told < 1:  # none, or damaged
        told = int("test" in result)
    data, digest = result.get("data_fingerprint"), result.get("split_digest")
    config = folder / "config.json"
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
    with understood(folder):
        classes = tuple(result["classes"])
        with open(
            folder / "predictions.csv", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            header, *rows = csv.reader(file)
        if header != ["split", "index", "name", "label", *classes]:
            raise ValueError("its header is not that of the run's classes")
        groups = _groups(folder)
        splits = {
            split: _split(
                [row for row in rows if row[0] == split],
                classes,
                None if groups is None else groups[split],
                result[split]["accuracy"],
            )
            for split in ("validation", *(["test"] if "test" in result else []))
        }
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
    with understood(folder):
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result, dict):
            raise ValueError("result.json does not hold a JSON object")
    return result


@contextlib.contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Turns what the body raises over the files of a finished run into a UserError."""
    try:
        yield
    except (OSError, csv.Error, *MALFORMED) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> UserError:
    """What to raise where the files of a finished run cannot be made sense of."""
    return UserError(f"the results in {folder} cannot be read ({reason(error)}); {_AGAIN}.")


def _groups(folder: Path) -> dict[str, list[int]] | None:
    """None for a run of a version that kept no groups."""
    path = folder / "groups.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _split(
    rows: list[list[str]],
    classes: tuple[str, ...],
    groups: list[int] | None,
    accuracy: dict[str, Any],
) -> Split:
    """The rows of a split as arrays.

    Args:
      groups: of its images; None: every image alone.
      accuracy: what result.json says of the split, {value, n, ...}.
    """
    label_of = {name: k for k, name in enumerate(classes)}
    index = np.array([int(row[1]) for row in rows], np.int64)
    own = np.arange(len(rows)) if groups is None else np.array(groups, np.int64)
    if own.shape != (len(rows),) or accuracy["n"] != len(rows) or not rows:
        raise ValueError(f"{len(rows)} predictions for {own.size} of {accuracy['n']} images")
    labels = np.array([label_of[row[3]] for row in rows])
    probabilities = _probabilities(rows, len(classes))
    hit = probabilities.argmax(axis=1) == labels
    first, second = np.sort(probabilities, axis=1)[:, :-3:-1].T
    open_ = (first - second < _EVEN).mean()
    if not abs(accuracy["value"] - hit.mean()) <= open_ + _EVEN:
        raise ValueError(
            f"predictions.csv has an accuracy of {hit.mean():.4f}, result.json one of "
            f"{accuracy['value']:.4f}"
        )
    return Split(index, tuple(row[2] for row in rows), labels, probabilities, own)


def _probabilities(rows: list[list[str]], k: int) -> np.ndarray:
    """float64 [N, K] of the rows of predictions.csv, checked."""
    if any(len(row) != 4 + k for row in rows):
        raise ValueError(f"a row of predictions.csv does not have {k} probabilities")
    found = np.array([[float(p) for p in row[4:]] for row in rows])
    # NaN is in no range.
    if not ((found >= 0) & (found <= 1)).all() or (abs(found.sum(axis=1) - 1) > _SUM).any():
        raise ValueError("the probabilities of an image do not lie in [0, 1] or do not sum to 1")
    return found
