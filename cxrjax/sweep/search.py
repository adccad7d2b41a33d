"""The search itself: which trials are left, how they are run, and the ledger they go to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cxrjax import build, log, prefix
from cxrjax.config import Config
from cxrjax.data import dataset
from cxrjax.data.dataset import Dataset
from cxrjax.errors import MALFORMED, UserError
from cxrjax.sweep import plan as planning
from cxrjax.sweep import protocols, run_unit
from cxrjax.sweep.grid import Point, Sweep
from cxrjax.sweep.measure import Meter
from cxrjax.sweep.plan import Unit
from cxrjax.sweep.table import Table
from cxrjax.sweep.trials import FILE, Trials

_SETTINGS = "sweep.json"


class DataSets:
    """The data sets of a sweep's configurations, each prepared once."""

    def __init__(self) -> None:
        self._known: dict[str, Dataset] = {}

    def __call__(self, config: Config) -> Dataset:
        key = json.dumps(config.data.to_dict(), sort_keys=True)
        if key not in self._known:
            self._known[key] = dataset.prepare(config)
        return self._known[key]


def digest(data: Dataset) -> str:
    """16 hex digits that tell images and split apart."""
    return hashlib.sha256(f"{data.fingerprint} {data.digest}".encode()).hexdigest()[:16]


def check(sweep: Sweep, data_of: DataSets, ledger: Trials) -> str:
    """Finds out, before anything runs, what would fail later; returns the digest of the data.

    Raises:
      UserError: for an unknown network, missing weights or data, a trial without a step of its
        optimizer, a winner that could not be finished, trials that would be judged on different
        validation images, or a ledger of other data.
    """
    for point in sweep.points:  # what is missing is told before weights are downloaded
        dataset.located(point.config.data)
    origins: dict[str, str | None] = {}
    for config in {str(p.config.model.to_dict()): p.config for p in sweep.points}.values():
        build.check(config)
        prefix.is_frozen(config)  # a number of layers the network does not have
    protocols.check(sweep)
    for point in sweep.points:
        if (name := _start(point.config)) not in origins:
            origins[name] = build.origin(point.config)
    if any(p.config.cache.views and not prefix.is_frozen(p.config) for p in sweep.points):
        log.say(prefix.VIEWS_UNUSED)
    digests = set()
    for point in sweep.points:
        data = data_of(point.config)
        build.check_steps(point.config, data)
        digests.add(digest(data))
    if len(digests) > 1:
        raise UserError(
            "the grid varies the data so that trials are judged on different validation images; "
            "take fields such as data.split_seed out of it."
        )
    (found,) = digests
    points = {point.key: point for point in sweep.points}
    for key, record in ledger.records().items():
        if key not in points:
            continue
        if record.get("data") != found:
            raise UserError(
                f"{ledger.file} holds trials on other data or another split than the one found "
                "now; point --config.data.dir at the original data or choose another --workdir."
            )
        # Ledgers of older versions do not say.
        if record.get("start", now := origins[_start(points[key].config)]) != now:
            raise UserError(
                f"{ledger.file} holds trials that started with other weights than those found now "
                "under the same name (model.weights, train.start_from); restore them or choose "
                "another --workdir."
            )
    return found


def _start(config: Config) -> str:
    """Equal for configurations that take their first arrays from one file or run."""
    return f"{config.train.start_from} {config.model.name} {config.model.weights}"


def make_plan(points: Sequence[Point], done: set[str], meter: Meter) -> tuple[Unit, ...]:
    """Units of the trials that are not done."""
    left = [point for point in points if point.key not in done]
    return planning.plan(left, prefix.is_frozen, meter.stack)


def shard(points: Sequence[Point], index: int, count: int) -> tuple[Point, ...]:
    """The points that fall to one of `count` processes, 0 <= index < count.

    What shares a frozen trunk stays together; other trials are dealt out one by one.
    """
    units = planning.plan(points, prefix.is_frozen, lambda cohort: False)
    return tuple(point for unit in units[index::count] for point in unit.points)


