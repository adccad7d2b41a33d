"""Work on many items in threads, its results in the items' order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from cxrjax import log

T = TypeVar("T")


def in_order(
    function: Callable[[int], T], n: int, *, what: str = "", unit: str = ""
) -> Iterator[T]:
    """`function(0)` to `function(n - 1)`, computed in threads, yielded in order.

    Only a few results wait at a time, so that memory stays bounded however slow the consumer is.

    Args:
      what: title of the progress bar; "" for none.
    """
    workers = min(32, os.cpu_count() or 1)
    waiting: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(workers)
    steps = log.progress(range(n), total=n, what=what, unit=unit) if what else range(n)
    try:
        submitted = 0
        for _ in steps:
            while submitted < n and len(waiting) < 8 * workers:
                waiting.append(pool.submit(function, submitted))
                submitted += 1
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
