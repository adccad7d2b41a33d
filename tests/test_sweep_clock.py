"""The time left of a search, against searches whose time is known: no second passes here."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from cxrjax.sweep import search


@dataclass
class Unit:
    """One trial: seconds of its preparation, of a batch, and of a validation."""

    prepare: float = 0.0
    batch: float = 0.1
    validate: float = 0.0
    passes: int = 10
    epochs: int = 100
    stops: int = 100  # epochs it takes
    estimate: float | None = 100.0
    trials: int = 1
    restarts: int = 0  # in smaller parts, as one too large for the device does

    config = None

    @property
    def points(self):
        return (None,) * self.trials


@pytest.fixture
def searched(monkeypatch):
    """Runs a search; gives (seconds so far, seconds told, trial ended?) of each telling, and all
    its seconds."""
    now, told = [7.0], []
    monkeypatch.setattr(search, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def run(unit, data, found, should_stop, tick):
        for _ in range(1 + unit.restarts):
            now[0] += unit.prepare
            for epoch in range(unit.stops):
                for batch in range(1, unit.passes + 1):
                    now[0] += unit.batch
                    tick((epoch + batch / unit.passes) / unit.epochs)
                now[0] += unit.validate
        for number in range(unit.trials):
            yield {"number": number}, {}

    monkeypatch.setattr(search.run_unit, "run", run)
    table = SimpleNamespace(
        tick=lambda eta: told.append((now[0] - 7, eta, False)),
        add=lambda record, eta: told.append((now[0] - 7, eta, True)),
    )
    ledger = SimpleNamespace(append=lambda record, arrays: None)
    meter = SimpleNamespace(seconds=lambda unit: unit.estimate)

    def over(*units):
        parts: list[Any] = [units, lambda config: None, "", ledger, table, meter, lambda: False]
        search.run_here(*parts)
        return told, now[0] - 7

    return over


def test_preparation_is_not_taken_for_slow_training(searched):
    told, end = searched(Unit(prepare=50, batch=0.004, passes=5, epochs=60, stops=60, estimate=51))
    assert told[0][1] is None  # too early
    for at, eta, _ in told[1:]:
        assert eta == pytest.approx(end - at, abs=1e-6)


def test_units_that_follow_are_prepared_too(searched):
    told, end = searched(*[Unit(prepare=50, batch=0.004, passes=5)] * 3)
    for at, eta, _ in told[1:]:
        assert eta == pytest.approx(end - at, abs=1e-6)


def test_what_stopped_early_makes_nothing_that_follows_shorter(searched):
    told, _ = searched(*[Unit(stops=10)] * 10)
    ends = [number for number, (_, _, ended) in enumerate(told) if ended]
    for done, number in enumerate(ends, 1):
        assert told[number][1] == pytest.approx(100 * (10 - done), abs=1e-6)
    for number in ends[:-1]:  # a table a batch later says the same
        assert told[number + 1][1] == pytest.approx(told[number][1], rel=0.01)


@pytest.mark.parametrize("unknown", [False, True])
def test_units_count_by_what_they_were_estimated_to_take(searched, unknown):
    short, long = Unit(), Unit(batch=0.4, estimate=None if unknown else 400.0)
    told, _ = searched(short, long)
    assert told[5][1] == pytest.approx(100 - told[5][0] + (100 if unknown else 400))


def test_validation_takes_its_time(searched):
    told, end = searched(Unit(validate=3.0))
    for at, eta, _ in told[100:]:
        assert eta == pytest.approx(end - at, rel=0.1, abs=4)


def test_the_last_trial_of_all_leaves_nothing(searched):
    short = Unit(passes=1, epochs=1, stops=1, trials=2)
    for units in ([Unit(trials=3, stops=4)], [short], [short, Unit(restarts=1), short]):
        told, _ = searched(*units)
        assert told[-1][1] == 0
        assert all(eta is None or eta >= 0 for _, eta, _ in told)


def test_trials_that_never_began_tell_nothing_of_the_others(searched):
    told, end = searched(Unit(stops=0, prepare=5), Unit(), Unit())
    assert told[0][1] is None
    for at, eta, _ in told[2:]:
        assert eta == pytest.approx(end - at, abs=1e-6)
