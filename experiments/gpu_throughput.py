"""Full fine-tuning of the four backbones against PyTorch on a GPU lent by the minute.

python experiments/gpu_throughput.py [--groups densenet121,mobilenetv2 resnet50v2,inceptionv3]

As `throughput.py --modes full`, but the processes of a whole group, ours and PyTorch's, compile at
the same time; only when all of them are warm are windows taken, ours and PyTorch's in turn, one
pair after another. Writes experiments/results/throughput-<device>.json as each pair ends.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import throughput

from cxrjax import cli, log
from cxrjax import config as config_lib
from cxrjax.bench import job as jobs
from cxrjax.bench import session
from cxrjax.bench.processes import Measured, ProcessFailed, peer_script
from cxrjax.bench.summary import ratios, spread
from cxrjax.errors import UserError

_GROUPS = ("densenet121,mobilenetv2", "resnet50v2,inceptionv3")
_ALL = 10**6  # layers: more than any network has


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", default=list(_GROUPS), metavar="LIST")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", default="bfloat16", choices=config_lib.PRECISIONS)
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--cell-seconds", type=float, default=400)
    parser.add_argument("--out", type=Path, default=throughput.RESULTS, metavar="DIR")
    arguments = parser.parse_args(argv)
    if arguments.windows < 1:
        raise UserError("--windows must be 1 or more.")
    settings = session.Settings(
        windows=arguments.windows, window_seconds=1.0, patience_seconds=arguments.cell_seconds
    )
    first = throughput.configure("densenet121", "full", arguments.batch_size, arguments.precision)
    peak = session.measured_peak(first, settings)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"throughput-{throughput._slug(peak)}.json"
    table = throughput._load(path) | {n: peak[n] for n in ("device", "platform", "versions")}
    table |= {"threads": jobs.threads(), "peak": {arguments.precision: peak}}
    for group in arguments.groups:
        with contextlib.ExitStack() as stack:
            pairs = {}
            for model in jobs.choose(group, throughput.MODELS, "--groups"):
                config = throughput.configure(
                    model, "full", arguments.batch_size, arguments.precision
                )
                pairs[model] = config, *_start(stack, config, settings)
            for model, (config, ours, torch) in pairs.items():
                size = f"{config.data.image_size}px/batch{arguments.batch_size}"
                key = f"{model}/full/{size}/{arguments.precision}"
                try:
                    waiting = [other[1:] for name, other in pairs.items() if name != model]
                    cell = _measure(config, ours, torch, waiting, settings, peak)
                except (UserError, ProcessFailed) as error:
                    cell = {"error": str(error), "log": getattr(error, "log", "")}
                throughput.put(table, key, cell)
                log.write_json(path, table)
    throughput.plot(table, path.with_suffix(".png"))
    print(path)
    return 0


def _start(stack: contextlib.ExitStack, config, settings) -> tuple[Measured, Measured]:
    ours = stack.enter_context(session._ours(config, "synthetic", settings, alone=False))
    job = session._describe(config, "synthetic", settings)
    job |= {"config": "", "parameter_layers": _ALL}
    command = [sys.executable, str(peer_script("torch"))]
    torch = stack.enter_context(
        Measured("torch", command, job, os.environ, seconds=settings.patience_seconds)
    )
    return ours, torch


_facts: dict[Measured, dict] = {}


def _ready(process: Measured) -> dict:
    if process not in _facts:
        _facts[process] = process.facts()
    return _facts[process]


def _measure(config, ours, torch, waiting, settings, peak) -> dict:
    mine = _ready(ours)
    theirs = _ready(torch)
    for others in waiting:  # nothing may compile while windows are taken
        for process in others:
            with contextlib.suppress(ProcessFailed, UserError):
                _ready(process)
    rates, others = session.interleaved(ours, torch, settings.windows)
    mine |= ours.finish()
    theirs |= torch.finish()
    cell = {
        "row": "synthetic",
        "batch_size": config.train.batch_size,
        "images_per_second": spread(rates),
        **{k: v for k, v in mine.items() if k not in ("device", "versions", "platform")},
        "peers": {
            "torch": {
                "images_per_second": spread(others),
                "ours_meanwhile": spread(rates),
                "ratio": ratios(rates, others),
                **theirs,
            }
        },
    }
    return cell | {"share_of_peak": session._share(cell, peak)}


if __name__ == "__main__":
    sys.exit(main())
