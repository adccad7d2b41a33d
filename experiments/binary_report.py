"""The binary report, done again: COVID or normal, its four tasks in order.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python experiments/binary_report.py [--tasks 1,3,4]
python experiments/binary_report.py --quick        # phantoms, random weights: minutes

1. exploration of the 1600 / 400 / 200 images;
2. the grid of 54 baseline CNNs, hours on a CPU, and what becomes of its winner;
3. the grid of 27 heads on a frozen ResNet50V2 over eight stored views of each image, its winner
   trained on, then unfrozen and fine-tuned;
4. Grad-CAM of the test images that the fine-tuned network gets wrong.

Each winner twice: as the report did it (trained on train and validation images for the winner's
epochs, nothing held out while fine-tuning), and corrected (the validation split keeps choosing the
epoch). Either reads the test split once. Both on a split that keeps near-duplicates together.

Everything is a run of cxrjax's own commands in --workdir; what is finished there is not run again.
Settings: --config.field=value for both grids, --baseline.config.field=value or
--baseline.grid.field=value for task 2, --heads.config. and --heads.grid. for task 3. Writes
results/binary_report.json and .png, and the table in README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import reproduction
from reproduction import HERE, Row

from cxrjax import cli, log
from cxrjax.errors import UserError
from cxrjax.verdict import interval

TASKS = ("1", "2", "3", "4")
QUICK = {
    "config": {
        "data.name": "phantom",
        "data.classes": "clear,ground_glass",
        "data.draw": "(160,40,40)",
        "data.image_size": 64,
        "data.phantom.count": 520,
        "train.epochs": 3,
    },
    "baseline": {
        "config.train.epochs": 15,
        "grid.model.filters": "8",
        "grid.model.head.dropout": "0.3",
    },
    "heads": {
        "config.model.weights": "none",
        "config.sweep.fine_tune_learning_rate": 1e-4,
        "grid.model.head.dropout": "0.3",
        "grid.train.batch_size": "32,64",
    },
}
SWEEPS = {"baseline": "baseline2", "heads": "resnet2_head"}
# The report, section III and IV. Its test accuracy of the baseline follows from its text: four more
# COVID images and ten fewer normal ones are right after fine-tuning, at .76 of 200.
PRINTED_MOMENTS = {"train": (0.53, 0.25), "validation": (0.55, 0.25), "test": (0.56, 0.26)}
_PHASES = {"as_report": "report", "corrected": "held_out"}


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="phantoms instead of X-rays")
    parser.add_argument("--tasks", default="1,2,3,4", help="default %(default)s")
    parser.add_argument("--workdir", type=Path, help="default runs/binary_report[-quick]")
    arguments, rest = parser.parse_known_args(argv)
    tasks = arguments.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        raise UserError(f"--tasks holds {min(unknown)!r}; give some of {','.join(TASKS)}.")
    if "4" in tasks and "3" not in tasks:
        raise UserError("--tasks 4 explains the network of task 3; give 3,4 (3 may be finished).")
    root = arguments.workdir or Path(
        "runs", "binary_report" + ("-quick" if arguments.quick else "")
    )
    asked = dict(zip(QUICK, cli.parse_settings(rest, list(QUICK)), strict=True))
    own = {part: (QUICK[part] if arguments.quick else {}) | asked[part] for part in QUICK}
    every = reproduction.settings(own["config"])

    more: dict[str, Any] = {"tasks": tasks}
    rows: list[Row] = []
    if "1" in tasks:
        config = str(HERE.parent / "configs" / "baseline2.py")
        explored = root / "exploration"
        reproduction.run("data", "explore", "--config", config, "--out", str(explored), *every)
        more["exploration"] = _explored(explored / "explore.json")
    for task, part in (("2", "baseline"), ("3", "heads")):
        if task in tasks:
            best = _sweep(part, root / part, every, own[part])
            rows += rows_of(part, root / part, best)
            more[part] = _told(root / part, best)
    if "4" in tasks:
        best = reproduction.read(root / "heads" / "best.json")
        tuned, out = _runs(root / "heads", best, "report")[-1], root / "explained"
        reproduction.run(
            *("explain", "--workdir", str(tuned), "--only", "misclassified", "--out", str(out))
        )
        more["explained"] = reproduction.read(out / "summary.json")
    rows, more = _beside_earlier(rows, more, arguments.quick)
    if rows or "exploration" in more:
        written = reproduction.write(
            "binary_report", "Binary report: 95 % intervals of ours", rows, more, arguments.quick
        )
        log.say(reproduction.table(rows))
        log.say(f"see {written[0]} and {written[1]}")
    return 0


def _sweep(part: str, folder: Path, every: Sequence[str], own: Mapping[str, Any]) -> dict[str, Any]:
    config = str(HERE.parent / "configs" / "sweeps" / f"{SWEEPS[part]}.py")
    fields = [f"--{field}={value}" for field, value in own.items()]
    views = ["--config.cache.views=8"] if part == "heads" else []
    command = ["--config", config, "--workdir", str(folder), *views, *every, *fields]
    reproduction.run("sweep", *command)
    return reproduction.read(folder / "best.json")


def _beside_earlier(
    rows: list[Row], more: dict[str, Any], quick: bool
) -> tuple[list[Row], dict[str, Any]]:
    """What this run found, with what an earlier one wrote of the tasks that this one left out."""
    path = reproduction.results_file("binary_report", quick)
    earlier = reproduction.read(path) if path.is_file() else {"rows": [], "tasks": []}
    of: dict[str, list[Row]] = {part: [] for part in SWEEPS}
    for row in earlier.pop("rows"):
        of[_part(row["what"])].append(Row(**row))
    of |= {part: [row for row in rows if _part(row.what) == part] for part in of if part in more}
    tasks = sorted(set(more["tasks"]) | set(earlier["tasks"]))
    return [row for part in of.values() for row in part], earlier | more | {"tasks": tasks}


def _part(what: str) -> str:
    return "baseline" if what == "baseline CNN" else "heads"


def _runs(folder: Path, best: Mapping[str, Any], protocol: str) -> list[Path]:
    """The winner's runs by that protocol, in order: of a head two, of a whole network one."""
    from cxrjax.sweep import finish  # brings JAX, which bad input should not wait for

    names = (f"{protocol}_first", f"{protocol}_fine_tuned")
    place = finish.place(folder, best["winner"])
    runs = [place / name for name in names if (place / name).is_dir()]
    if not runs:
        raise UserError(
            f"{folder} holds no run of its winner by the protocol {protocol}; repeat the sweep "
            "with --config.sweep.finish=both."
        )
    return runs


