"""Audits of whole runs: a network that reads source markers is told from one that reads lungs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from cxrjax import config as config_lib
from cxrjax import main, trained
from cxrjax.audit import __main__ as command
from cxrjax.data import dataset, ledger
from cxrjax.data.phantom import PhantomSource

ROOT = Path(__file__).resolve().parents[1]


def arguments(workdir, **changes):
    settings = {
        "data.phantom.count": 400,
        "data.image_size": 32,
        "model.filters": 8,
        "model.head.dropout": 0.0,
        "augment.shift": 0.0,
        "augment.rotation": 0.0,
        "augment.zoom": 0.0,
        "train.epochs": 12,
        "train.learning_rate": 3e-3,
        "eval.resamples": 200,
    } | {name.replace("__", "."): value for name, value in changes.items()}
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(workdir), *fields]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A finished run on phantoms that all bear a source marker."""
    workdir = tmp_path_factory.mktemp("runs") / "marked"
    cache = tmp_path_factory.getbasetemp() / "cache"
    assert main.main(arguments(workdir, data__phantom__marker=1.0, data__cache=cache)) == 0
    return workdir


def test_a_run_on_marked_films_is_confounded(marked):
    result = json.loads((marked / "result.json").read_text())
    audit = result["audit"]
    score = audit["shortcuts"]["score"]
    assert score["low"] > 0.5 and score["n"] == 80
    assert audit["shortcuts"]["lungs"] == "the data set"
    assert result["verdict"].endswith("CONFOUNDED")
    assert "leaks 0; shortcut score " in result["verdict"]


def test_the_command_audits_a_run(marked, capsys):
    before = json.loads((marked / "result.json").read_text())
    cache = Path(trained.load(marked).config.data.cache)
    ledger.record(cache, before["data_fingerprint"], "another split", "a run")
    assert command.main(["--workdir", str(marked), "--strict"]) == 1
    told = capsys.readouterr().out
    assert "borders alone tell the class" in told and told.count("CONFOUNDED") == 1
    looks = ledger.Looks(before["test_looks"] + 1, 1)
    assert str(looks) in told and "; 1 time(s) in other splits" in str(looks)
    report = json.loads((marked / "audit/audit.json").read_text())
    views = report["shortcuts"]["views"]
    kinds = [finding["kind"] for finding in report["findings"]]
    assert "borders" in kinds and kinds.count("shortcuts") == 1
    assert views["borders_only"]["auroc"]["low"] > 0.7
    assert views["without_lungs"]["auroc"]["value"] > views["lungs_only"]["auroc"]["value"]
    for metric in views["centre_only"].values():
        assert metric["low"] <= metric["value"] <= metric["high"] and metric["n"] == 80
    assert (marked / "audit/figures/shortcuts.png").read_bytes().startswith(b"\x89PNG")
    after = json.loads((marked / "result.json").read_text())
    assert after["audit"]["shortcuts"] == report["shortcuts"]
    assert after["test"] == before["test"]
    assert dataset.test_looks(dataset.prepare(trained.load(marked).config)) == looks
    assert (report["test_looks"], report["test_looks_elsewhere"]) == looks
    assert after["test_looks"] == looks.here


def test_other_data_than_those_of_the_run_are_refused(marked, capsys):
    arguments = ["--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(marked)]
    assert command.main(arguments) == 2
    assert "was trained with data.image_size 32" in capsys.readouterr().err
    before = (marked / "result.json").read_bytes()
    for field, value in (("image_size", "64"), ("frame", "lungs_only")):
        assert command.main(["--workdir", str(marked), f"--config.data.{field}={value}"]) == 2
        assert f"was trained with data.{field} " in capsys.readouterr().err
    assert (marked / "result.json").read_bytes() == before


def test_leaving_one_source_out(tmp_path, capsys):
    """A source of two classes only is the whole test split; figures and result stand it."""
    source, rows = PhantomSource(96, 4), []
    for i, record in enumerate(source.records):
        kind = record.name.split("/")[0]
        path = tmp_path / "films" / kind / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i, 32)).save(path)
        rows.append([f"{kind}/{i}.png", "north" if record.label < 2 and i % 3 else "south"])
    with open(tmp_path / "films/metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "source"], *rows])
    options = {
        "data__name": "folder",
        "data__dir": tmp_path / "films",
        "data__hold_out_source": "north",
        "train__epochs": 1,
    }
    assert main.main(arguments(tmp_path / "run", **options)) == 0
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["n"]["test"] == sum(row[1] == "north" for row in rows)
    recall = result["test"]["per_class"]["perihilar"]["recall"]
    assert recall["value"] is None and recall["n"] == 0
    data = dataset.prepare(config_lib.load(str(tmp_path / "run/config.json")))
    assert {data.store.sources[i] for i in data.splits["test"]} == {"north"}
    assert {data.store.sources[i] for i in data.splits["train"]} == {"south"}
