"""Fetches one file over HTTP: resumed where it stopped, checked by its digest, never half there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from cxrjax import log
from cxrjax.errors import UserError, writing
from cxrjax.models.file_kind import MAX_BYTES

_CHUNK = 1 << 20
_TIMEOUT_S = 30
_BROKEN = (urllib.error.URLError, ssl.SSLError, HTTPException, TimeoutError, ConnectionError)
NEEDS_NONE = "configs/quickstart.py needs no weights"
_ELSEWHERE = f"set CXRJAX_WEIGHTS to its folder; {NEEDS_NONE}"


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file, e.g. by "sha256"."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def offline() -> bool:
    """Whether CXRJAX_OFFLINE forbids opening a connection."""
    return os.environ.get("CXRJAX_OFFLINE", "") not in ("", "0")


def fetch(
    url: str, target: Path, *, published: str | None, check: Callable[[Path], object]
) -> Path:
    """Downloads `url` to `target`, which appears only once it is whole and right.

    What an interrupted download got stays beside it as NAME.part and is continued by the next one,
    unless no digest is published: then nothing could tell a patched-up file from a whole one. A
    second process that wants the same file waits for the first and takes its result.

    Args:
      published: MD5 or SHA-256 in hex, told apart by their length; None: only `check` decides.
      check: reads the file and raises UserError when it is damaged; used where there is no digest.
    Raises:
      UserError: when offline, when the connection fails or the file is not as published; it says
        what file to put where.
    """
    if offline():
        raise UserError(
            f"CXRJAX_OFFLINE is set and {target.name} is not here: fetch {url} elsewhere and put "
            f"it into {target.parent}, or {_ELSEWHERE}."
        )
    with writing(target.parent, "set CXRJAX_CACHE to another folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(target.with_name(f"{target.name}.part")) as (part, file):
            if target.is_file():
                part.unlink()
                return target
            try:
                resumed = _receive(url, file, resume=published is not None)
                if resumed and not _is_right(part, published):
                    # The first part can be of another release, or of a server's error page.
                    _receive(url, file, resume=False)
                _verify(url, part, published, check)
                os.replace(part, target)
            finally:
                file.flush()
                if part.exists() and (not part.stat().st_size or published is None):
                    part.unlink()
    return target


@contextmanager
def _claimed(part: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """`part`, opened for appending and locked against other processes until the body ends."""
    while True:
        with open(part, "a+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.say(f"another process is downloading {part.stem}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held it may have renamed or removed it meanwhile.
            if part.exists() and os.path.samestat(part.stat(), os.fstat(file.fileno())):
                yield part, file
                return


def _receive(url: str, file: IO[bytes], *, resume: bool) -> bool:
    """Appends to `file` what it lacks of `url`, or writes it anew; returns whether it appended."""
    start = file.seek(0, os.SEEK_END) if resume else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            if start and not _continues(response, start):
                start = 0
            log.say(f"{'continuing' if start else 'downloading'} {url}")
            file.truncate(start)
            _copy(response, file, start, url)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing is left to send: the part is whole, or too long
            return True
        raise _unreachable(url, error) from error
    except _BROKEN as error:
        raise _unreachable(url, error) from error
    return start > 0


def _continues(response: Any, start: int) -> bool:
    """Whether the server sends what follows the first `start` bytes, not the whole again."""
    sent = response.headers.get("Content-Range") or ""
    return response.status == 206 and bool(re.match(rf"bytes {start}-", sent))


def _copy(response: Any, file: IO[bytes], start: int, url: str) -> None:
    rest = response.length or 0  # bytes, as the server says
    total = start + rest if rest else None
    if (total or 0) > MAX_BYTES:
        raise UserError(f"{url} is {total:,} bytes, larger than weights are; fetch another file.")
    received = start
    with log.progress_bar(total=total, what="weights", unit="B") as bar:
        bar.update(start)
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > (total or MAX_BYTES):
                raise UserError(f"{url} sends more than it said; try again, or {_ELSEWHERE}.")
            file.write(chunk)
            bar.update(len(chunk))
    file.flush()
    if total and received < total:
        raise ConnectionError(f"cut off after {received:,} of {total:,} bytes")


def _unreachable(url: str, error: Exception) -> UserError:
    reason = getattr(error, "reason", "") or error or type(error).__name__
    return UserError(
        f"cannot download {url} ({reason}): run the same again to go on where it stopped, or fetch "
        f"it elsewhere and {_ELSEWHERE}."
    )


def _algorithm(published: str) -> str:
    return "md5" if len(published) == 32 else "sha256"


def _is_right(part: Path, published: str | None) -> bool:
    return published is not None and digest(part, _algorithm(published)) == published


def _verify(url: str, part: Path, published: str | None, check: Callable[[Path], object]) -> None:
    if published is None:
        check(part)
        log.say(f"no digest of {url} is published: only that it can be read was checked")
    elif not _is_right(part, published):
        part.unlink()
        raise UserError(
            f"{url} did not arrive as published (its {_algorithm(published).upper()} is not "
            f"{published}); try again, or fetch it another way and {_ELSEWHERE}."
        )
