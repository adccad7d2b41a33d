"""Times the compiled steps of a plan before it is run: which way is faster, how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax

from cxrjax import runtime
from cxrjax.config import Config
from cxrjax.data import augment
from cxrjax.data.dataset import Dataset
from cxrjax.models import lowering
from cxrjax.sweep import plan as planning
from cxrjax.sweep.plan import SEPARATE, STACKED, Cohort, Unit
from cxrjax.sweep.run_unit import lanes_of
from cxrjax.sweep.stream import Stream

_STEPS = 3  # timed; the fastest counts
_PROBED = 2  # trials stacked to try it, where the whole network is trained on a CPU


@dataclass(frozen=True)
class Cost:
    """Of one compiled step."""

    compile_seconds: float
    step_seconds: float  # of all trials of the cohort
    memory: int  # bytes of arguments, results and intermediates


class Meter:
    """Costs of cohorts, measured once for each compiled step on the first batch of the data."""

    def __init__(self, data_of: Callable[[Config], Dataset], is_frozen: Callable[[Config], bool]):
        self._data_of, self._is_frozen = data_of, is_frozen
        self._costs: dict[str, Cost | None] = {}
        self._choices: dict[str, bool] = {}
        self._trunks: dict[str, float | None] = {}
        self._stream: tuple[str, Any] | None = None  # the last, kept for the next cohort

    def stack(self, cohort: Cohort) -> bool:
        """Whether stacking the trials of a cohort takes less time than one after another."""
        asked = cohort.config.sweep.stack
        if asked != "auto":
            return asked == "always"
        whole_network = not self._is_frozen(cohort.config)
        few = whole_network and lowering.is_cpu()
        # There the network decides how much slower convolutions of many kernels at once are.
        key = cohort.config.model.name if few else cohort.program
        if key not in self._choices:
            points = cohort.points[:_PROBED] if few else cohort.points
            stacked = self.cost(Cohort(points, STACKED))
            single = self.cost(Cohort(points[:1], SEPARATE))
            self._choices[key] = (
                stacked is not None
                and single is not None
                and stacked.step_seconds < len(points) * single.step_seconds
            )
        return self._choices[key]

    def cost(self, cohort: Cohort) -> Cost | None:
        """What one step of all its trials costs, in the mode it has; None: it does not fit."""
        separate = cohort.mode == SEPARATE
        probe = replace(cohort, points=cohort.points[:1]) if separate else cohort
        if probe.program not in self._costs:
            try:
                self._costs[probe.program] = self._measure(probe)
            except jax.errors.JaxRuntimeError as error:
                if not runtime.out_of_memory(error):
                    raise
                self._costs[probe.program] = None
        cost = self._costs[probe.program]
        if cost is None or not separate:
            return cost
        return replace(cost, step_seconds=cost.step_seconds * len(cohort.points))

    def trunk(self, unit: Unit) -> float | None:
        """Seconds of one pass of the frozen layers over P images; 0 where nothing is shared.

        None: it does not fit; `run_unit` then takes the unit apart.
        """
        if not unit.shared:
            return 0.0
        key = planning.signature(unit.cohorts[0].points[0], planning.NUMBERS | planning.BEHIND)
        key = f"{key} {unit.pass_size}"
        if key not in self._trunks:
            data = self._data_of(unit.config)
            try:
                stream = Stream(unit.config, data, unit.pass_size, shared=True)
                stream.run_frozen()  # compiles
                self._trunks[key] = min(_timed(stream.run_frozen) for _ in range(_STEPS))
            except jax.errors.JaxRuntimeError as error:
                if not runtime.out_of_memory(error):
                    raise
                self._trunks[key] = None
        return self._trunks[key]

    def seconds(self, unit: Unit) -> float | None:
        """A unit's time by its measured steps, as if no trial stopped early; None: unknown.

        Compiling and building are not in it, and validation is a guess.
        """
        data, total = self._data_of(unit.config), 0.0
        n, held_out = (len(data.splits[split]) for split in ("train", "validation"))
        for cohort in unit.cohorts:
            cost = self.cost(cohort)
            if cost is None:
                return None
            size = cohort.config.train.batch_size
            # Inference takes about a third of a training step's time per image.
            total += (n / size + held_out / size / 3) * cost.step_seconds
        if not unit.shared:
            return unit.epochs * total
        trunk, views = self.trunk(unit), unit.config.cache.views
        if trunk is None:
            return None
        passes = (
            unit.epochs
            if augment.active(unit.config) and not views
            else max(1, min(views, unit.epochs))
        )
        return (passes * n + held_out) * trunk / unit.pass_size + unit.epochs * total

    def release(self) -> None:
        """Gives up the images and arrays kept for another measurement."""
        self._stream = None

    def _measure(self, cohort: Cohort) -> Cost:
        stream = self._stream_of(cohort)
        lanes = lanes_of(cohort, stream, self._data_of(cohort.config))
        batch = stream.sample(lanes.batch_size)
        start = time.perf_counter()
        memory = lanes.compile(batch)
        compiled = time.perf_counter() - start

        def step() -> None:
            lanes.train(batch)
            lanes.wait()

        step()
        return Cost(compiled, min(_timed(step) for _ in range(_STEPS)), memory)

    def _stream_of(self, cohort: Cohort) -> Stream:
        """The stream of the last cohort, where this one may have it too: it holds the trunk."""
        key = planning.signature(cohort.points[0], planning.NUMBERS | planning.BEHIND)
        if self._stream is None or self._stream[0] != key:
            data, size = self._data_of(cohort.config), cohort.config.train.batch_size
            shared = self._is_frozen(cohort.config)
            self._stream = key, Stream(cohort.config, data, size, shared=shared)
        return self._stream[1]


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
