"""The measured process's side of a benchmark: a job comes in, then each "go" is one timed window.

Ours and the peers run this same code, so that warm-up and clock are the same. Standard library
only: the peers (experiments/peers) import it in environments without JAX.

Lines on standard input: the job as JSON, then any number of "go", then "end". Lines of JSON on
standard output: the facts once all is compiled and warm; {"seconds", "images"} for each "go"; what
is known at the end, such as the peak memory. Instead of any of them {"error", "told"}, where told
means that the error is a sentence for the user.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

_WARM_STEPS = 3  # the first of them may still compile or choose kernels
_MOST_STEPS = 10_000
_LONGEST_ERROR = 500  # characters


class Prepared(NamedTuple):
    """A compiled and warmed-up job."""

    facts: dict[str, Any]
    window: Callable[[], tuple[float, int]]  # seconds and images of one window
    finish: Callable[[], dict[str, Any]]


def serve(
    prepare: Callable[[dict[str, Any]], Prepared], told: type[BaseException] | tuple[()] = ()
) -> int:
    """Speaks the protocol above on standard input and output; returns the exit code.

    Args:
      prepare: called with the job.
      told: exceptions of this type are sentences for the user.
    """
    # Libraries print as they like: what they print goes to standard error.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: dict[str, Any]) -> None:
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        prepared = prepare(json.loads(sys.stdin.readline()))
        say(prepared.facts)
        while sys.stdin.readline().strip() == "go":
            seconds, images = prepared.window()
            say({"seconds": seconds, "images": images})
        say(prepared.finish())
    except Exception as error:
        traceback.print_exc()
        text = " ".join(str(error).split())[:_LONGEST_ERROR]
        if not isinstance(error, told):
            text = f"{type(error).__name__}: {text}"
        say({"error": text, "told": isinstance(error, told)})
        return 1
    return 0


def stepped(
    job: dict[str, Any], run: Callable[[int], None], images_per_step: int
) -> tuple[int, Callable[[], tuple[float, int]]]:
    """Warms up and settles how many steps make a window.

    Args:
      job: its "steps" is their number; 0: as many as take "window_seconds".
      run: takes that many steps and returns when the device has finished them.
      images_per_step: the batch size.
    Returns:
      the number of steps, and the function that times one window.
    """

    def timed(n: int) -> float:
        start = time.perf_counter()
        run(n)
        return time.perf_counter() - start

    run(_WARM_STEPS)
    steps = job["steps"]
    if not steps:
        steps = round(job["window_seconds"] / timed(1))
        steps = min(max(steps, 1), _MOST_STEPS)
        if steps > 1:  # one step alone is a poor measure; the second look also warms up further
            steps = min(max(round(steps * job["window_seconds"] / timed(steps)), 1), _MOST_STEPS)
    return steps, lambda: (timed(steps), steps * images_per_step)


def peak_memory() -> dict[str, Any]:
    """Largest resident set of this process so far, bytes, compilation included."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"bytes": peak, "of": "process (ru_maxrss)"}
