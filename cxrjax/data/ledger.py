"""The test vault: which test split was read how often, in a ledger beside the data store.

Every reading is a line: time, who, the data's fingerprint and the digest of who is in which split.
Whoever tunes on a test split, or draws new ones until the figures please, leaves the count behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

from cxrjax.errors import MALFORMED, writing

FILE = "test_looks.jsonl"


class Looks(NamedTuple):
    """How often the test images of some data were read."""

    here: int  # in the split asked for
    elsewhere: int  # in other splits of the same data

    def __str__(self) -> str:
        others = f"; {self.elsewhere} time(s) in other splits of the data" if self.elsewhere else ""
        return f"test split read {self.here} time(s) so far{others}"


def record(folder: Path, fingerprint: str, digest: str, what: str) -> Looks:
    """Notes a reading of a test split; returns how often it was read, this time included.

    Args:
      folder: the cache folder, with the stores.
      fingerprint: of the data, whatever the image size.
      digest: of split membership.
      what: who looked, e.g. the working folder.
    Raises:
      UserError: when the ledger cannot be written.
    """
    path = folder / FILE
    line = json.dumps(
        {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "what": what,
            "data": fingerprint,
            "split_digest": digest,
        }
    )
    remedy = "choose another --config.data.cache or CXRJAX_CACHE"
    # A byte that is no UTF-8 costs its line alone.
    with writing(path, remedy), open(path, "a+", encoding="utf-8", errors="replace") as file:
        # Of two runs that end at once, one counts the other; closing the file unlocks it.
        fcntl.flock(file, fcntl.LOCK_EX)
        # A line cut short by a crash must neither swallow this one nor stop the counting.
        file.seek(0)
        earlier = file.read()
        cut_short = bool(earlier) and not earlier.endswith("\n")
        file.write("\n" * cut_short + line + "\n")
        file.flush()
        os.fsync(file.fileno())
    return _count(f"{earlier}\n{line}", fingerprint, digest)


def count(folder: Path, fingerprint: str, digest: str) -> Looks:
    """How often a test split was read so far; (0, 0) where there is no ledger to be read."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Looks(0, 0)
    return _count(text, fingerprint, digest)


def _count(text: str, fingerprint: str, digest: str) -> Looks:
    here = elsewhere = 0
    for line in text.splitlines():
        try:
            look = json.loads(line)
            same_data, same_split = look["data"] == fingerprint, look["split_digest"] == digest
        except MALFORMED:
            continue  # cut short or damaged
        here += same_data and same_split
        elsewhere += same_data and not same_split
    return Looks(here, elsewhere)