def rows_of(part: str, folder: Path, best: Mapping[str, Any]) -> list[Row]:
    """What the report prints of a grid's winner, beside ours by both protocols."""
    runs = {column: _runs(folder, best, protocol) for column, protocol in _PHASES.items()}
    first = {column: reproduction.trained(of[0])[0] for column, of in runs.items()}
    test = {
        column: reproduction.read(of[-1] / "result.json")["test"] for column, of in runs.items()
    }
    searched = best["winner"]["accuracy"]
    if part == "baseline":
        what = "baseline CNN"
        rows = [
            Row(what, "validation accuracy of the best", None, searched, _worth(best)),
            Row(what, "training accuracy", 0.76, **first),
        ]
    else:
        what = "ResNet50V2, fine-tuned"
        last = {column: reproduction.trained(of[-1])[0] for column, of in runs.items()}
        rows = [
            Row(
                "ResNet50V2, head", "validation accuracy of the best", 0.81, searched, _worth(best)
            ),
            Row("ResNet50V2, head", "training accuracy", 0.88, **first),
            Row(what, "training accuracy", 0.99, **last),
        ]
    accuracy = {column: figures["accuracy"] for column, figures in test.items()}
    rows.append(Row(what, "test accuracy", 0.79 if part == "baseline" else 0.76, **accuracy))
    for name in test["corrected"]["per_class"]:
        recall = {column: of["per_class"][name]["recall"] for column, of in test.items()}
        rows.append(Row(what, f"test recall {name}", None, **recall))
    return rows


def _worth(best: Mapping[str, Any]) -> dict[str, Any] | None:
    """The winner's accuracy less what being picked as the best of many adds to it.

    Of one seed with the interval of what is corrected. Of several that interval knows nothing of
    the seeds; the accuracy's own is moved then, without what is uncertain about the optimism.
    """
    optimism, accuracy = best["optimism"], best["winner"]["accuracy"]
    if optimism["corrected"] is None:
        return None
    by = optimism["optimism"]["value"]
    if len(best["winner"]["seeds"]) == 1:
        low, high = optimism["corrected_interval"]
    else:
        low, high = (accuracy[end] - by for end in ("low", "high"))
    return {"value": accuracy["value"] - by, "low": low, "high": high, "n": accuracy["n"]}


def _told(folder: Path, best: Mapping[str, Any]) -> dict[str, Any]:
    """What belongs to a grid and is no row: winner, optimism, losses, verdicts, confusion."""
    told: dict[str, Any] = {
        key: best["winner"][key] for key in ("values", "accuracy", "loss", "best_epoch")
    }
    told |= {"optimism": best["optimism"], "trials": best["trials"], "protocols": {}}
    for protocol in _PHASES.values():
        runs = _runs(folder, best, protocol)
        results = [reproduction.read(run / "result.json") for run in runs]
        told["protocols"][protocol] = {
            "training_loss": [reproduction.trained(run)[1] for run in runs],
            "epochs": [result["epochs"] for result in results],
            "confusion_matrix": results[-1]["test"]["confusion_matrix"],
            **{key: results[-1][key] for key in ("verdict", "n", "test_looks", "seconds")},
            "shortcuts": results[-1]["audit"].get("shortcuts"),
            "device": results[-1]["device"],
        }
        log.say(f"{folder.name}, {protocol}: {results[-1]['verdict']}")
    log.say(f"{folder.name}: winner {interval(told['accuracy'])} with {told['values']}")
    return told


def _explored(path: Path) -> dict[str, Any]:
    """Mean and deviation of the pixels of each split beside the report's."""
    splits = reproduction.read(path)["splits"]
    return {
        split: {
            "n": splits[split]["n"],
            "classes": splits[split]["classes"],
            "mean": splits[split]["mean"],
            "std": splits[split]["std"],
            "report": printed,
        }
        for split, printed in PRINTED_MOMENTS.items()
    }


if __name__ == "__main__":
    sys.exit(main())
