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

    from cxrjax import log, runtime
    from cxrjax.run_folder import keep_places

    keep_places(config)
    runtime.start(runtime.cache_root(config.data.cache) / "compiled")
    from cxrjax.loop import train_and_evaluate

    result, was_finished = train_and_evaluate(config, workdir)
    if was_finished:
        log.say(f"{workdir} is finished; choose another --workdir to train anew.")
    print(summary(result, workdir))
    return 0


def summary(result: dict, workdir: Path) -> str:
    """The lines printed at the end: figures with intervals, and the reasons to doubt them."""
    epochs = f"best epoch {result['best_epoch']} of {result['epochs']}"
    if "validation" in result.get("trained_on", ()):
        epochs = f"{result['epochs']} epochs on training and validation images, the last one kept"
    lines = [f"{result['model']}, {epochs}"]
    for split in ("validation", "test"):
        if (part := result.get(split)) is None:
            continue
        lines.append(
            f"{split:10} n={part['accuracy']['n']}: accuracy {_interval(part['accuracy'])}, "
            f"macro F1 {_interval(part['macro_f1'])}, AUROC {_interval(part['auroc'])} (95 %)"
            + (" on images trained on" if part.get("trained_on") else "")
        )
    tested = "test" in result
    lines += _per_class(result["test" if tested else "validation"])
    lines += [f"audit      {finding}" for finding in result["audit"]["summary"]]
    lines.append(f"verdict    {verdict.line(result)}")
    own = "" if tested else ", not by this run"
    lines.append(
        f"test split read {result['test_looks']} time(s) so far{own}; results in {workdir}"
    )
    return "\n".join(lines)


def _per_class(part: dict) -> list[str]:
    """Table of a split: precision, recall with interval, F1, support, confusion matrix."""
    classes = part["classes"]
    width = max(map(len, classes))
    lines = [f"{'':{width}} precision  recall                F1     support  predicted as"]
    for name, row in zip(classes, part["confusion_matrix"], strict=True):
        scores = part["per_class"][name]
        precision, recall, f1 = (scores[key] for key in ("precision", "recall", "f1"))
        lines.append(
            f"{name:{width}} {_plain(precision):9}  {_interval(recall):20}  {_plain(f1):5}  "
            f"{scores['support']:7}  {' '.join(f'{count:5}' for count in row)}"
        )
    return lines


def _plain(metric: dict) -> str:
    return "-" if metric["value"] is None else f"{metric['value']:.3f}"


def _interval(metric: dict) -> str:
    if metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
