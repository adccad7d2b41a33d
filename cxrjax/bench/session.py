"""Runs rows of a benchmark one after another, each against its peers, and collects the figures."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxrjax import config as config_lib
from cxrjax import log
from cxrjax.bench import job as jobs
from cxrjax.bench.processes import Measured, ProcessFailed, peer_script
from cxrjax.bench.summary import BASES, ratios, spread
from cxrjax.config import Config
from cxrjax.errors import UserError

_UNCACHED = ("synthetic", "resident", "tfdata")  # rows of the train step on images


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    steps: int = 0  # of a window; 0: as many as take `window_seconds`
    windows: int = 5
    window_seconds: float = 2.0
    patience_seconds: float = 3600.0  # a process silent for longer is given up
    python: Mapping[str, str] = field(default_factory=dict)  # interpreter of a peer; else our own
    go_on: bool = False  # a peer that breaks down is noted instead of raised


def check(config: Config, rows: Sequence[str], peers: Sequence[str] = ()) -> None:
    """Finds out before anything is measured what a row would fail for.

    Raises:
      UserError: for an unknown network, missing data or weights, no frozen layers to store maps
        of, no TensorFlow to stream with, or an option that the peers lack.
    """
    from cxrjax import build, prefix
    from cxrjax.data import dataset

    if peers:
        jobs.check_peers(config)
    needed = config_lib.from_json(config_lib.to_json(config))
    if "end_to_end" not in rows:
        needed.model.weights, needed.train.start_from = "none", ""
    build.check(needed)
    if set(rows) & set(jobs.NEED_DATA):
        dataset.open_source(config.data)
    if set(rows) & set(jobs.COMPARABLE):
        jobs.class_names(config)
    storable = prefix.storable(config) or peers
    if "cached" in rows and not (storable and prefix.is_frozen(config)):
        raise jobs.no_maps()
    if "tfdata" in rows and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            "the row tfdata needs TensorFlow, which is missing; leave it out of --rows."
        )


def measure(
    config: Config, rows: Sequence[str], peers: Sequence[str], settings: Settings
) -> Iterator[dict[str, Any]]:
    """The whole table.

    Args:
      config: validated.
      rows: of `job.ROWS`.
      peers: of `job.PEERS`, for the rows that are comparable.
    Yields:
      after each row, what the benchmark's JSON file holds so far.
    Raises:
      UserError: for missing data or weights, or too little memory.
      ProcessFailed: when a process, ours or a peer's, breaks down.
    """
    peak = measured_peak(config, settings)
    result = {
        "device": peak["device"],
        "platform": peak["platform"],
        "threads": jobs.threads(),
        "versions": peak["versions"],
        "precision": config.train.precision,
        "image_size": config.data.image_size,
        "model": config.model.name,
        "trainable_layers": config.model.trainable_layers,
        "config": config.to_dict(),
        "peak": peak,
        "rows": [],
    }
    for row in rows:
        log.say(f"measuring {row}")
        against = peers if row in jobs.COMPARABLE else ()
        beside = _bases(config, rows) if row == "end_to_end" else ()
        result["rows"].append(measure_row(config, row, against, settings, peak, beside))
        _share_operations(result["rows"], peak)
        yield result


def _bases(config: Config, rows: Sequence[str]) -> list[str]:
    """The rows that epochs of the real loop are told in terms of; of stored maps only where it has
    use for them, while beside peers, who augment nothing, they are measured all the same."""
    from cxrjax import prefix

    cached = prefix.storable(config)
    return [base for base in BASES if base in rows and (base != "cached" or cached)]


def measured_peak(config: Config, settings: Settings) -> dict[str, Any]:
    """Operations per second of a large matrix product in the compute dtype, and the machine."""
    with _ours(config, "peak", settings, alone=True) as process:
        facts = process.facts()
        best = max(process.window() for _ in range(max(3, settings.windows)))
        process.finish()
    return {"flop_per_second": best, **facts}


def measure_row(
    config: Config,
    row: str,
    peers: Sequence[str],
    settings: Settings,
    peak: Mapping[str, Any],
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """One row: ours alone, or window by window in turn with each peer (A B A B).

    Only one process computes at a time: all others wait for their next line of input.

    Args:
      beside: other rows of ours to take windows in turn with, too.
    Returns:
      figures of ours; under "peers" those of each peer with the ratio, ours over theirs; under
      "over" the ratio of the row to each of `beside`.
    Raises:
      UserError, ProcessFailed: as `measure`.
    """
    if peers and any(config.augment.values()):
        log.say("augmentation is switched off: the peers have none")
        config = config_lib.from_json(config_lib.to_json(config))
        config.augment.update(dict.fromkeys(config.augment, 0.0))
    with (
        tempfile.TemporaryDirectory() as workdir,
        _ours(config, row, settings, alone=not (peers or beside), workdir=workdir) as ours,
    ):
        facts = ours.facts()
        rates, compared, over = [], {}, {}
        for base in beside:
            with _ours(config, base, settings, alone=False) as process:
                process.facts()
                meanwhile, others = interleaved(ours, process, settings.windows)
            rates, over[base] = [*rates, *meanwhile], ratios(meanwhile, others)
        for peer in peers:
            log.say(f"measuring {row} against {peer}")
            try:
                meanwhile, compared[peer] = _against(ours, facts, config, row, peer, settings)
                rates += meanwhile
            except ProcessFailed as error:
                if error.name != peer or not settings.go_on:
                    raise
                compared[peer] = {"error": str(error), "log": error.log}
        if not rates:
            rates = [ours.window() for _ in range(settings.windows)]
        facts |= ours.finish()
    for unwanted in ("device", "versions", "platform"):
        facts.pop(unwanted, None)
    figures = {
        "row": row,
        "batch_size": jobs.batch_size(config, row),
        "images_per_second": spread(rates),
        **facts,
        "peers": compared,
        **({"over": over} if over else {}),
    }
    return figures | {"share_of_peak": _share(figures, peak)}


def _against(
    ours: Measured,
    facts: Mapping[str, Any],
    config: Config,
    row: str,
    peer: str,
    settings: Settings,
) -> tuple[list[float], dict[str, Any]]:
    """Our rates, and the peer's figures, of windows taken in turn."""
    command = [settings.python.get(peer, sys.executable), str(peer_script(peer))]
    described = _describe(config, row, settings) | {
        "config": "",
        "parameter_layers": facts["parameter_layers"],
    }
    environment = dict(os.environ)
    if peer.startswith("keras-"):
        environment["KERAS_BACKEND"] = peer.removeprefix("keras-")
    with Measured(
        peer, command, described, environment, seconds=settings.patience_seconds
    ) as process:
        theirs = process.facts()
        mine, others = interleaved(ours, process, settings.windows)
        theirs |= process.finish()
    return mine, {
        "images_per_second": spread(others),
        "ours_meanwhile": spread(mine),
        "ratio": ratios(mine, others),
        **theirs,
    }


