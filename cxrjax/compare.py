"""`python -m cxrjax.compare RUN RUN ...`: finished runs side by side on the same test images."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrjax import cli, verdict
from cxrjax.errors import UserError, writing

if TYPE_CHECKING:
    import numpy as np

    from cxrjax.predictions import Run

_EPILOG = """\
examples:
  python -m cxrjax.compare runs/densenet4 runs/mobilenet4 runs/inception4 --out comparison
A RUN is the --workdir of a finished run. Runs are paired image by image: all must have been tested
on the same images. Two runs are told apart when McNemar's exact test, adjusted for the number of
pairs, gives p < .05 and the 95 % interval of their difference in accuracy leaves out 0.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "cxrjax.compare",
        "Compare finished runs, pair by pair, on the test images they share.",
        _EPILOG,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a finished run")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for comparison.json and comparison.png"
    )
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, default %(default)s")
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    if len(arguments.runs) < 2:
        raise UserError("a comparison needs two runs or more; name their folders.")
    if arguments.resamples < 100:
        raise UserError(f"--resamples is {arguments.resamples}; give 100 or more.")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; give 0 or more.")
    folders = [Path(folder).resolve() for folder in arguments.runs]
    for k, folder in enumerate(folders):
        if folder in folders[:k]:
            raise UserError(f"{arguments.runs[k]} is named twice; name each run once.")

    from cxrjax import comparison, predictions

    runs = [predictions.read(Path(folder)) for folder in arguments.runs]
    _check(runs)
    names = _names(runs)
    test = runs[0].splits["test"]
    pairs = comparison.compare(
        test.labels,
        [run.splits["test"].probabilities for run in runs],
        names,
        runs[0].classes,
        _groups(runs),
        arguments.resamples,
        arguments.seed,
    )
    rows = [_row(name, run) for name, run in zip(names, runs, strict=True)]
    looks = predictions.looks(runs[0].folder, runs[0].result)
    found = {
        "runs": rows,
        "pairs": pairs,
        "n": len(test.labels),
        "resamples": arguments.resamples,
        "test_looks": looks.here,
        "test_looks_elsewhere": looks.elsewhere,
    }
    _write(found, arguments.out)
    print(_table(rows))
    print("\n".join(pair["finding"] for pair in pairs))
    print(looks)
    return 0


def _check(runs: Sequence[Run]) -> None:
    """Refuses runs that were not tested on the same images of the same classes."""
    first = runs[0]
    for run in runs[1:]:
        if run.classes != first.classes:
            ours, theirs = (", ".join(of.classes) for of in (first, run))
            raise UserError(
                f"{first.folder} and {run.folder} tell other classes apart ({ours}; {theirs}); "
                "compare runs of one task."
            )
        test, other = first.splits["test"], run.splits["test"]
        same_data = _same_data(first, run)
        if same_data and (test.names, test.labels.tolist()) == (other.names, other.labels.tolist()):
            continue
        shared = len(set(test.names) & set(other.names)) if same_data else 0
        raise UserError(
            f"{first.folder} and {run.folder} were tested on different images ({len(test.labels)} "
            f"and {len(other.labels)}, {shared} in both); train both on the same data with the "
            "same data.classes, data.split_seed, data.test_fraction and data.draw."
        )


def _groups(runs: Sequence[Run]) -> np.ndarray:
    """Which test images belong together, int [N]: those that do in any run, chains followed.

    A run may have kept no groups (older versions), or found other near-duplicates at another size.
    """
    import numpy as np

    from cxrjax.data.duplicates import group

    pairs = []
    for run in runs:
        _, first, member = np.unique(
            run.splits["test"].groups, return_index=True, return_inverse=True
        )
        pairs.append(np.stack([np.arange(len(member)), first[member]], axis=1))
    n = len(pairs[0])
    return group(n, np.concatenate(pairs), [None] * n)


def _same_data(first: Run, second: Run) -> bool:
    """Whether equal names mean equal images, as far as the runs tell."""
    ours, theirs = (run.result.get("data_fingerprint") for run in (first, second))
    return ours is None or theirs is None or ours == theirs


def _names(runs: Sequence[Run]) -> list[str]:
    """The folders' names, or their whole paths where two have the same."""
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.folder) for run in runs]


def _row(name: str, run: Run) -> dict[str, Any]:
    from cxrjax import predictions

    test = run.result["test"]
    figures = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss")
    with predictions.understood(run.folder):
        row = {
            "name": name,
            "model": run.result.get("model"),
            "split_digest": run.result.get("split_digest"),
            "parameters": run.result.get("parameters"),
            **{figure: test[figure] for figure in figures},
            "recall": {c: test["per_class"][c]["recall"] for c in run.classes},
        }
        _cells(row)  # what cannot be printed is told now, with the run's name
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Runs as columns would grow too wide: a row each, figures with intervals below their names."""
    columns = ["accuracy", "macro F1", *(f"recall {c}" for c in rows[0]["recall"])]
    lines = [["run", *columns], *map(_cells, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(row: dict[str, Any]) -> list[str]:
    figures = [row["accuracy"], row["macro_f1"], *row["recall"].values()]
    return [row["name"], *map(verdict.interval, figures)]


def _write(found: dict[str, Any], out: str | None) -> None:
    if out is None:
        return
    from cxrjax import evaluation_figures, log

    folder = Path(out)
    with writing(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        log.write_json(folder / "comparison.json", found)
        evaluation_figures.comparison(found["runs"], found["pairs"], folder / "comparison.png")
    log.say(f"comparison.json and comparison.png are in {folder}")


if __name__ == "__main__":
    sys.exit(main())
