"""A sweep from its plan to best.json."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cxrjax import log, prefix, runtime
from cxrjax.errors import writing
from cxrjax.stop_signals import StopSignals
from cxrjax.sweep import finish, plan_text, search
from cxrjax.sweep.grid import Sweep
from cxrjax.sweep.measure import Meter
from cxrjax.sweep.table import Table
from cxrjax.sweep.trials import Stopped, Trials

REMEDY = "choose another --workdir"


def run(
    sweep: Sweep,
    workdir: Path,
    *,
    dry_run: bool = False,
    part: tuple[int, int] | None = None,
    backend: str = "local",
    workers: int = 2,
) -> None:
    """Plans, runs what is left, and finishes the winner once every trial is recorded.

    Args:
      part: (index, count): run that part of the trials only, and finish nothing.
      backend: "local" or "ray".
      workers: processes of a local Ray cluster.
    Raises:
      UserError: for bad input; what was written before stays.
      KeyboardInterrupt: after SIGINT or SIGTERM; finished trials are in the ledger.
    """
    with writing(workdir, REMEDY):
        search.refuse_foreign(workdir)
    ledger, data_of = Trials(workdir), search.DataSets()
    found = search.check(sweep, data_of, ledger)
    points = search.shard(sweep.points, *part) if part else sweep.points
    done = ledger.over() & {point.key for point in points}
    meter = Meter(data_of, prefix.is_frozen)
    log.say("measuring the compiled steps")
    units = search.make_plan(points, done, meter)
    told = plan_text.describe(units, sweep, meter, len(done))
    print(plan_text.plan_text(told, str(runtime.describe()["device"])), flush=True)
    if dry_run:
        return
    meter.release()
    with writing(workdir, REMEDY):
        workdir.mkdir(parents=True, exist_ok=True)
        search.keep_settings(workdir, sweep)
    keys = {point.key for point in points}
    kept = [record for record in sweep.own(ledger.records()) if record["key"] in keys]
    with _resumable(ledger), StopSignals() as stop, Table(len(points), kept) as table:
        if backend == "ray":
            from cxrjax.sweep import ray_backend

            ray_backend.run(units, found, ledger, table, workers, lambda: stop.requested)
        else:
            search.run_here(units, data_of, found, ledger, table, meter, lambda: stop.requested)
    missing = {point.key for point in sweep.points} - ledger.over()
    if part is not None or missing:
        print(f"{len(missing)} of {len(sweep.points)} trials are still to run ({workdir})")
        return
    finish.run(sweep, workdir, ledger, data_of)


@contextlib.contextmanager
def _resumable(ledger: Trials) -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise KeyboardInterrupt(
            f"finished trials are in {ledger.file}; run the same command to go on."
        ) from None
