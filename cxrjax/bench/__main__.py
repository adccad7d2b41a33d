"""`python -m cxrjax.bench`: throughput of the real trainer, alone or side by side with peers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli

_EPILOG = """\
rows:
  synthetic   train step on one batch that stays on the device (needs no data)
  cached      the same on stored maps of the frozen layers (needs no data)
  resident    train step fed by the resident input path
  tfdata      train step fed by the tf.data path
  end_to_end  training epochs of the real loop
  forward     evaluation step on one batch that stays on the device (needs no data)
examples:
  python -m cxrjax.bench --config configs/quickstart.py --json bench.json
  python -m cxrjax.bench --config configs/densenet4.py --rows synthetic,forward \\
      --compare keras-tensorflow,torch --peer-python torch=/opt/torch/bin/python
Every row runs in a process of its own; compilation and warm-up are outside the clock. What is
measured stays in --json when a later row fails.
Settings are overridden by --config.field=value.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.bench", __doc__, _EPILOG)
    parser.add_argument("--config", metavar="FILE", required=True, help="e.g. configs/densenet4.py")
    parser.add_argument(
        "--rows",
        metavar="LIST",
        default="synthetic,resident,tfdata,end_to_end",
        help="comma-separated (default %(default)s)",
    )
    parser.add_argument("--json", metavar="OUT", help="file to write all figures to")
    parser.add_argument(
        "--steps", type=int, default=0, metavar="N", help="of a window (default: 2 seconds' worth)"
    )
    parser.add_argument("--windows", type=int, default=5, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--compare",
        metavar="LIST",
        help="peers to run in turn with ours: keras-tensorflow,keras-jax,torch",
    )
    parser.add_argument(
        "--peer-python",
        action="append",
        default=[],
        metavar="PEER=PATH",
        help="interpreter whose environment holds a peer (default: this one)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU cores for all (default: all there are)"
    )
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments, rest = _parser().parse_known_args(argv)
    overrides = cli.parse_overrides(rest)

    from cxrjax import config as config_lib
    from cxrjax import log
    from cxrjax.bench import job, session, summary
    from cxrjax.bench.processes import ProcessFailed
    from cxrjax.errors import UserError, writing

    rows = job.choose(arguments.rows, tuple(job.ROWS), "--rows")
    peers = ()
    if arguments.compare is not None:
        peers = job.choose(arguments.compare, job.PEERS, "--compare")
    if peers and not set(rows) & set(job.COMPARABLE):
        raise UserError(f"--compare needs one of the rows {', '.join(job.COMPARABLE)} in --rows.")
    if arguments.steps < 0 or arguments.windows < 1:
        raise UserError("--steps must be 0 or more and --windows 1 or more.")
    python = dict(map(job.peer_python, arguments.peer_python))
    out = Path(arguments.json).absolute() if arguments.json else None
    if out and out.is_dir():  # told now, not after minutes of measuring
        raise UserError(f"{out} is a folder; name a file in it by --json.")
    if out and not os.access(out.parent, os.W_OK):
        raise UserError(f"cannot write to {out.parent}; choose another --json.")
    if arguments.threads is not None:
        job.use_threads(arguments.threads)
    config = config_lib.load(arguments.config, overrides)
    session.check(config, rows, peers)
    settings = session.Settings(steps=arguments.steps, windows=arguments.windows, python=python)
    result = None
    try:
        for result in session.measure(config, rows, peers, settings):
            if out:
                with writing(out, "choose another --json"):
                    log.write_json(out, result)
    except ProcessFailed as error:
        if error.log:
            log.say(error.log)
        raise UserError(f"{error}; what it printed stands above.") from error
    finally:  # of rows measured before one failed or the user had enough
        if result:
            print(summary.table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
