"""The command `python -m cxrjax.sweep`: killed and resumed, refused, divided, finished."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cxrjax import config, loop, trained
from cxrjax.data import dataset
from cxrjax.data import ledger as looks
from cxrjax.sweep import __main__ as command
from cxrjax.sweep import finish, grid, job, protocols, search
from cxrjax.sweep.stream import Stream
from cxrjax.sweep.trials import Trials

BODY = """
from cxrjax import config as c
def get_config():
    s = c.default()
    s.data.phantom.count = 96
    s.data.image_size = 32
    s.data.test_fraction = s.data.validation_fraction = 0.25
    s.model.filters = 4
    s.model.trainable_layers = {layers}
    s.train.batch_size = 8
    s.train.epochs = 2
    s.eval.resamples = 100
    s.sweep.finish = "none"
    s.sweep.stack = "never"
    return s
def get_grid():
    return {{"train.learning_rate": (0.02, 0.01, 0.005)}}
"""


@pytest.fixture
def file(tmp_path):
    def write(layers=-1):
        path = tmp_path / "sweep.py"
        path.write_text(BODY.format(layers=layers))
        return str(path)

    return write


def lines(workdir):
    return [json.loads(line) for line in (workdir / "trials.jsonl").read_text().splitlines()]


def test_killed_after_a_trial_and_run_again_it_repeats_and_loses_none(file, tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ["--config", file(), "--workdir", str(workdir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cxrjax.sweep", *arguments],
        env=os.environ | {"CXRJAX_CACHE": os.environ["CXRJAX_CACHE"]},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ledger = workdir / "trials.jsonl"
    while process.poll() is None and not (ledger.exists() and ledger.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = ledger.read_bytes()
    count = before.count(b"\n")
    assert 1 <= count <= 3
    assert command.main(arguments) == 0
    assert ledger.read_bytes().startswith(before)
    records = lines(workdir)
    assert len({record["key"] for record in records}) == len(records) == 3
    assert f"{3 - count} trials in {3 - count} units" in capsys.readouterr().out
    told = json.loads((workdir / "best.json").read_text())
    assert told["trials"] == {"finished": 3}
    assert told["protocols"] == {}
    for name in ("accuracy", "curves"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 1000
    assert command.main(arguments) == 0  # nothing is left to run
    assert ledger.read_bytes().count(b"\n") == 3


def test_a_dry_run_writes_nothing(file, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert command.main(["--config", file(), "--workdir", str(workdir), "--dry-run"]) == 0
    assert not workdir.exists()
    told = capsys.readouterr().out
    assert "3 trials in 3 units, 1 compiled steps" in told
    (time,) = [line for line in told.splitlines() if line.startswith("time: ")]
    # Steps were measured; what is no step may take longer than all of them.
    assert "without compiling" in time and "winner" in time and "at most" not in time


def test_the_parts_of_an_array_of_jobs_make_the_whole(file, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["--config", file(), "--workdir", str(workdir), "--config.train.epochs=1"]
    assert command.main([*arguments, "--shard", "1/2"]) == 0
    assert len(lines(workdir)) == 1
    assert not (workdir / "best.json").exists()
    assert command.main([*arguments, "--shard", "0/2"]) == 0
    assert len(lines(workdir)) == 3
    assert command.main(arguments) == 0
    assert (workdir / "best.json").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "2/2"], "--shard"),
        (["--shard", "one"], "--shard"),
        (["--shard", "²/³"], "--shard is '²/³'; give I/N"),
        (["--shard", f"0/{'9' * 5000}"], "--shard is '0/99999"),
        (["--workers", "0"], "--workers"),
        (["--config.train.learning_rate=1"], "--grid.train.learning_rate"),
        (["--grid.data.split_seed=1,2"], "different validation images"),
        (["--grid.model.name=baseline,densnet121"], "did you mean densenet121"),
        (["--grid.model.trainable_layers=0,99"], "trainable_layers"),
        (["--grid.train.batch_size=0,8"], "train.batch_size"),
        (["--grid.train.epochs={[1]}"], "train.epochs must be a whole number"),
        (["--grid.train.accumulate=14,15"], "train.accumulate is 15"),
        (["--epochs=3"], "--epochs"),
    ],
)
def test_mistakes_are_one_sentence(file, tmp_path, capsys, arguments, words):
    workdir = tmp_path / "run"
    assert command.main(["--config", file(), "--workdir", str(workdir), *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert "Traceback" not in message
    assert not (workdir / "trials.jsonl").exists()


def test_every_network_is_looked_at_before_any_image(file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dataset, "prepare", lambda config: pytest.fail("images were prepared"))
    arguments = ["--config", file(), "--workdir", str(tmp_path / "run")]
    assert command.main([*arguments, "--grid.model.name=baseline,densnet121"]) == 2
    assert "densenet121" in capsys.readouterr().err


def test_a_ledger_of_other_data_is_refused(file, tmp_path, capsys):
    sweep = grid.load(file())
    ledger = Trials(tmp_path / "run")
    record = {"key": sweep.points[0].key, "values": {}, "seed": 0, "status": "diverged"}
    record |= {"epochs": 1, "seconds": 0.5}
    ledger.append(record | {"data": "of another split"}, {})
    assert command.main(["--config", file(), "--workdir", str(tmp_path / "run")]) == 2
    assert "other data" in capsys.readouterr().err


def test_trials_that_started_with_other_weights_are_not_taken_for_these(file, tmp_path, capsys):
    """The folder that train.start_from names may hold another run than when the sweep began."""
    first, workdir = tmp_path / "first", tmp_path / "run"
    (point, *_) = grid.load(file()).points
    loop.train_and_evaluate(point.config, first)
    arguments = ["--config", file(), "--workdir", str(workdir)]
    arguments += [f"--config.train.start_from={first}", "--grid.train.learning_rate=0.02,0.01"]
    assert command.main(arguments) == 0
    digest = trained.load(first).weights_digest
    assert [line["start"] for line in lines(workdir)] == [digest, digest]
    assert command.main(arguments) == 0  # the same
    shutil.rmtree(first)
    other = point.config.copy_and_resolve_references()
    other.train.learning_rate = 0.03
    loop.train_and_evaluate(other, first)
    assert command.main(arguments) == 2
    assert "other weights" in capsys.readouterr().err


def test_a_trunk_too_large_is_planned_and_left_to_the_unit(file, tmp_path, monkeypatch, capsys):
    def full(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Stream, "run_frozen", full)
    arguments = ["--config", file(8), "--workdir", str(tmp_path / "run")]
    assert command.main([*arguments, "--config.sweep.stack=always"]) == 0
    assert "too large" in capsys.readouterr().out
    assert [line["status"] for line in lines(tmp_path / "run")] == ["finished"] * 3


@pytest.mark.parametrize(
    "files",
    [
        {"sweep.json": '{"mine": 1}'},
        {"sweep.json": "["},
        {"best.json": "{}"},
        {"config.json": "{}", "result.json": "{}"},
    ],
)
def test_a_folder_of_something_else_is_refused_and_left_alone(file, tmp_path, capsys, files):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name, text in files.items():
        (workdir / name).write_text(text)
    assert command.main(["--config", file(), "--workdir", str(workdir)]) == 2
    told = capsys.readouterr().err
    assert f"{workdir} is not a sweep's folder and holds other files ({next(iter(files))})" in told
    assert {path.name: path.read_text() for path in workdir.iterdir()} == files


def test_a_folder_that_a_sweep_has_begun_is_its_own(file, tmp_path):
    search.refuse_foreign(tmp_path / "none")
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "sweep.json.123.tmp").write_text("{")  # another part is writing it
    (begun / ".nfs1").write_text("")
    search.refuse_foreign(begun)
    search.keep_settings(begun, grid.load(file()))
    (begun / "figures").mkdir()
    search.refuse_foreign(begun)
    (begun / "sweep.json").unlink()
    (begun / "trials.jsonl").write_text("")  # the ledger is checked as it is read
    search.refuse_foreign(begun)


def test_all_trials_diverged_is_told(file, tmp_path, capsys):
    changes = ["--grid.train.learning_rate=100.0,50.0", "--config.train.optimizer=sgd"]
    changes += ["--config.model.head.dense=4", "--config.model.head.l2=10.0"]
    workdir = tmp_path / "run"
    assert command.main(["--config", file(), "--workdir", str(workdir), *changes]) == 2
    assert [record["status"] for record in lines(workdir)] == ["diverged"] * 2
    assert "no trial" in capsys.readouterr().err


# ------------------------------------------------------------------ after the search


def test_phases_follow_the_report_and_hold_out_beside_it():
    settings = config.default()
    settings.model.trainable_layers = 0
    settings.sweep.fine_tune_learning_rate = 1e-5
    first, second = protocols.phases("report", settings, 29, settings.sweep)
    assert first["train.on_validation"] and second["train.on_validation"]
    assert first["train.epochs"] == second["train.epochs"] == 29
    assert (first["eval.test"], second["eval.test"]) == (False, True)
    assert second["model.trainable_layers"] == -1
    assert second["train.learning_rate"] == 1e-5
    first, second = protocols.phases("held_out", settings, 29, settings.sweep)
    assert "train.on_validation" not in first | second
    assert "train.epochs" not in first  # early stopping chooses it anew
    assert (first["eval.test"], second["eval.test"]) == (False, True)
    settings.train.epochs, settings.train.warmup = 30, 3.0  # a tenth stays a tenth
    phases = protocols.phases("report", settings, 10, settings.sweep)
    assert [phase["train.warmup"] for phase in phases] == [1.0, 1.0]
    first, second = protocols.phases("held_out", settings, 10, settings.sweep)
    assert "train.warmup" not in first and second["train.warmup"] == 1.0
    settings.model.trainable_layers = -1
    (only,) = protocols.phases("report", settings, 7, settings.sweep)
    assert only["eval.test"]


def test_the_winner_is_finished_with_one_look_for_each_protocol(file, tmp_path, monkeypatch):
    monkeypatch.setenv("CXRJAX_CACHE", str(tmp_path / "cache"))
    workdir = tmp_path / "run"
    sweep = grid.load(file(8), {"sweep.finish": "report", "sweep.fine_tune_layers": "8"})
    job.run(sweep, workdir)
    # Asked for more, what is there stays, and is not tested again.
    sweep = grid.load(file(8), {"sweep.finish": "both", "sweep.fine_tune_layers": "8"})
    job.run(sweep, workdir)
    workdir = workdir.rename(tmp_path / "moved")  # and finished again
    job.run(sweep, workdir)
    best = json.loads((workdir / "best.json").read_text())
    data = search.DataSets()(sweep.config)
    folder = data.store.root.parent
    assert looks.record(folder, data.fingerprint, data.digest, "this test").here == 3
    winner = max(lines(workdir), key=lambda r: r["validation"]["accuracy"]["value"])
    assert best["winner"]["accuracy"] == winner["validation"]["accuracy"]
    for name in ("report", "held_out"):
        done = best["protocols"][name]
        assert [("test" in run) for run in done["runs"]] == [False, True]
        assert done["test"]["accuracy"]["n"] == len(data.splits["test"])
    place = finish.place(workdir, best["winner"])
    report = json.loads((place / "report_first/result.json").read_text())
    assert report["trained_on"] == ["train", "validation"]
    assert report["epochs"] == best["winner"]["best_epoch"]
    again = json.loads((place / "held_out_first/result.json").read_text())
    found = again["validation"]["accuracy"]["value"]
    assert np.isclose(found, best["winner"]["accuracy"]["value"])
