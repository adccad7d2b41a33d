"""Runs a unit: all its trials epoch by epoch, until the last of them stops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from cxrjax import build, runtime
from cxrjax.data.batches import Batch
from cxrjax.data.dataset import Dataset
from cxrjax.sweep import plan as planning
from cxrjax.sweep.lanes import Lanes, first_states, piece
from cxrjax.sweep.plan import Cohort, Unit
from cxrjax.sweep.stream import Stop, Stream
from cxrjax.sweep.trial import Trial
from cxrjax.sweep.trials import OUT_OF_MEMORY, Stopped

Finished = tuple[dict[str, Any], dict[str, np.ndarray]]  # a record and its arrays, see `Trial`
Tick = Callable[[float], None]  # how far the unit is, as a share of its most epochs


def lanes_of(cohort: Cohort, stream: Stream, data: Dataset) -> Lanes:
    """The trials of a cohort before their first step."""
    config, train = cohort.config, cohort.config.train
    recipe, variables = stream.network(config)
    settings = [build.settings(point.config, data) for point in cohort.points]
    optimizer = train.optimizer, train.momentum, train.accumulate
    states = first_states(variables, recipe, optimizer, settings)
    stacked = cohort.mode == planning.STACKED
    return Lanes(states, recipe, optimizer, train.batch_size, stacked=stacked)


class Running:
    """A cohort on its way: its trials, in the order of its lanes."""

    def __init__(self, cohort: Cohort, stream: Stream, data: Dataset):
        self.lanes = lanes_of(cohort, stream, data)
        self.trials = [Trial(point) for point in cohort.points]
        self.how = cohort.how
        self._in_lanes = list(self.trials)  # those that stopped stay in a stack for a while
        self._steps = stream.steps(self.lanes.batch_size)
        self._taken = 0

    def take(self, batch: Batch) -> None:
        """The training steps that one batch of the stream holds, without those of a next epoch."""
        rows, size = len(batch["label"]), self.lanes.batch_size
        for start in range(0, rows, size):
            if self._taken == self._steps:
                return
            part = batch if size == rows else piece(batch, jax.device_put(np.int32(start)), size)
            self.lanes.train(part)
            self._taken += 1

    def end_epoch(self, stream: Stream) -> list[Trial]:
        """Validates; returns the trials that stopped in this epoch."""
        self._taken = 0
        totals = self.lanes.totals()
        probabilities, losses = self._validate(stream)
        labels, stopped = stream.labels, []
        for i, trial in enumerate(self._in_lanes):
            if trial.status is not None:
                continue
            own = {name: value[i] for name, value in totals.items()}
            trial.end_epoch(own, labels, probabilities[i], losses[i])
            if trial.status is not None:
                stopped.append(trial)
        self._drop()
        return stopped

    @property
    def going(self) -> int:
        """Trials that have not stopped."""
        return sum(trial.status is None for trial in self._in_lanes)

    def _validate(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [n, N, K] and cross-entropy [n, N] of the lanes."""
        plan, images = stream.validation()
        kept = plan.mask.ravel()
        outputs = [self.lanes.evaluate(batch) for batch in images]
        joined = []
        for parts in zip(*jax.device_get(outputs), strict=True):
            by_batch = [self.lanes.by_trial(part) for part in parts]
            joined.append(np.concatenate(by_batch, axis=1)[:, kept])
        return joined[0], joined[1]

    def _drop(self) -> None:
        """Gives up lanes of trials that stopped: in a stack when half are left, as a smaller stack
        is a program to compile."""
        left = [i for i, trial in enumerate(self._in_lanes) if trial.status is None]
        few = len(left) <= len(self._in_lanes) // 2 if self.lanes.stacked else True
        if left and few and len(left) < len(self._in_lanes):
            self.lanes.keep(left)
            self._in_lanes = [self._in_lanes[i] for i in left]


def run(
    unit: Unit, data: Dataset, digest: str, should_stop: Stop, tick: Tick
) -> Iterator[Finished]:
    """Trains the trials of a unit; yields each one's record and arrays when it stops.

    A unit too large for the device is run in halves; a trial that is too large alone is recorded as
    out of memory.

    Args:
      digest: of the data, for the records.
      should_stop: looked at between batches.
      tick: called as an epoch goes on.
    Raises:
      Stopped: when `should_stop()`.
    """
    done: set[str] = set()
    try:
        for record, arrays in _run(unit, data, digest, should_stop, tick):
            done.add(record["key"])
            yield record, arrays
        return
    except jax.errors.JaxRuntimeError as error:
        if not runtime.out_of_memory(error):
            raise
    for rest in planning.without([unit], done):  # none, or one
        parts = planning.halves(rest)
        if not parts:
            trial = Trial(rest.points[0])
            trial.status = OUT_OF_MEMORY
            empty = np.zeros(0, np.int64)
            yield trial.record(empty, empty, "alone", digest), trial.arrays()
        for part in parts:
            yield from run(part, data, digest, should_stop, tick)


def _run(
    unit: Unit, data: Dataset, digest: str, should_stop: Stop, tick: Tick
) -> Iterator[Finished]:
    stream = Stream(unit.config, data, unit.pass_size, shared=unit.shared)
    since = time.perf_counter()
    stream.prepare(unit.epochs, should_stop)
    _stop_if(should_stop)
    cohorts = [Running(cohort, stream, data) for cohort in unit.cohorts]
    for epoch in range(unit.epochs):
        for number, batch in enumerate(stream.training(epoch), start=1):
            for cohort in cohorts:
                cohort.take(batch)
            tick((epoch + number / stream.passes) / unit.epochs)
            _stop_if(should_stop)
        going = sum(cohort.going for cohort in cohorts)
        stopped = [(cohort, trial) for cohort in cohorts for trial in cohort.end_epoch(stream)]
        now = time.perf_counter()
        for cohort in cohorts:
            for trial in cohort.trials:
                if trial.status is None or (cohort, trial) in stopped:
                    trial.seconds += (now - since) / going  # what it cost, shared
        since = now
        for cohort, trial in stopped:
            start = stream.network(trial.point.config)[1].origin
            told = stream.labels, stream.groups, cohort.how, digest, start
            yield trial.record(*told), trial.arrays()
        cohorts = [cohort for cohort in cohorts if cohort.going]
        if not cohorts:
            return


def _stop_if(should_stop: Stop) -> None:
    if should_stop():
        raise Stopped
