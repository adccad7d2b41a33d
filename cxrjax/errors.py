"""The one exception that means 'the user can mend this': a sentence, no traceback, exit code 2."""

from __future__ import annotations

import errno
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What reading raises where a file holds something else than was written into it. JSON nested a
# hundred thousand deep ends the recursion; whole numbers of any length overflow what they go into.
MALFORMED = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class UserError(Exception):
    """Bad input or configuration. Its message is one sentence: what, where, and how to mend it."""


def reason(error: Exception) -> str:
    """An exception as a part of a sentence: on one line, and without the data it may quote."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")


@contextmanager
def writing(path: Path | str, remedy: str) -> Iterator[None]:
    """Turns a failed write (disk full, read-only, not a folder) into a UserError.

    Args:
      path: where the body writes; named in the message.
      remedy: how the user can point the output elsewhere, e.g. "choose another --workdir".
    Raises:
      UserError: when the body raises OSError.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = (error.strerror or str(error)).lower()
        mend = f"free some room or {remedy}" if full else remedy
        raise UserError(f"cannot write to {path}: {reason}; {mend}.") from error