def interleaved(first: Any, second: Any, windows: int) -> tuple[list[float], list[float]]:
    """Rates of windows in the order first, second, first, second: drift hits both alike.

    Returns:
      those of the first, and those of the second.
    """
    pairs = [(first.window(), second.window()) for _ in range(windows)]
    return [mine for mine, _ in pairs], [theirs for _, theirs in pairs]


def _ours(
    config: Config, row: str, settings: Settings, *, alone: bool, workdir: str = ""
) -> Measured:
    environment = dict(os.environ)
    if not alone:
        # JAX would take most of a GPU's memory at its start and leave the peer none.
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    command = [sys.executable, "-m", "cxrjax.bench.worker"]
    described = _describe(config, row, settings) | {"workdir": workdir}
    return Measured(row, command, described, environment, seconds=settings.patience_seconds)


def _describe(config: Config, row: str, settings: Settings) -> dict[str, Any]:
    return jobs.describe(
        config,
        row,
        steps=settings.steps,
        window_seconds=settings.window_seconds,
    )


def _share(figures: Mapping[str, Any], peak: Mapping[str, Any]) -> float | None:
    """Operations done per second over the device's measured peak."""
    flop = figures.get("flop_per_image")
    if flop is None:
        return None
    return flop * figures["images_per_second"]["median"] / peak["flop_per_second"]


def _share_operations(rows: list[dict[str, Any]], peak: Mapping[str, Any]) -> None:
    """Gives rows whose program was not counted the count of the same step in another row."""
    known = {row["row"]: row["flop_per_image"] for row in rows if row.get("flop_per_image")}
    for figures in rows:
        same = ("cached",) if figures.get("input") == "frozen maps" else _UNCACHED
        counts = [known[name] for name in same if name in known]
        if figures["row"] in ("resident", "end_to_end") and counts:
            figures.setdefault("flop_per_image", counts[0])
            figures["share_of_peak"] = _share(figures, peak)
