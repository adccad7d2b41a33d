"""Units of a sweep as tasks of a Ray cluster; every worker appends to the ledger itself.

The workdir and the data lie on a file system that all machines share. A worker that dies takes its
unit's unfinished trials with it: Ray starts the unit again, which skips what the ledger holds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cxrjax import log
from cxrjax.errors import UserError
from cxrjax.sweep.plan import Unit
from cxrjax.sweep.trials import Stopped, Trials

if TYPE_CHECKING:  # a worker must set up JAX before anything imports it
    from cxrjax.sweep.table import Table

_RETRIES = 3  # of a unit whose worker died
_POLL = 1.0  # seconds between looks at the ledger


def run(
    units: Sequence[Unit],
    found: str,
    ledger: Trials,
    table: Table,
    workers: int,
    should_stop: Callable[[], bool],
) -> None:
    """Runs all units on the cluster of $RAY_ADDRESS, else on one of this machine's own.

    Args:
      found: digest of the data; a worker that finds other data refuses.
      workers: processes of a cluster of this machine's own.
    Raises:
      UserError: without ray, without a cluster at the address, or from a worker.
      Stopped: when `should_stop()`; finished trials are in the ledger.
    """
    seen = set(ledger.records())
    with _cluster(workers) as ray:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(max_retries=_RETRIES, num_cpus=1, num_gpus=gpus)(work)
        folder = str(ledger.folder.absolute())
        pending = [task.remote(unit, folder, found) for unit in units]
        while pending:
            done, pending = ray.wait(pending, timeout=_POLL)
            for key, record in ledger.records().items():
                if key not in seen:
                    seen.add(key)
                    table.add(record, None)
            for reference in done:
                _collect(ray, reference)
            if should_stop():
                for reference in pending:
                    ray.cancel(reference, force=True)
                raise Stopped


def work(unit: Unit, folder: str, found: str) -> None:
    """What a worker does: the trials of a unit that the ledger in `folder` lacks."""
    from cxrjax import runtime

    runtime.start(runtime.cache_root(unit.config.data.cache) / "compiled")
    from cxrjax.sweep import plan, run_unit, search

    ledger = Trials(folder)
    data = search.DataSets()(unit.config)
    if search.digest(data) != found:
        raise UserError(
            f"a worker finds other data at {unit.config.data.dir} than the one that started the "
            "sweep; put the data where all machines see them."
        )
    for rest in plan.without([unit], ledger.over()):
        for record, arrays in run_unit.run(rest, data, found, lambda: False, lambda share: None):
            ledger.append(record, arrays)


@contextlib.contextmanager
def _cluster(workers: int) -> Iterator[Any]:
    before = signal.getsignal(signal.SIGTERM)
    try:
        import ray  # pyright: ignore[reportMissingImports] - an extra

        ray.init  # noqa: B018 - a folder of that name is a package, too
    except (ImportError, AttributeError):
        raise UserError(
            "--backend ray needs Ray, which is not installed: pip install -e '.[ray]'."
        ) from None
    address = os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        own |= {"num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(address=address, **own)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"there is no Ray cluster at RAY_ADDRESS={address} ({reason}); start one with "
            "ray start --head, or unset it."
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray's own handler aborts
    try:
        yield ray
    finally:
        ray.shutdown()


def _collect(ray: Any, reference: Any) -> None:
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from error
        raise
    except ray.exceptions.RayError as error:  # its workers died more often than it is retried
        log.say(f"a unit was given up ({type(error).__name__}); run the same command to try again.")