class Clock:
    """Time to the end of a search, as if no further trial stopped early.

    A unit goes on at its pace since its first batch: what came before prepared it. Units that
    follow take as much longer than their estimates, or shorter, as those so far would have in full.
    """

    def __init__(self, estimates: Sequence[float | None]):
        """Takes the seconds that each unit is estimated to take; None: not known."""
        known = [value for value in estimates if value]
        typical = sum(known) / len(known) if known else 1.0
        self._weights = [value or typical for value in estimates]
        self._weight = self._later = 0.0  # of the unit that runs, of all behind it
        self._worth = self._took = 0.0  # of units before: their weights, seconds in full
        self._begun: float | None = None
        self._share, self._first = 0.0, (0.0, 0.0)

    def begin(self, number: int) -> None:
        """Unit `number` begins; units come in their order."""
        self._weight, self._later = self._weights[number], sum(self._weights[number + 1 :])
        self._begun, self._share = time.perf_counter(), 0.0

    def tick(self, share: float) -> None:
        """The unit is at a share of its most epochs; called after each batch."""
        if not 0 < self._share <= share:  # its first, also of a part of what was too large
            self._first = time.perf_counter(), share
        self._share = share

    def finished(self) -> None:
        """The unit is done, maybe early."""
        if (full := self._full()) is not None:
            self._worth, self._took = self._worth + self._weight, self._took + full
        self._begun = None

    @property
    def eta(self) -> float | None:
        """Seconds; None: too early to tell."""
        worth, took, left = self._worth, self._took, 0.0
        if self._begun is not None:
            full = self._full()
            if full is None and worth:
                full = self._weight * took / worth
            if full is None:
                return None
            left = max(0.0, full - (time.perf_counter() - self._begun))
            worth, took = worth + self._weight, took + full
        return left + self._later * took / worth if worth else None

    def _full(self) -> float | None:
        """Seconds of the unit from its beginning, as if it did not stop early; None: not known."""
        now, (since, share) = time.perf_counter(), self._first
        assert self._begun is not None
        if self._share < 1 and not 0 < share < self._share:
            return None
        pace = (now - since) / (self._share - share) if self._share > share else 0.0
        return now - self._begun + (1 - self._share) * pace


def run_here(
    units: Sequence[Unit],
    data_of: DataSets,
    found: str,
    ledger: Trials,
    table: Table,
    meter: Meter,
    should_stop: Callable[[], bool],
) -> None:
    """Runs the units one after another in this process, each record as soon as it is there.

    Raises:
      Stopped: when `should_stop()`; finished trials are in the ledger.
    """
    clock = Clock([meter.seconds(unit) for unit in units])

    def tick(share: float) -> None:
        clock.tick(share)
        table.tick(clock.eta)

    for number, unit in enumerate(units):
        data = data_of(unit.config)
        clock.begin(number)
        trials = run_unit.run(unit, data, found, should_stop, tick)
        for count, (record, arrays) in enumerate(trials, 1):
            ledger.append(record, arrays)
            if count == len(unit.points):
                clock.finished()
            table.add(record, clock.eta)


def keep_settings(folder: Path, sweep: Sweep) -> None:
    """Writes sweep.json: the configuration and the grid."""
    told = {"config": sweep.config.to_dict(), "grid": sweep.grid}
    log.write_json(folder / _SETTINGS, told)


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder that holds files and neither a ledger nor the settings of a sweep.

    Raises:
      UserError: naming the folder and a file in it.
    """
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    # Another part of the same sweep may just be writing the settings.
    strangers = [name for name in found if not name.startswith((".", f"{_SETTINGS}."))]
    if strangers and FILE not in strangers and not _is_settings(folder / _SETTINGS):
        raise UserError(
            f"{folder} is not a sweep's folder and holds other files ({strangers[0]}); choose "
            "another --workdir."
        )


def _is_settings(path: Path) -> bool:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return all(isinstance(told[name], dict) for name in ("config", "grid"))
    except (OSError, *MALFORMED):
        return False
