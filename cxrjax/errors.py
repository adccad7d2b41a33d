"""The one exception that means 'the user can mend this': a sentence, no traceback, exit code 2."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input or configuration. Its message is one sentence: what, where, and how to mend it."""


@contextmanager
def writing(path: Path | str, remedy: str) -> Iterator[None]:
    """Turns a failed write (disk full, read-only, not a folder) into a UserError.

    Args:
      path: where the body writes; named in the message.
      remedy: how the user can point the output elsewhere, e.g. "choose another --workdir".
    Raises:
      UserError: when the body raises OSError for want of space or permission.
    """
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "permission is denied",
            errno.EROFS: "the file system is read-only",
            errno.ENOTDIR: "a file is in the way",
            errno.EEXIST: "a file is in the way",
        }
        reason = reasons.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(f"cannot write to {path}: {reason}; free some room or {remedy}.") from error
