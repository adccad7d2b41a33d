"""What is made of a sweep's winner, without training: what best.json keeps, what is refused."""

import json

import numpy as np
import pytest
from sweep_records import entry

from cxrjax import config
from cxrjax.errors import UserError
from cxrjax.run_folder import RunFolder
from cxrjax.sweep import finish, grid, search
from cxrjax.sweep.trials import Trials

TINY = {
    "data.phantom.count": 96,
    "data.image_size": 32,
    "data.test_fraction": 0.25,
    "data.validation_fraction": 0.25,
    "model.filters": 4,
    "model.trainable_layers": 0,
    "train.epochs": 3,
    "train.patience": 0,
    "eval.resamples": 100,
}


def sweep_of(changes=(), values=(0.1, 0.01)):
    base = config.default()
    for field, value in (TINY | dict(changes)).items():
        config.assign(base, field, value, "test")
    return grid.expand(base, {"train.learning_rate": values}, "test")


def stands_in(settings, folder):
    """Claims and keeps the folder as a run does, and trains nothing."""
    run = RunFolder(folder, settings)
    run.keep_config(settings)
    (folder / "checkpoints/1").mkdir(parents=True, exist_ok=True)
    run.close()
    told = {"accuracy": entry(0.7, n=24)}
    tested = {"test": told} if settings.eval.test else {}
    return {"validation": told, "epochs": 2, "test_looks": 1} | tested, False


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A sweep whose trials are over."""
    monkeypatch.setattr(finish, "train_and_evaluate", stands_in)
    monkeypatch.setattr(finish.figures, "draw", lambda *_: None)
    sweep, ledger = sweep_of(), Trials(tmp_path / "sweep")
    data = search.DataSets()(sweep.config)
    labels = data.store.labels[data.splits["validation"]]
    for number, point in enumerate(sweep.points):
        told = np.random.default_rng(number).random((len(labels), 4), np.float32)
        hits = float((told.argmax(axis=1) == labels).mean())
        record = {"key": point.key, "values": point.values, "seed": point.seed}
        record |= {"status": "finished", "epochs": 3, "best_epoch": 2, "seconds": 1.0}
        record["validation"] = {"loss": 1.0, "accuracy": entry(hits, n=len(labels))}
        ledger.append(record, {"history": np.zeros((3, 4)), "probabilities": told})
    return ledger.folder


def run(folder, **changes):
    """Finishes the sweep with changed fields; returns the protocols in best.json."""
    named = {field.replace("__", "."): value for field, value in changes.items()}
    finish.run(sweep_of(named), folder, Trials(folder), search.DataSets())
    return kept(folder)


def kept(folder):
    return best_of(folder)["protocols"]


def best_of(folder):
    return json.loads((folder / "best.json").read_text())


def test_what_was_read_of_the_test_split_stays_in_best_json(folder, monkeypatch):
    first = run(folder)
    assert list(first) == ["report", "held_out"]
    for finish_by in ("none", "report"):
        assert run(folder, sweep__finish=finish_by) == first

    def interrupted(settings, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finish, "train_and_evaluate", interrupted)
        run(folder)
    assert kept(folder) == first
    with pytest.raises(UserError, match="another configuration"):
        run(folder, eval__coverage=0.8)
    assert kept(folder) == first


@pytest.mark.parametrize("told", ["{", "[]", '{"winner": null}', "another winner", "no protocols"])
def test_protocols_of_another_winner_or_of_nothing_are_not_kept(folder, told):
    run(folder)
    best = best_of(folder)
    if told == "another winner":
        best["winner"]["best_epoch"] += 1
        told = json.dumps(best)
    elif told == "no protocols":
        told = json.dumps(best | {"protocols": "none"})
    (folder / "best.json").write_text(told)
    assert run(folder, sweep__finish="none") == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eval__coverage": 0.8}, "eval.coverage was 0.9, now 0.8"),
        ({"sweep__fine_tune_learning_rate": 1e-5}, "train.learning_rate was 0.01, now 1e-05"),
    ],
)
def test_another_end_of_the_winner_asks_for_room_and_for_no_other_sweep(folder, change, words):
    first = run(folder)
    place = finish.place(folder, best_of(folder)["winner"])
    with pytest.raises(UserError) as told:
        run(folder, **change)
    assert words in str(told.value)
    assert f"move {place} away" in str(told.value) and "--workdir" not in str(told.value)
    place.rename(folder / "before")
    assert list(run(folder, **change)) == list(first)


def test_a_finished_sweep_may_be_moved(folder):
    first, moved = run(folder), folder.with_name("moved")
    folder.rename(moved)
    assert list(run(moved)) == list(first)


@pytest.mark.parametrize(
    "fields",
    [
        {"sweep.fine_tune_layers": 9999},
        {
            "sweep.fine_tune_layers": 0,
            "model.trainable_layers": 4,
            "train.backbone_rate": 0.1,
        },
    ],
)
@pytest.mark.parametrize("protocol", ["both", "held_out"])
def test_what_the_winner_cannot_become_is_told_before_the_search(
    tmp_path, monkeypatch, fields, protocol
):
    monkeypatch.setattr(search.dataset, "prepare", lambda _: pytest.fail("images were prepared"))
    sweep = sweep_of(fields | {"sweep.finish": protocol})
    with pytest.raises(UserError, match=r"sweep\.fine_tune_layers"):
        search.check(sweep, search.DataSets(), Trials(tmp_path))
    with pytest.raises(pytest.fail.Exception):  # nothing is made of it, so nothing is wrong
        search.check(
            sweep_of(fields | {"sweep.finish": "none"}), search.DataSets(), Trials(tmp_path)
        )
