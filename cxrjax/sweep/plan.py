"""How the trials of a sweep are run: what shares a program, what shares the work itself.

A *unit* is run from start to end by one process. Behind frozen layers it holds every trial of one
trunk, input and seed: they are fed from one pass of the trunk over the images. Where the whole
network is trained nothing is shared but the compiled program, and a unit is one trial, or a stack.
Within a unit, trials whose steps have the same shapes are a *cohort*.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cxrjax.config import TRAIN_OPTIONS, Config
from cxrjax.sweep.grid import Point

STACKED, SEPARATE = "stacked", "one after another"
# Arguments of the compiled step, or matters of the loop around it.
NUMBERS = {
    "train.learning_rate",
    "train.class_weights",
    "train.epochs",
    "train.patience",
    "model.head.dropout",
    "model.head.l2",
}
# Of what lies behind a frozen trunk.
BEHIND = {
    "model.head.batch_norm",
    "model.head.dense",
    "model.head.one_logit",
    "train.batch_size",
    "train.optimizer",
    "train.momentum",
    "train.accumulate",
    "train.remat",
    *TRAIN_OPTIONS,
}
_LARGEST_PASS = 2048  # images; batch sizes without a common multiple below have passes of their own


@dataclass(frozen=True)
class Cohort:
    """Trials of one compiled step."""

    points: tuple[Point, ...]
    mode: str  # STACKED or SEPARATE

    @property
    def config(self) -> Config:
        """Of the first trial; the others differ in what is not compiled."""
        return self.points[0].config

    @property
    def program(self) -> str:
        """Names the compiled step: trials with the same name share it."""
        stack = len(self.points) if self.mode == STACKED else 0
        return f"{signature(self.points[0], NUMBERS | {'seed'})} {stack}"

    @property
    def how(self) -> str:
        """For the ledger."""
        return f"stacked of {len(self.points)}" if self.mode == STACKED else "alone"


@dataclass(frozen=True)
class Unit:
    """What one process runs from start to end."""

    cohorts: tuple[Cohort, ...]
    shared: bool  # fed behind frozen layers, which run once for all

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(point for cohort in self.cohorts for point in cohort.points)

    @property
    def config(self) -> Config:
        return self.cohorts[0].config

    @property
    def pass_size(self) -> int:
        """Images fed at once: every batch size divides it."""
        return math.lcm(*(cohort.config.train.batch_size for cohort in self.cohorts))

    @property
    def epochs(self) -> int:
        """The most that any of its trials can take."""
        return max(point.config.train.epochs for point in self.points)


def plan(
    points: Iterable[Point], is_frozen: Callable[[Config], bool], stack: Callable[[Cohort], bool]
) -> tuple[Unit, ...]:
    """Units for the points, in the order of their first trials.

    Args:
      is_frozen: whether the trials of a configuration start behind frozen layers.
      stack: whether a cohort of two trials or more is faster stacked.
    """
    units: list[Unit] = []
    streams = _grouped(points, NUMBERS | BEHIND)
    for stream in streams:
        if is_frozen(stream[0].config):
            cohorts = [_cohort(part, stack) for part in _grouped(stream, NUMBERS)]
            units += [Unit(tuple(part), True) for part in _passes(cohorts)]
            continue
        for part in _grouped(stream, NUMBERS):
            cohort = _cohort(part, stack)
            singles = [_smaller(cohort, (point,)) for point in cohort.points]
            parts = [cohort] if cohort.mode == STACKED else singles
            units += [Unit((single,), False) for single in parts]
    return tuple(units)


def without(units: Iterable[Unit], done: Collection[str]) -> tuple[Unit, ...]:
    """The units with only the trials that are not done."""
    left = []
    for unit in units:
        cohorts = []
        for cohort in unit.cohorts:
            points = tuple(point for point in cohort.points if point.key not in done)
            if points:
                cohorts.append(_smaller(cohort, points))
        if cohorts:
            left.append(replace(unit, cohorts=tuple(cohorts)))
    return tuple(left)


def halves(unit: Unit) -> tuple[Unit, ...]:
    """The unit as two smaller ones, for a device too small for it; none where it is one trial."""
    if len(unit.cohorts) > 1:
        middle = len(unit.cohorts) // 2
        parts = (unit.cohorts[:middle], unit.cohorts[middle:])
        return tuple(replace(unit, cohorts=part) for part in parts)
    cohort = next(iter(unit.cohorts))
    middle = len(cohort.points) // 2
    parts = [cohort.points[:middle], cohort.points[middle:]] if middle else []
    return tuple(replace(unit, cohorts=(_smaller(cohort, part),)) for part in parts)


def _smaller(cohort: Cohort, points: tuple[Point, ...]) -> Cohort:
    return replace(cohort, points=points, mode=cohort.mode if len(points) > 1 else SEPARATE)


def _cohort(points: list[Point], stack: Callable[[Cohort], bool]) -> Cohort:
    stacked = Cohort(tuple(points), STACKED)
    use = len(points) > 1 and stack(stacked)
    return stacked if use else replace(stacked, mode=SEPARATE)


def _passes(cohorts: list[Cohort]) -> list[list[Cohort]]:
    """Cohorts that can share a pass of the trunk: those of batch sizes with a common multiple."""
    parts: list[list[Cohort]] = []
    for cohort in cohorts:
        for part in parts:
            sizes = [other.config.train.batch_size for other in [*part, cohort]]
            if math.lcm(*sizes) <= max(_LARGEST_PASS, *sizes):
                part.append(cohort)
                break
        else:
            parts.append([cohort])
    return parts


def _grouped(points: Iterable[Point], free: Collection[str]) -> list[list[Point]]:
    """Points that agree in all fields but the free ones, in the order of their first."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(signature(point, free), []).append(point)
    return list(groups.values())


def signature(point: Point, free: Collection[str]) -> str:
    """All that decides a trial but the free fields."""
    told: dict[str, Any] = {
        field: value
        for field, value in point.fields.items()
        if field not in free and not field.startswith(("sweep.", "eval."))
    }
    return json.dumps(told, sort_keys=True)


def compiled_fields(grid: Iterable[str]) -> tuple[str, ...]:
    """Those fields of a grid that change what is compiled."""
    return tuple(field for field in grid if field not in NUMBERS)
