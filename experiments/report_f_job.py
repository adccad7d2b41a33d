"""Report F's whole job, ours against Keras 3 on TensorFlow, on the same decoded images.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python experiments/report_f_job.py --epochs 3

DenseNet121 from ImageNet weights, last 20 layers and head F trained, Adamax 1e-4, class weights, no
augmentation, batch 32, validation after every epoch, the test split evaluated at the end. Both
start as commands of their own from images decoded beforehand and from empty caches of programs and
maps, one after the other. Time to the first epoch's end, seconds per later epoch and what follows
the last epoch are measured; jobs of 10 and 30 epochs are extrapolated from them and marked so.
`--images N` takes a balanced draw of N images (70 % train, 10 % validation, 20 % test).
Other settings as on cxrjax's command line: --config.field=value. Writes
experiments/results/report_f_job.json; with --only report_f_job-only-PART.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import build, cli, log
from cxrjax import config as config_lib
from cxrjax.bench import job as jobs
from cxrjax.data import dataset
from cxrjax.errors import UserError

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "configs" / "densenet4.py"
_EPOCH = re.compile(r"^epoch (\d+)/")
_JOBS = (10, 30)  # epochs


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3, help="that are really run (default 3)")
    parser.add_argument("--images", type=int, default=0, help="size of a draw; 0: all images")
    parser.add_argument("--python", default=sys.executable, help="interpreter with Keras")
    parser.add_argument("--only", choices=("ours", "keras"), help="run one of the two")
    parser.add_argument("--out", type=Path, help="default: results/report_f_job[-only-PART].json")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.epochs < 2:
        raise UserError("--epochs must be 2 or more: the first one is not like the others.")
    overrides = {"train.epochs": str(arguments.epochs), "train.patience": "0"}
    overrides |= cli.parse_overrides(rest)
    if arguments.images:
        overrides["data.draw"] = str(_draw(arguments.images))

    out = arguments.out or results("report_f_job", arguments.only)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        overrides["data.cache"] = os.path.join(root, "cache")
        config = config_lib.load(str(CONFIG), overrides)
        if any(config.augment.values()):
            raise UserError("Keras augments nothing in this job; leave the fields of augment at 0.")
        jobs.check_peers(config)
        weights = build.check(config)
        data = dataset.prepare(config)
        export(data, Path(root, "data"))
        commands = {
            "ours": _ours(overrides, root),
            "keras": _keras(arguments.python, config, weights, root),
        }
        result: dict[str, Any] = {
            "job": {name: config_lib.fields(config)[name] for name in sorted(_TOLD)},
            "n": {split: len(rows) for split, rows in data.splits.items()},
            "weights": weights and weights.name,
            "threads": jobs.threads(),
        }
        for name in [arguments.only] if arguments.only else list(commands):
            log.say(f"running {name}: {arguments.epochs} epochs")
            result[name] = timed(commands[name])
            if name == "ours":
                own = json.loads(Path(root, "run", "result.json").read_text())
                result["ours"] |= {of: own[of] for of in ("device", "versions", "parameters")}
                result["ours"]["test_accuracy"] = own["test"]["accuracy"]["value"]
            log.write_json(unfinished(out), result)
    if not arguments.only:
        result["speedup"] = speedups(result["ours"], result["keras"], arguments.epochs)
    log.write_json(out, result)
    unfinished(out).unlink()
    print(json.dumps(result.get("speedup", result), indent=2))
    return 0


def results(name: str, only: str | None) -> Path:
    """The file of a whole comparison, which a part measured alone does not replace."""
    return HERE / "results" / f"{name}{f'-only-{only}' if only else ''}.json"


def unfinished(out: Path) -> Path:
    """Where the parts lie until all are there: what an earlier run left in `out` stays."""
    return out.with_stem(out.stem + "-unfinished")


_TOLD = (
    "data.image_size",
    "data.name",
    "data.draw",
    "model.name",
    "model.trainable_layers",
    "train.batch_size",
    "train.epochs",
    "train.optimizer",
    "train.learning_rate",
    "train.class_weights",
    "train.precision",
    "augment.shift",
    "cache.dtype",
    "eval.shortcuts",
)


def _draw(images: int) -> tuple[int, int, int]:
    """(train, validation, test) counts, each a multiple of the four classes."""
    parts = tuple(max(4, round(images * share / 4) * 4) for share in (0.7, 0.1, 0.2))
    return parts[0], parts[1], parts[2]


def export(data: dataset.Dataset, folder: Path) -> None:
    """Writes the decoded images, labels and splits as .npy files for a peer, see keras_job."""
    folder.mkdir()
    np.save(folder / "images.npy", data.store.images)
    np.save(folder / "labels.npy", np.asarray(data.store.labels, np.int32))
    for split, rows in data.splits.items():
        np.save(folder / f"{split}.npy", rows)


def _ours(overrides: dict[str, str], root: str) -> list[str]:
    fields = [f"--config.{name}={value}" for name, value in overrides.items()]
    workdir = os.path.join(root, "run")
    main = [sys.executable, "-m", "cxrjax.main"]
    return [*main, "--config", str(CONFIG), "--workdir", workdir, *fields]


def _keras(python: str, config: Any, weights: Path | None, root: str) -> list[str]:
    job = jobs.describe(config, "synthetic") | {"config": ""}
    return [
        *(python, str(HERE / "peers" / "keras_job.py"), "--data", os.path.join(root, "data")),
        *(["--weights", str(weights)] if weights else []),
        *("--epochs", str(config.train.epochs), "--job", json.dumps(job)),
    ]


def timed(command: Sequence[str]) -> dict[str, Any]:
    """Runs a command that says "epoch I/E" as each epoch ends, and keeps when it did.

    Returns:
      seconds: in all, to the end of the first epoch, of each later epoch (all that lies between
      two such lines, checkpoints included), after the last; "told": the JSON of its last line.
    Raises:
      UserError: when the command fails.
    """
    marks = []

    def keep(line: str, seconds: float) -> None:
        if _EPOCH.match(line):
            marks.append(seconds)
            log.say(f"  {seconds:.1f} s: {line.strip()}")

    lines, total = watched(command, keep)
    if len(marks) < 2:
        log.say("".join(lines[-40:]))
        raise UserError(f"{command[1]} ran {len(marks)} epochs; two are the fewest.")
    later = np.diff(marks)
    return {
        "seconds": total,
        "to_first_epoch_end": marks[0],
        "later_epochs": later.tolist(),
        "epoch_median": float(np.median(later)),
        "after_last_epoch": total - marks[-1],
        "told": json.loads(lines[-1]) if lines[-1].startswith("{") else None,
    }


def watched(command: Sequence[str], told: Callable[[str, float], None]) -> tuple[list[str], float]:
    """Runs a command in this checkout and looks at each line as it comes.

    Args:
      told: called with a line and the seconds since the start.
    Returns:
      all lines, standard error among them, and the seconds until it ended.
    Raises:
      UserError: when the command fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={name: value for name, value in os.environ.items() if name != _COMPILED},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        told(line, time.perf_counter() - start)
    code, total = process.wait(), time.perf_counter() - start
    if code:
        log.say("".join(lines[-40:]))
        raise UserError(
            f"{' '.join(command[1:3])} ended with code {code}; what it printed stands above."
        )
    return lines, total


_COMPILED = "JAX_COMPILATION_CACHE_DIR"  # of the user's: our programs are to be compiled anew


def seconds_of(run: dict[str, Any], epochs: int) -> float:
    """The job's seconds at another number of epochs, extrapolated from a shorter run."""
    fixed = run["to_first_epoch_end"] + run["after_last_epoch"]
    return fixed + (epochs - 1) * run["epoch_median"]


def speedups(ours: dict[str, Any], keras: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Keras' seconds over ours: as measured, of one epoch, and extrapolated."""
    measured = keras["seconds"] / ours["seconds"]
    return {
        "measured": {"epochs": epochs, "speedup": measured},
        "later_epoch": keras["epoch_median"] / ours["epoch_median"],
        "extrapolated": {
            str(n): {
                "ours_seconds": seconds_of(ours, n),
                "keras_seconds": seconds_of(keras, n),
                "speedup": seconds_of(keras, n) / seconds_of(ours, n),
            }
            for n in _JOBS
        },
    }


if __name__ == "__main__":
    sys.exit(main())
