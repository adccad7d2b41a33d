"""`python -m cxrjax.sweep`: every point of a grid, and what becomes of the winner."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrjax import cli
from cxrjax.errors import UserError

_EPILOG = """\
examples:
  python -m cxrjax.sweep --config configs/sweeps/resnet2_head.py --dry-run
  python -m cxrjax.sweep --config configs/sweeps/resnet2_head.py --workdir runs/heads \\
      --config.sweep.seeds=5 --config.cache.views=8
  python -m cxrjax.sweep --config configs/sweeps/baseline2.py --grid.model.filters=8,32
Run again on the same --workdir to go on: finished trials are not repeated. The winner (validation
accuracy, ties by loss) is trained on as --config.sweep.finish says: none, report (on train and
validation images for the winner's epochs, then everything unfrozen for as many), held_out (the
validation split keeps choosing the epoch), both. Each of the two reads the test split once.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = cli.parser(
        "cxrjax.sweep", "Train every point of a grid, and finish the best one.", _EPILOG
    )
    parser.add_argument("--config", metavar="FILE", required=True, help="a file of configs/sweeps/")
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of the sweep (default: runs/sweeps/<name of FILE>)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--backend", choices=("local", "ray"), default="local", help="where trials run"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="of --backend ray without a cluster of its own"
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="run part I of N (from 0) and stop: for arrays of jobs"
    )
    arguments, rest = parser.parse_known_args(argv)
    part = _shard(arguments.shard)
    if arguments.workers < 1:
        raise UserError(f"--workers is {arguments.workers}; give 1 or more.")
    overrides, of_grid = cli.parse_settings(rest, ("config", "grid"))
    workdir = Path(arguments.workdir or Path("runs", "sweeps", Path(arguments.config).stem))
    from cxrjax.sweep import grid

    sweep = grid.load(arguments.config, overrides, of_grid)
    from cxrjax import runtime

    runtime.start(runtime.cache_root(sweep.config.data.cache) / "compiled")
    from cxrjax.sweep import job

    options: dict[str, Any] = {"backend": arguments.backend, "workers": arguments.workers}
    job.run(sweep, workdir, dry_run=arguments.dry_run, part=part, **options)
    return 0


def _shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    index, slash, count = text.partition("/")
    numbers = len(text) < 20 and index.isdecimal() and count.isdecimal()
    if not (slash and numbers and int(index) < int(count)):
        raise UserError(f"--shard is {text[:40]!r}; give I/N with I from 0 to N - 1, such as 0/4.")
    return int(index), int(count)


if __name__ == "__main__":
    sys.exit(main())
