"""After the search: the ranking, how far the winner flatters, and what is made of it.

Report B takes the winner by validation accuracy, trains it on train and validation images for the
winner's number of epochs, unfreezes and fine-tunes for as many again, and then reads the test
split. Nothing is held out while fine-tuning there; beside it, *held_out* keeps the validation split
for choosing the epoch in both phases. Each protocol reads the test split once, at its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import log
from cxrjax.config import Config
from cxrjax.data.dataset import Dataset
from cxrjax.errors import MALFORMED, UserError, writing
from cxrjax.loop import train_and_evaluate
from cxrjax.run_folder import OtherConfiguration
from cxrjax.sweep import figures, protocols, selection
from cxrjax.sweep.grid import Point, Sweep
from cxrjax.sweep.search import DataSets
from cxrjax.sweep.table import interval, rows
from cxrjax.sweep.trials import Trials

_REMEDY = "choose another --workdir"
_LISTED = 10  # points in best.json


def run(sweep: Sweep, workdir: Path, ledger: Trials, data_of: DataSets) -> dict[str, Any]:
    """Writes best.json and the figures, prints the table, and runs the protocols asked for.

    Returns:
      the content of best.json.
    Raises:
      UserError: when no trial finished.
    """
    records = sweep.own(ledger.records())
    print("\n".join(rows(records)), flush=True)
    ranking = selection.ranking(records)
    if not ranking:
        raise UserError(
            f"no trial of the sweep in {workdir} finished; {ledger.file} says why: lower the "
            "learning rates or the batch sizes of the grid."
        )
    with writing(workdir, _REMEDY):
        figures.draw(records, ledger.arrays, sweep.grid, workdir / "figures")
    winner = _point(sweep, ranking[0])
    data = data_of(winner.config)
    best = {
        "winner": ranking[0] | {"config": winner.fields},
        "trials": _counts(records),
        "ranking": ranking[:_LISTED],
        "optimism": _optimism(ranking, ledger, data, winner.config),
        "protocols": _kept(workdir, ranking[0]),
    }
    _write(workdir, best)
    print(_told(best), flush=True)
    for name in protocols.names(sweep.config.sweep.finish):
        best["protocols"][name] = _protocol(name, winner.config, ranking[0], sweep, workdir)
        _write(workdir, best)
        print(_protocol_line(name, best["protocols"][name]), flush=True)
    return best


def place(workdir: Path, winner: Mapping[str, Any]) -> Path:
    """Where the runs of a winner lie: with more trials another may win, or stop elsewhere."""
    return workdir / "winner" / f"{winner['keys'][0]}-{winner['best_epoch']}"


def _protocol(
    name: str, config: Config, winner: Mapping[str, Any], sweep: Sweep, workdir: Path
) -> dict[str, Any]:
    runs, before, home = [], "", place(workdir, winner)
    for changes in protocols.phases(name, config, winner["best_epoch"], sweep.config.sweep):
        own, folder = protocols.settings(name, config, changes), home / changes["folder"]
        if before:
            own.train.start_from = before
        log.say(f"{name}: {folder}")
        try:
            result, _ = train_and_evaluate(own, folder)
        except OtherConfiguration as error:  # another workdir would repeat every trial
            raise UserError(
                f"{error.told}; to make the winner anew, and only it, move {home} away and run "
                "the same command again."
            ) from error
        before = str(folder.absolute())
        told = {split: result[split] for split in ("validation", "test") if split in result}
        runs.append({"folder": str(folder), "epochs": result["epochs"], **told})
    return {"runs": runs, "test": runs[-1]["test"], "test_looks": result["test_looks"]}


def _kept(workdir: Path, winner: Mapping[str, Any]) -> dict[str, Any]:
    """Protocols of the best.json that is there, if its winner is the same: each was a look at the
    test split, and stays until its place is taken."""
    try:
        best = json.loads((workdir / "best.json").read_text(encoding="utf-8"))
        same = place(workdir, best["winner"]) == place(workdir, winner)
        return dict(best["protocols"]) if same else {}
    except (OSError, *MALFORMED):
        return {}


def _point(sweep: Sweep, best: Mapping[str, Any]) -> Point:
    """The trial of the best point with the lowest seed."""
    return next(point for point in sweep.points if point.key in best["keys"])


def _counts(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    statuses = [record["status"] for record in records]
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def _optimism(
    ranking: Sequence[Mapping[str, Any]], ledger: Trials, data: Dataset, config: Config
) -> dict[str, Any]:
    """See `selection.optimism`; of points, each image's hits averaged over the seeds."""
    positions = data.splits["validation"]
    labels = np.asarray(data.store.labels[positions])
    hits = []
    whole = [entry for entry in ranking if not entry["lost"]] or ranking
    for entry in whole:  # in the order in which they would win
        chosen = [ledger.arrays(key)["probabilities"].argmax(axis=1) for key in entry["keys"]]
        hits.append(np.mean([of_seed == labels for of_seed in chosen], axis=0))
    return selection.optimism(
        np.asarray(hits), data.groups[positions], config.eval.resamples, config.seed
    )


def _told(best: Mapping[str, Any]) -> str:
    winner, found = best["winner"], best["optimism"]
    flatters, corrected = found["optimism"], found["corrected"]
    values = ", ".join(f"{field}={value}" for field, value in winner["values"].items())
    return (
        f"winner     {values or 'the only point'}: validation accuracy "
        f"{_interval(winner['accuracy'])}, best epoch {winner['best_epoch']}; "
        f"{found['not_distinguishable']} other points are not distinguishable from it\n"
    ) + (
        "optimism   unknown, all validation images are near-duplicates"
        if corrected is None
        else f"optimism   {_interval(flatters)}: picked as the best of {found['trials']}, its "
        f"accuracy is worth {corrected:.3f}"
    )


def _protocol_line(name: str, done: Mapping[str, Any]) -> str:
    accuracy = done["test"]["accuracy"]
    return (
        f"{name:10} test accuracy {_interval(accuracy)}; "
        f"test split read {done['test_looks']} time(s) so far"
    )


def _interval(metric: Mapping[str, Any]) -> str:
    return f"{interval(metric)} n={metric['n']}"


def _write(workdir: Path, best: Mapping[str, Any]) -> None:
    with writing(workdir, _REMEDY):
        log.write_json(workdir / "best.json", dict(best))
