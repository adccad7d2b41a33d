"""`python -m cxrjax.main`: trains the configured classifier and evaluates it once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli, verdict

_EPILOG = """\
examples:
  python -m cxrjax.main --config configs/quickstart.py
  python -m cxrjax.main --config configs/densenet4.py --config.data.dir=archive.zip \\
      --config.model.weights=imagenet --config.train.epochs=3
Run again on the same --workdir to resume. Every field and its default: `default` in
cxrjax/defaults.py, and the config.json of any run.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted and saved.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = cli.parser(
        "cxrjax.main",
        "Train a chest X-ray classifier, pick its best epoch, evaluate it once.",
        _EPILOG,
    )
    parser.add_argument("--config", metavar="FILE", help="a file of configs/, or a config.json")
    parser.add_argument(
        "--workdir", metavar="DIR", help="folder of the run (default: runs/<name of the config>)"
    )
    arguments, rest = parser.parse_known_args(argv)
    overrides = cli.parse_overrides(rest)
    if arguments.config is None and arguments.workdir is None:
        parser.error("give --config FILE, or --workdir DIR of a run to resume")
    default_workdir = Path("runs", Path(arguments.config or "").stem)
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir

    from cxrjax import config as config_lib

    config = config_lib.load(arguments.config or str(workdir / "config.json"), overrides)

    from cxrjax import log, predictions, runtime
    from cxrjax.run_folder import follow_data, keep_places

    if arguments.config is None and "data.dir" not in overrides:
        follow_data(config)
    keep_places(config)
    runtime.start(runtime.cache_root(config.data.cache) / "compiled")
    from cxrjax.loop import train_and_evaluate

    result, was_finished = train_and_evaluate(config, workdir)
    if was_finished:
        log.say(f"{workdir} is finished; choose another --workdir to train anew.")
    print(verdict.summary(result))
    # Not as result.json has it: of a finished run the split may have been read since.
    looks = predictions.looks(workdir, result)
    print(f"{looks}{'' if 'test' in result else ', not by this run'}; results in {workdir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
