"""Compiling the steps of a run in threads of their own while its data are prepared."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import jax


class Ahead:
    """Programs that compile in the background; jax.jit finds them when it is called.

    What is compiled of shapes alone is the program that a call with such arrays runs: jax keeps
    both under one key. Were that to change, a call would compile anew or read the program from the
    persistent cache: slower, not wrong. A program that fails to compile tells so when called.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []

    def compile(self, jitted: Any, *arguments: Any) -> None:
        """Starts to compile a jitted function.

        Args:
          arguments: trees of arrays or of `jax.ShapeDtypeStruct`; only their shapes are looked at.
        """
        shapes = jax.tree.map(_shape, arguments)

        def run() -> None:
            with contextlib.suppress(Exception):  # the call that needs the program tells
                jitted.lower(*shapes).compile()

        # Not kept alive at exit: an interrupted run need not wait for its compiler.
        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def wait(self) -> None:
        """Returns when all that was started is compiled: a call before would compile it again."""
        while self._threads:
            self._threads.pop().join()


def _shape(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)
