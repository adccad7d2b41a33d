"""Ctrl-C and SIGTERM while a run trains."""

from __future__ import annotations

import signal
from typing import Any


class StopSignals:
    """Turns SIGINT and SIGTERM into a flag that is looked at between steps; a second one kills."""

    def __init__(self) -> None:
        self.requested = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True  # nothing else: a handler may interrupt a print half-way
