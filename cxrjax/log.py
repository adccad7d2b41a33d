"""Progress bars, JSON files written atomically, and JSON lines. Quiet when not on a terminal."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, total: int | None, what: str, unit: str) -> Iterable[T]:
    """Yields `items` behind a bar with rate and ETA on a terminal; plain `items` in a pipe."""
    return tqdm(items, **_bar(total, what, unit))


def progress_bar(*, total: int | None, what: str, unit: str) -> tqdm:
    """A bar to `update(n)` by hand, with rate and ETA on a terminal; silent in a pipe."""
    return tqdm(**_bar(total, what, unit))


def _bar(total: int | None, what: str, unit: str) -> dict[str, Any]:
    return dict(
        total=total,
        desc=what,
        unit=" " + unit,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
        file=sys.stderr,
    )


def say(message: str) -> None:
    """Prints one line of status to standard error, above any running bar."""
    tqdm.write(message, file=sys.stderr)


def tell(line: str) -> None:
    """Prints one line of results to standard output at once, above any running bar."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


@contextmanager
def replacing(path: Path, mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """A file to write that takes the place of `path` when the body ends without an exception.

    A reader or a crash never sees half a file, and a failed write leaves the old one.

    Args:
      mode, options: as for `open`; text is UTF-8 unless they say otherwise.
    """
    # Not by process: those of several containers may have the same number.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}.tmp")
    if "b" not in mode:
        options = {"encoding": "utf-8", **options}
    try:
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by a file of `text`, in one step."""
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity become null (strict JSON)."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """`value` as one line of strict JSON; NaN and infinity become null."""
    return json.dumps(_finite(value), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
