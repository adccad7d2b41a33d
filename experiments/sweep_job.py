"""A whole sweep, ours against the loop over its points that a user of Keras 3 would write.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python experiments/sweep_job.py --sweep resnet2_head [--views 8]

Ours is the command `python -m cxrjax.sweep` as it stands, from images decoded beforehand and from
empty caches of programs and maps; its search is timed alone (--config.sweep.finish=none), what is
made of the winner only with --whole. Keras (peers/keras_sweep.py) runs a few points for a few
epochs on the same images, before ours and the first of them once more after it, never at the same
time. Its whole grid is EXTRAPOLATED from them: for each point

    (seconds of the measured point of the same shape but for its epochs)
    + (epochs that our search took for this very point) x (median of that shape's later epochs).

Points have one shape when network, filters and batch size are equal. For sweeps of heads the cost
of a point more is measured too: the sweep of one point and of all, for the same fixed numbers of
epochs without early stopping. With --views there is a second, stronger peer: a user of Keras who
thought of storing the features of as many views himself and fits heads on them ("keras_stored").
With --ours a sweep that was run before is taken for ours, its trials' seconds added up. With
--shards ours is so many commands at a time, `--shard I/N`, the cores shared out among them.
Other settings as on the sweep's command line: --config.field=value,
--grid.field=values. Writes experiments/results/sweep_job-NAME.json; with --only
sweep_job-NAME-only-PART.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report_f_job
from extrapolation import cost_of_a_point, drift, extrapolate

from cxrjax import build, cli, log
from cxrjax.bench import job as jobs
from cxrjax.data import dataset
from cxrjax.errors import UserError
from cxrjax.models import registry
from cxrjax.runtime import describe
from cxrjax.sweep import grid, search
from cxrjax.sweep.trials import Trials

HERE = Path(__file__).resolve().parent
_HEAD_EPOCHS = 10  # of a head on stored features: they take a fraction of a second each
SWEEPS = HERE.parent / "configs" / "sweeps"


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    arguments, rest = _parser().parse_known_args(argv)
    if arguments.shards < 1:
        raise UserError(f"--shards is {arguments.shards}; give 1 or more.")
    if arguments.keras_epochs < 2:
        raise UserError("--keras-epochs must be 2 or more: the first one is not like the others.")
    arguments.cost_epochs = _numbers(arguments.cost_epochs, "--cost-epochs", 1)
    arguments.keras_points = _numbers(arguments.keras_points, "--keras-points", 0)
    overrides, values = cli.parse_settings(rest, ("config", "grid"))
    overrides |= {"train.epochs": str(arguments.epochs)} if arguments.epochs else {}
    overrides |= {"cache.views": str(arguments.views)} if arguments.views else {}
    with tempfile.TemporaryDirectory() as root:
        overrides["data.cache"] = os.path.join(root, "cache")
        job = Job(arguments, overrides, values, Path(root))
        out = arguments.out or report_f_job.results(f"sweep_job-{job.name}", arguments.only)
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = report_f_job.unfinished(out)
        result = job.run(lambda part: log.write_json(unfinished, part))
    unfinished.replace(out)
    parts = ("ratio", "ratio_to_stored", "point_more")
    told = {name: result[name] for name in parts if name in result}
    print(json.dumps(told or result, indent=2))
    return 0


def _numbers(text: str, option: str, least: int) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise UserError(
            f"{option} is {text!r}; give whole numbers from {least} on, with commas between them."
        )
    return [int(part) for part in parts]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in SWEEPS.glob("*.py"))
    parser.add_argument("--sweep", choices=names, default="resnet2_head")
    parser.add_argument("--epochs", type=int, default=0, help="of a trial at most; 0: as the file")
    parser.add_argument("--views", type=int, default=0, help="ours stores so many views an image")
    parser.add_argument("--keras-points", default="", help="positions; default: one of each shape")
    parser.add_argument("--keras-epochs", type=int, default=3, help="of a measured point")
    parser.add_argument(
        "--keras-augment", choices=("pipeline", "model"), default="pipeline", help="where"
    )
    parser.add_argument(
        "--cost-epochs", default="1,4", help="runs for the cost of a point more; empty: none"
    )
    parser.add_argument("--ours", type=Path, help="folder of a finished sweep, not run anew")
    parser.add_argument("--shards", type=int, default=1, help="commands of ours at a time")
    parser.add_argument("--whole", action="store_true", help="then time the sweep's end as well")
    parser.add_argument("--python", default=sys.executable, help="interpreter with Keras")
    parser.add_argument("--only", choices=("ours", "keras", "cost"), help="one part")
    parser.add_argument("--out", type=Path, help="default: results/sweep_job-NAME[-only-PART].json")
    return parser


class Job:
    """One comparison: its data, its points and the commands that are timed."""

    def __init__(
        self,
        options: argparse.Namespace,
        overrides: Mapping[str, str],
        values: Mapping[str, str],
        root: Path,
    ):
        """Args:
        options: of the command line.
        overrides, values: of the sweep's configuration and grid.
        root: folder for everything that is written.
        """
        self.options, self.overrides, self.values = options, dict(overrides), dict(values)
        self.root, self.file = root, SWEEPS / f"{options.sweep}.py"
        self.name = options.sweep + (f"-{options.views}-views" if options.views else "")
        self.sweep = grid.load(str(self.file), overrides, values)
        self.weights = build.check(self.sweep.config)
        data = dataset.prepare(self.sweep.config)
        self.n = {split: len(rows) for split, rows in data.splits.items()}
        report_f_job.export(data, root / "data")
        self.points = [
            {"values": point.values, "job": peer_job(point.config, data)}
            for point in self.sweep.points
        ]
        self.heads = self.sweep.config.model.trainable_layers == 0
        self._kept = set(self._cache.iterdir())  # decoded images; nothing else may lie there

    @property
    def _cache(self) -> Path:
        return Path(self.overrides["data.cache"])

    def run(self, save: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Times what the options ask for; returns the result as strict JSON.

        Args:
          save: called with the result so far whenever a part is there.
        """
        only, result = self.options.only, self._told()
        chosen = self._chosen()
        if only in (None, "keras"):
            result["keras"] = self.keras(chosen, self.options.keras_epochs)
            save(result)
        if only in (None, "ours"):
            result["ours"] = self.ours()
            save(result)
        if only is None:
            again = self.keras(chosen[:1], self.options.keras_epochs)
            result["keras"]["measured"] += again["measured"]
            result["keras"]["drift"] = drift(result["keras"]["measured"])
            result["ratio"] = self._compare(result["ours"], result["keras"])
            save(result)
            if self.options.views and self.heads:
                stored = self.keras(chosen, max(_HEAD_EPOCHS, self.options.keras_epochs), "stored")
                result["keras_stored"] = stored
                result["ratio_to_stored"] = self._compare(result["ours"], stored)
                save(result)
        epochs = self.options.cost_epochs
        asked = only == "cost" or (only is None and self.heads)
        if asked and epochs and len(self.points) > 1:
            result["point_more"] = self.point_more(epochs)
        save(result)
        return result

    def _told(self) -> dict[str, Any]:
        return {
            "sweep": self.options.sweep,
            "grid": self.sweep.grid,
            "config": {k: v for k, v in self.overrides.items() if k != "data.cache"},
            "points": len(self.points),
            "n": self.n,
            "weights": self.weights and self.weights.name,
            "threads": jobs.threads(),
            "device": str(describe()["device"]),
        }

    def _chosen(self) -> list[int]:
        """Positions of the points that Keras runs."""
        if chosen := self.options.keras_points:
            if max(chosen) >= len(self.points):
                raise UserError(
                    f"--keras-points holds {max(chosen)}, and the grid has {len(self.points)} "
                    f"points; give positions from 0 to {len(self.points) - 1}."
                )
            return chosen
        by_shape: dict[str, int] = {}
        for i, point in enumerate(self.points):
            by_shape.setdefault(shape(point["job"]), i)
        return list(by_shape.values())

    def ours(self) -> dict[str, Any]:
        """Seconds of the search as a command, the epochs of each trial, maybe the end's seconds."""
        if self.options.ours:
            return recorded(self.sweep.points, self.options.ours, self.options.shards)
        folder = self.root / "ours"
        seconds = self._sweep(folder, {"sweep.finish": "none"}, shards=self.options.shards)
        told: dict[str, Any] = {"search_seconds": seconds, "shards": self.options.shards}
        told["trials"] = trials_of(self.sweep.points, folder)
        if self.options.whole:
            told["finish_seconds"] = self._sweep(folder, {}, cold=False)
            told["seconds"] = seconds + told["finish_seconds"]
        return told

    def point_more(self, epochs: Sequence[int]) -> dict[str, Any]:
        """The sweep of the middle point alone and of all, for so many epochs each."""
        alone = self.sweep.points[len(self.sweep.points) // 2].values
        runs = {}
        for n in sorted(epochs):
            fixed = {"train.epochs": str(n), "train.patience": "0", "sweep.finish": "none"}
            one = self._sweep(self.root / f"one{n}", fixed, values=alone)
            every = self._sweep(self.root / f"all{n}", fixed)
            runs[n] = {"one": one, "all": every}
        count = len(self.points) // self.sweep.config.sweep.seeds  # one point runs all its seeds
        return {"alone": alone} | cost_of_a_point(runs, count)

    def _sweep(
        self,
        folder: Path,
        changes: Mapping[str, str],
        *,
        values: Mapping[str, Any] | None = None,
        cold: bool = True,
        shards: int = 1,
    ) -> float:
        """Seconds of the command `python -m cxrjax.sweep`, from empty caches if cold.

        Args:
          shards: so many such commands, all at the same time, each with its part of the cores.
        """
        for path in set(self._cache.iterdir()) - self._kept if cold else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        overrides, of_grid = self.overrides | dict(changes), self.values | dict(values or {})
        fields = [f"--config.{name}={value}" for name, value in overrides.items()]
        fields += [f"--grid.{name}={value}" for name, value in of_grid.items()]
        command = [sys.executable, "-m", "cxrjax.sweep", "--config", str(self.file)]
        command += ["--workdir", str(folder), *fields]
        log.say(f"running ours: {folder.name} {dict(changes)}")
        with concurrent.futures.ThreadPoolExecutor(shards) as pool:
            running = [
                pool.submit(report_f_job.watched, part, lambda line, seconds: None)
                for part in sharded(command, shards)
            ]
            done = [part.result() for part in running]
        for lines, seconds in done:
            log.say("".join(lines[-3:]).rstrip() + f"\n  {seconds:.1f} s")
        return max(seconds for _, seconds in done)

    def keras(self, positions: Sequence[int], epochs: int, how: str = "loop") -> dict[str, Any]:
        """Runs some points in one process; returns its lines and its seconds beside the points.

        Args:
          how: "loop", or "stored": heads on stored features.
        """
        (self.root / "points.json").write_text(json.dumps(self.points))
        command = [
            *(self.options.python, str(HERE / "peers" / "keras_sweep.py")),
            *("--data", str(self.root / "data"), "--jobs", str(self.root / "points.json")),
            *(["--weights", str(self.weights)] if self.weights else []),
            *("--points", ",".join(map(str, positions)), "--epochs", str(epochs)),
            *("--augment", self.options.keras_augment),
            *(["--views", str(self.options.views)] if how == "stored" else []),
        ]
        log.say(f"running keras, {how}: points {positions}, {epochs} epochs each")
        lines, seconds = report_f_job.watched(command, lambda line, seconds: None)
        measured = [json.loads(line) for line in lines if line.startswith('{"point"')]
        for line in measured:
            line["shape"] = shape(self.points[line["point"]]["job"])
            log.say(f"  {line['values']}: {line['seconds']:.1f} s, epochs {line['epoch_seconds']}")
        return {
            "measured": measured,
            "start_seconds": seconds - sum(line["seconds"] for line in measured),
            "augment": self.options.keras_augment,
        }

    def _compare(self, ours: dict[str, Any], keras: dict[str, Any]) -> dict[str, Any]:
        """Adds Keras' extrapolated seconds; returns its total and the ratio to ours."""
        epochs = [trial["epochs"] for trial in ours["trials"]]
        shapes = [shape(point["job"]) for point in self.points]
        told = keras["extrapolated"] = extrapolate(keras["measured"], shapes, epochs)
        total, least = (keras["start_seconds"] + sum(told[n]) for n in ("points", "fastest"))
        return {
            "ours_seconds": ours["search_seconds"],  # measured
            "keras_seconds": total,  # extrapolated
            "ratio": total / ours["search_seconds"],
            "ratio_of_fastest_epochs": least / ours["search_seconds"],
            "measured": [line["point"] for line in keras["measured"]],
            "epochs": sum(epochs),
        }


def peer_job(config: Any, data: dataset.Dataset) -> dict[str, Any]:
    """A point as keras_sweep.py is told it.

    Raises:
      UserError: for an augmentation or an option of the training that it does not have.
    """
    jobs.check_peers(config)
    for field in ("border", "gamma"):
        if config.augment[field]:
            raise UserError(
                f"config field augment.{field} is {config.augment[field]}, and the loop of Keras "
                "shifts, turns and zooms only; leave it at 0."
            )
    spec = registry.spec(config.model.name)
    by_dataset = config.input.normalize == "dataset"
    return jobs.describe(config, "synthetic") | {
        "config": "",
        "mean": [data.mean] * spec.channels if by_dataset else list(spec.mean),
        "std": [data.std] * spec.channels if by_dataset else list(spec.std),
        "augment": config.augment.to_dict(),
        "patience": config.train.patience,
        "class_weights": config.train.class_weights,
    }


def shape(job: Mapping[str, Any]) -> str:
    """What decides the seconds of an epoch: network, its width, and the batch size."""
    width = f" of {job['filters']}" if job["network"] == "baseline" else ""
    return f"{job['network']}{width}, batch {job['batch_size']}"


def recorded(points: Sequence[grid.Point], folder: Path, shards: int) -> dict[str, Any]:
    """Seconds and trials of a search that was run before, as so many commands at a time.

    The seconds are those of the trials of the longest command: neither its start nor what was lost
    when it was stopped is in them.
    """
    trials = trials_of(points, folder)
    seconds = {point.key: t["seconds"] for point, t in zip(points, trials, strict=True)}
    parts = [search.shard(points, i, shards) for i in range(shards)]
    sums = [sum(seconds[point.key] for point in part) for part in parts]
    return {"search_seconds": max(sums), "shard_seconds": sums, "trials": trials}


def sharded(command: Sequence[str], shards: int) -> list[list[str]]:
    """The commands of a sweep's parts, each bound to cores of its own.

    Raises:
      UserError: where there are fewer cores than parts.
    """
    if shards == 1:
        return [list(command)]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < shards:
        raise UserError(f"--shards is {shards} and {len(cores)} cores are at hand; give no more.")
    parts = [",".join(map(str, cores[i::shards])) for i in range(shards)]
    return [
        ["taskset", "-c", part, *command, "--shard", f"{i}/{shards}"]
        for i, part in enumerate(parts)
    ]


def trials_of(points: Sequence[grid.Point], folder: Path) -> list[dict[str, Any]]:
    """What a sweep's ledger says of each point.

    Raises:
      UserError: where a trial is missing.
    """
    known = Trials(folder).records()
    if missing := [point.values for point in points if point.key not in known]:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(points)} trials, among them {missing[0]}; "
            "finish that sweep first, or name what it has by --grid.FIELD=VALUES."
        )
    kept = ("values", "seed", "status", "epochs", "best_epoch", "seconds", "how", "validation")
    return [{k: known[point.key][k] for k in kept} for point in points]


if __name__ == "__main__":
    sys.exit(main())
