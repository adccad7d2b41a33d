"""Alarms of the data audit on clean phantoms over many seeds, and on each planted fault.

python experiments/false_alarms.py [--seeds 20] [--first 0] [--count 480] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli
from cxrjax import config as config_lib
from cxrjax.audit import run
from cxrjax.errors import UserError

FAULTS = {
    "clean": {},
    "marker .3": {"phantom.marker": 0.3},
    "duplicates .02": {"phantom.duplicates": 0.02},
    "label noise .15": {"phantom.label_noise": 0.15},
}


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=480)
    parser.add_argument("--faults", default=",".join(FAULTS), help="default: all")
    parser.add_argument("--json")
    arguments = parser.parse_args(argv)
    named = arguments.faults.split(",")
    if unknown := set(named) - set(FAULTS):
        raise UserError(f"--faults holds {min(unknown)!r}; give some of {','.join(FAULTS)}.")
    if arguments.seeds < 1:
        raise UserError("--seeds must be 1 or more.")
    table = {}
    for name in named:
        alarms: dict[str, list[int]] = {}
        figures = []
        start = time.perf_counter()
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                config = config_lib.default()
                config.data.image_size = 64
                config.data.cache = folder
                config.data.phantom.count = arguments.count
                config.data.phantom.seed = seed
                config.data.update_from_flattened_dict(FAULTS[name])
                report, _ = run.data_set(config, Path(folder))
            for finding in report["findings"]:
                alarms.setdefault(finding["kind"], []).append(seed)
            told = report["predictability"]
            figures.append(
                {family: entry["auroc"] for family, entry in told.items()}
                | {"label_doubts": report["label_doubts"]["contradicted"]}
            )
        table[name] = {"alarms": alarms, "seeds": arguments.seeds, "figures": figures}
        seconds = (time.perf_counter() - start) / arguments.seeds
        shown = ", ".join(f"{kind} {len(seeds)}" for kind, seeds in alarms.items()) or "none"
        print(
            f"{name}: alarms in {arguments.seeds} seeds: {shown}; {seconds:.1f} s each", flush=True
        )
        for family in figures[0]:
            values = [f[family]["value"] for f in figures if f[family]["value"] is not None]
            lows = [f[family]["low"] for f in figures if f[family]["low"] is not None]
            if values:
                mean = sum(values) / len(values)
                print(
                    f"    {family:15} mean {mean:.3f}, largest low {max(lows):.3f}, "
                    f"smallest low {min(lows):.3f}"
                )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"count": arguments.count} | table) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
