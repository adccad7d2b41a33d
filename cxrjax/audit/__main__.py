"""`python -m cxrjax.audit`: reasons to doubt a data set, and a run trained on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrjax import cli

_EPILOG = """\
examples:
  python -m cxrjax.audit --config configs/quickstart.py
  python -m cxrjax.audit --config configs/densenet4.py --config.data.dir=archive.zip --strict
  python -m cxrjax.audit --workdir runs/quickstart
writes audit.json and figures/ into --out. With --workdir the run's network is tested on images
without lungs, without borders and so on, and the run's result.json gets the verdict; this looks at
the test split, and the ledger of looks says so.
exit codes: 0 done, 1 done with findings and --strict, 2 bad input, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.audit", __doc__, _EPILOG)
    parser.add_argument("--config", metavar="FILE", help="a file of configs/, or a config.json")
    parser.add_argument("--workdir", metavar="DIR", help="a finished run: audits its network too")
    parser.add_argument(
        "--out", metavar="DIR", help="default: WORKDIR/audit, else audits/<name of the config>"
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 when there are findings")
    return parser


def _run(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = cli.parse_overrides(rest)
    if arguments.config is None and arguments.workdir is None:
        parser.error("give --config FILE, or --workdir DIR of a finished run")
    workdir = Path(arguments.workdir) if arguments.workdir else None

    from cxrjax import config as config_lib
    from cxrjax import log, runtime
    from cxrjax.errors import writing
    from cxrjax.run_folder import follow_data

    named = str(arguments.config if workdir is None else workdir / "config.json")
    config = config_lib.load(named, overrides)
    if workdir is not None:
        asked = config_lib.load(arguments.config, overrides) if arguments.config else config
        _check_same_data(config_lib.load(named), asked, workdir)
        if "data.dir" not in overrides:
            follow_data(config)
    place = config.data.dir or os.environ.get("CXRJAX_DATA", "")
    config.data.dir = os.path.abspath(os.path.expanduser(place)) if place else ""
    out = Path(arguments.out) if arguments.out else _default_out(workdir, named)
    runtime.start(runtime.cache_root(config.data.cache) / "compiled")
    from cxrjax.audit import run

    if workdir is not None:
        run.result_of(workdir)  # a run that cannot be audited is told at once
    with writing(out, "choose another --out"):
        (out / "figures").mkdir(parents=True, exist_ok=True)
    report, data = run.data_set(config, out / "figures")
    if workdir is not None:
        found = run.trained_run(workdir, config, data, out / "figures")
        report |= found | {"findings": report["findings"] + found["findings"]}
    with writing(out, "choose another --out"):
        log.write_json(out / "audit.json", report)
    print(run.summary(report))
    print(f"written to {out}")
    return 1 if arguments.strict and report["findings"] else 0


def _check_same_data(run: Any, asked: Any, workdir: Path) -> None:
    from cxrjax.errors import UserError

    for field, value in run.data.to_dict().items():
        if field not in ("dir", "cache") and asked.data.to_dict()[field] != value:
            raise UserError(
                f"{workdir} was trained with data.{field} {value!r}, and what is asked for has "
                f"{asked.data.to_dict()[field]!r}; leave that out to audit the run."
            )


def _default_out(workdir: Path | None, config: str) -> Path:
    return workdir / "audit" if workdir is not None else Path("audits", Path(config).stem)


if __name__ == "__main__":
    sys.exit(main())
