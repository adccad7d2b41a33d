"""A sweep on the terminal: a live table of the best trials, and the final one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from cxrjax import log
from cxrjax.sweep import labels, selection
from cxrjax.sweep.trials import FINISHED, Records

_BEST = 5  # trials in the live table
_PAUSE = 0.2  # seconds between two drawings of it, unless a trial ended


class Table:
    """What came out so far, on standard error: redrawn in place on a terminal, else line by line.

    On a terminal the counts, the rate, the time left and the five best trials; lines that `log.say`
    prints in between go above, as the table's lines are bars to it. In a pipe one line for each
    trial that ends, nothing else. To be used in a with statement, or closed.
    """

    def __init__(self, total: int, records: Iterable[Mapping[str, Any]] = ()):
        """Draws the table, where there is a terminal.

        Args:
          total: trials of the sweep.
          records: of those that were over before.
        """
        self._total = total
        self._statuses: dict[str, str] = {}  # by key: one short of memory may come again
        self._best: list[Mapping[str, Any]] = []
        for record in records:
            self._take(record)
        self._over, self._begin = 0, time.monotonic()
        self._lines: list[tqdm] = []
        if sys.stderr.isatty():
            count = 2 + min(_BEST, total)
            bars = range(min(count, max(1, _size().lines - 2)))
            # The first free places; bars that come later find theirs below.
            self._lines = [tqdm(bar_format="{desc}", leave=False, file=sys.stderr) for _ in bars]
        self._draw(None)

    def add(self, record: Mapping[str, Any], eta: float | None = None) -> None:
        """Takes in a trial that has just ended.

        Args:
          record: see `trials.Trials`.
          eta: seconds until the sweep ends; None where it is not known.
        """
        self._take(record)
        self._over += 1
        if self._lines:
            self._draw(eta)
        else:
            left = f"; {duration(eta)} left" if eta is not None else ""
            log.say(f"trial {len(self._statuses)} of {self._total}: {_told(record)}{left}")

    def tick(self, eta: float | None) -> None:
        """Renews rate and time left, at most a few times a second; nothing in a pipe.

        Args:
          eta: see `add`.
        """
        if self._lines and time.monotonic() - self._drawn > _PAUSE:
            self._draw(eta)

    def _draw(self, eta: float | None) -> None:
        if not self._lines:
            return
        self._drawn = time.monotonic()
        width = _size().columns - 1  # a line that wraps could not be redrawn
        texts = [self._status(eta), *_best_rows(self._best)]
        for k, line in enumerate(self._lines):
            line.set_description_str(_cut(texts[k], width) if k < len(texts) else "")

    def close(self) -> None:
        """Takes the table off the terminal."""
        while self._lines:
            self._lines.pop().close()  # from below, or the others would move up

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, record: Mapping[str, Any]) -> None:
        self._statuses[record["key"]] = record["status"]
        self._best = selection.best_first([*self._best, record])[:_BEST]

    def _status(self, eta: float | None) -> str:
        parts = [f"{len(self._statuses)} of {self._total} trials"]
        counts = Counter(self._statuses.values())
        parts += [f"{count} {_words(status)}" for status, count in sorted(counts.items())]
        if self._over:
            parts.append(_rate(self._over / max(time.monotonic() - self._begin, 1e-9)))
        if eta is not None:
            parts.append(f"{duration(eta)} left")
        return ", ".join(parts)


def rows(records: Records, most: int | None = None) -> list[str]:
    """The points of a grid as lines of a table, best first, those of which no seed finished last.

    Accuracy (with its 95 % interval), loss and best epoch as in `selection.ranking`, on the
    validation split.

    Args:
      most: points; None for all of them.
    """
    ranked = selection.ranking(records)
    shown = labels.telling(records)
    seeds = len({record["seed"] for record in records}) > 1
    head = ["", *shown.values(), "accuracy", "loss", "best epoch", "seconds"]
    cells = []
    for place, point in enumerate(ranked, 1):
        count = [f"{len(point['keys'])} of {len(point['keys']) + point['lost']}"] if seeds else []
        cells.append(
            [
                str(place),
                *_values(point["values"], shown),
                *count,
                interval(point["accuracy"]),
                f"{point['loss']:.3f}",
                str(point["best_epoch"]),
                f"{point['seconds']:.1f}",
            ]
        )
    for values, statuses, seconds in _without(records, ranked):
        count = [f"0 of {statuses.total()}"] if seeds else []
        status = ", ".join(map(_words, sorted(statuses)))
        cells.append(["-", *_values(values, shown), *count, status, "", "", f"{seconds:.1f}"])
    if seeds:
        head.insert(1 + len(shown), "seeds")
    kept = cells[:most]
    lines = _aligned([head, *kept])
    if len(kept) < len(cells):
        lines.append(f"and {len(cells) - len(kept)} more")
    return lines


def duration(seconds: float) -> str:
    """A time in its two largest units: 12 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    left = max(0, round(seconds))
    for unit, (size, part, name) in {
        "d": (86400, 3600, "h"),
        "h": (3600, 60, "min"),
        "min": (60, 1, "s"),
    }.items():
        if left >= size:
            return f"{left // size} {unit} {left % size // part} {name}"
    return f"{left} s"


