"""Arithmetic of sweep_job.py: a whole sweep's seconds from a few measured points and epochs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cxrjax.errors import UserError


def extrapolate(
    measured: Sequence[Mapping[str, Any]], shapes: Sequence[str], epochs: Sequence[int]
) -> dict[str, Any]:
    """Seconds of each point at another number of epochs, from measured points of its shape.

    Args:
      measured: lines of keras_sweep.py with "shape"; of several of one shape the epochs are pooled
        and the fixed seconds averaged.
      shapes, epochs: of each point.
    Returns:
      "points": seconds; "fastest": the same with each shape's fastest later epoch instead of their
      median, a lower bound on a machine that stalls now and then; "shapes": for each shape
      measured, "fixed" seconds, those of the median "epoch" and of the "fastest".
    Raises:
      UserError: for a shape that was not measured.
    """
    known: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(line["shape"] for line in measured):
        lines = [line for line in measured if line["shape"] == name]
        later = [second for line in lines for second in line["epoch_seconds"][1:]]
        epoch = statistics.median(later)
        fixed = statistics.mean(
            line["seconds"] - sum(line["epoch_seconds"][1:]) - epoch for line in lines
        )
        known[name] = {"fixed": fixed, "epoch": epoch, "fastest": min(later)}
    if missing := sorted(set(shapes) - set(known)):
        raise UserError(f"no point of the shape {missing[0]} was measured; add to --keras-points.")
    told = {
        name: [known[s]["fixed"] + n * known[s][which] for s, n in zip(shapes, epochs, strict=True)]
        for name, which in (("points", "epoch"), ("fastest", "fastest"))
    }
    return told | {"shapes": known}


def drift(measured: Sequence[Mapping[str, Any]]) -> float:
    """An epoch of the first point as it was measured last, over the same at first."""
    same = [line for line in measured if line["point"] == measured[0]["point"]]
    first, last = (statistics.median(line["epoch_seconds"][1:]) for line in (same[0], same[-1]))
    return last / first


def cost_of_a_point(runs: Mapping[int, Mapping[str, float]], n: int) -> dict[str, Any]:
    """What a point more costs, as a share of a point alone.

    Args:
      runs: epochs -> seconds of the command with "one" point and with "all".
      n: points of all, at least 2.
    Returns:
      "commands": of whole commands, by epochs; "per_epoch": of what an epoch more takes between the
      fewest and the most epochs, free of start and compilation (None with one number of epochs).
    """
    commands = {
        str(epochs): dict(run) | {"share": (run["all"] - run["one"]) / (n - 1) / run["one"]}
        for epochs, run in runs.items()
    }
    fewest, most = min(runs), max(runs)
    if fewest == most:
        return {"commands": commands, "per_epoch": None}
    one, every = (
        (runs[most][which] - runs[fewest][which]) / (most - fewest) for which in ("one", "all")
    )
    share = (every - one) / (n - 1) / one
    return {"commands": commands, "per_epoch": {"one": one, "all": every, "share": share}}
