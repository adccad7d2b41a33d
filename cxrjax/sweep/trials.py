"""The ledger of a sweep: a line for each trial that is over, and its arrays in a file beside it.

`trials.jsonl` only ever grows. Any number of processes append to it, on one machine or on several
that share the folder, and each may be killed at any moment: a trial is in the ledger with its
arrays, or it is not and runs again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from cxrjax import log
from cxrjax.errors import UserError, writing

FINISHED, DIVERGED, OUT_OF_MEMORY = "finished", "diverged", "out_of_memory"  # how a trial ends
FILE = "trials.jsonl"
_ARRAYS = "trials"  # folder of KEY.npz
_KEY = re.compile(r"[0-9a-f]{16}")
_REMEDY = "choose another --workdir"

Record = dict[str, Any]  # one line: key, values, seed, status, epochs, validation, ...
Records = Sequence[Mapping[str, Any]]


class Stopped(Exception):
    """A search was asked to stop; what is in the ledger stays."""


class Trials:
    """The trials of a sweep that are over. Reading creates nothing."""

    def __init__(self, folder: Path | str):
        """Opens nothing yet; the first `append` makes the sweep's folder."""
        self.folder = Path(folder)
        self.file = self.folder / FILE
        self._forget()

    def records(self) -> dict[str, Record]:
        """All records so far by key, in the order in which they were first written.

        The first record of a key counts, but for `out_of_memory`, which gives way to a later one:
        another machine may have more. A last line that was cut short is ignored; another line
        that cannot be read is told once and passed over, so that its trial runs again.

        Raises:
          UserError: when the file cannot be read, or holds JSON that is no trial.
        """
        try:
            with open(self.file, "rb") as file:
                # Beside a writer on another machine only the lock makes what it wrote visible.
                # Not every file system has locks; reading does well enough without.
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_SH)
                self._refresh(file)
        except FileNotFoundError:
            self._forget()
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UserError(f"{self.file} cannot be read: {reason}; {_REMEDY}.") from error
        return dict(self._records)

    def over(self) -> set[str]:
        """Keys of the trials that ended, however they did."""
        return set(self.records())

    def append(self, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
        """Adds a trial for good: on return its line and its arrays are on the disk.

        Args:
          record: with `key` (16 hex digits), `values`, `status`; written as JSON, NaN as null.
          arrays: by name, written to trials/KEY.npz before the line.
        Returns:
          Whether it was added: not where the ledger holds an outcome of this key already, see
          `records`, which then stays as it is, with its arrays.
        Raises:
          UserError: when the disk is full, the folder read-only, or the file no ledger.
        """
        line = log.json_line(dict(record)).encode()
        if not _is_record(record):
            raise ValueError(f"not a trial's record: {line!r}")
        with writing(self.folder, _REMEDY), self._locked() as file:
            self._refresh(file)
            known = self._records.get(record["key"])
            if known is not None and known["status"] != OUT_OF_MEMORY:
                return False
            self._write_arrays(record["key"], arrays)
            self._write_line(file.fileno(), line)
            self._refresh(file)
        return True

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """The arrays of one trial: history float64 [epochs, 4], probabilities float32 [N, K].

        Raises:
          UserError: when they are missing or damaged.
        """
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}
        except Exception as error:  # a damaged zip archive raises whatever its bytes lead to
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}); take the line with its key out "
                f"of {self.file} and run the sweep again: this trial is repeated."
            ) from error

    def _path(self, key: str) -> Path:
        return self.folder / _ARRAYS / f"{key}.npz"

    def _forget(self) -> None:
        self._records: dict[str, Record] = {}
        self._bytes = self._lines = 0  # taken in: whole lines only

    @contextlib.contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The open ledger, to one process at a time; closing it unlocks."""
        (self.folder / _ARRAYS).mkdir(parents=True, exist_ok=True)
        with open(self.file, "ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file

    def _refresh(self, file: IO[bytes]) -> None:
        """Takes in what was added since the last time."""
        if os.fstat(file.fileno()).st_size < self._bytes:
            self._forget()  # another file, put in its place
        file.seek(self._bytes)
        *whole, rest = file.read().split(b"\n")
        for line in whole:
            number = self._lines + 1
            readable = self._take(line, number) or not line.strip()
            self._lines, self._bytes = number, self._bytes + len(line) + 1
            if not readable:
                log.say(
                    f"{self.file}: line {number} is cut short or damaged; it is passed over, and "
                    "its trial runs again."
                )
        # It may lack nothing but its end; a part of a record is never JSON.
        self._take(rest, self._lines + 1)

    def _take(self, line: bytes, number: int) -> bool:
        """Takes in a line; False when it is not JSON."""
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return False
        if not _is_record(record):
            raise UserError(
                f"{self.file} holds something else than a trial of a sweep in line {number}; "
                f"restore it or {_REMEDY}."
            )
        known = self._records.get(record["key"])
        if known is None or known["status"] == OUT_OF_MEMORY:
            self._records[record["key"]] = record
        return True

    def _write_arrays(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        path = self._path(key)
        with log.replacing(path, "wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - names are strings
        _sync(path.parent)

    def _write_line(self, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if not size:
            _sync(self.folder)  # the ledger is new, and so is the folder of arrays
        elif os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line  # whoever wrote before was killed: its part of a line stays apart
        while line:  # one write, unless the disk fills up on the way
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and isinstance(value.get("key"), str)
        and _KEY.fullmatch(value["key"]) is not None
        and isinstance(value.get("values"), Mapping)
        and all(type(value.get(name)) is int for name in ("seed", "epochs"))
        and _is_number(value.get("seconds"))
        and (
            value.get("status") in (DIVERGED, OUT_OF_MEMORY)
            or (value.get("status") == FINISHED and _is_judged(value))
        )
    )


def _is_judged(record: Mapping[str, Any]) -> bool:
    """Whether there is all that ranks a finished trial."""
    best, validation = record.get("best_epoch"), record.get("validation")
    accuracy = validation.get("accuracy") if isinstance(validation, Mapping) else None
    return (
        type(best) is int
        and 1 <= best <= record["epochs"]
        and isinstance(validation, Mapping)
        and _is_number(validation.get("loss"))
        and isinstance(accuracy, Mapping)
        and all(_is_number(accuracy.get(name)) for name in ("value", "low", "high", "n"))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < math.inf


def _sync(folder: Path) -> None:
    """Makes a new or renamed entry of a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