def _without(
    records: Records, ranked: Sequence[Mapping[str, Any]]
) -> list[tuple[dict[str, Any], Counter[str], float]]:
    """Points without a finished trial: values, statuses and seconds."""
    known = {json.dumps(point["values"], sort_keys=True) for point in ranked}
    found: dict[str, tuple[dict[str, Any], Counter[str], float]] = {}
    for record in records:
        name = json.dumps(record["values"], sort_keys=True)
        if name not in known:
            values, statuses, seconds = found.get(name, (record["values"], Counter(), 0.0))
            statuses[record["status"]] += 1
            found[name] = values, statuses, seconds + record["seconds"]
    return list(found.values())


def _best_rows(best: Records) -> list[str]:
    """The live table below its first line."""
    if not best:
        return []
    shown = labels.short(labels.fields(best))
    head = ["", "accuracy", "loss", "best epoch", *shown.values(), "seed"]
    cells = [
        [
            str(place),
            interval(trial["validation"]["accuracy"]),
            f"{trial['validation']['loss']:.3f}",
            str(trial["best_epoch"]),
            *_values(trial["values"], shown),
            str(trial["seed"]),
        ]
        for place, trial in enumerate(best, 1)
    ]
    return _aligned([head, *cells])


def _told(record: Mapping[str, Any]) -> str:
    """A trial in one line."""
    point = labels.point(record["values"], labels.short(list(record["values"])), record["seed"])
    if record["status"] != FINISHED:
        return f"{point}: {_words(record['status'])} in epoch {record['epochs']}"
    found = record["validation"]
    return (
        f"{point}: accuracy {interval(found['accuracy'])}, loss {found['loss']:.3f}, best epoch "
        f"{record['best_epoch']} of {record['epochs']}, {record['seconds']:.1f} s"
    )


def _values(values: Mapping[str, Any], shown: Mapping[str, str]) -> list[str]:
    return [labels.text(values[field]) if field in values else "" for field in shown]


def _words(status: str) -> str:
    return status.replace("_", " ")


def interval(entry: Mapping[str, Any]) -> str:
    """Three digits, as the best trials of a grid lie close together: .812 [.770, .850]."""
    value, low, high = (f"{entry[part]:.3f}".removeprefix("0") for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _rate(per_second: float) -> str:
    for unit, seconds in (("s", 1), ("min", 60)):
        if per_second * seconds >= 1:
            return f"{per_second * seconds:.1f} trials/{unit}"
    return f"{per_second * 3600:.1f} trials/h"


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: max(0, width - 1)]}…"


def _size() -> os.terminal_size:
    """Of the terminal behind standard error, which is there when output goes to a file."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
    return size if size.columns and size.lines else shutil.get_terminal_size()
