"""`python -m cxrjax.main`: trains the configured classifier and evaluates it once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli

_EPILOG = """\
examples:
  python -m cxrjax.main --config configs/quickstart.py
  python -m cxrjax.main --config configs/densenet4.py --config.data.dir=archive.zip \\
      --config.model.weights=imagenet --config.train.epochs=3
Run again on the same --workdir to resume. Every field and its default: `default` in
cxrjax/config.py, and the config.json of any run.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted and saved.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxrjax.main",
        description="Train a chest X-ray classifier, pick its best epoch, evaluate it once.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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

    from cxrjax import log, runtime
    from cxrjax.data.store import cache_root

    runtime.start(cache_root(config.data.cache) / "compiled")
    from cxrjax.loop import train_and_evaluate

    result, was_finished = train_and_evaluate(config, workdir)
    if was_finished:
        log.say(f"{workdir} is finished; choose another --workdir to train anew.")
    print(summary(result, workdir))
    return 0


def summary(result: dict, workdir: Path) -> str:
    """The lines printed at the end: figures with intervals, and the reasons to doubt them."""

    def interval(metric: dict) -> str:
        if metric["value"] is None:
            return "undefined"
        return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"

    lines = [f"{result['model']}, best epoch {result['best_epoch']} of {result['epochs']}"]
    for split in ("validation", "test"):
        part = result[split]
        lines.append(
            f"{split:10} n={part['accuracy']['n']}: accuracy {interval(part['accuracy'])}, "
            f"macro F1 {interval(part['macro_f1'])}, AUROC {interval(part['auroc'])} (95 %)"
        )
    lines += [f"audit      {finding}" for finding in result["audit"]["summary"]]
    lines.append(f"test split read {result['test_looks']} time(s) so far; results in {workdir}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
