"""Runs and data that were moved are found again, and others in their place are told."""

import json
import shutil

import pytest
from finished_runs import change
from protocol_runs import ALL, looks, result_of, tiny

from cxrjax import loop, main, trained
from cxrjax.audit import __main__ as audit
from cxrjax.data import __main__ as data
from cxrjax.errors import UserError
from cxrjax.explain import __main__ as explain


def films(folder, seed=0):
    """A folder of PNG files."""
    asked = ["--count", "64", "--size", "40", "--seed", str(seed)]
    assert data.main(["phantom", "--out", str(folder), *asked]) == 0
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with `films`, the run `head` on them, and `tuned` that began from it."""
    root = tmp_path_factory.mktemp("pair")
    fields = {"data__name": "folder", "data__dir": films(root / "films")}
    loop.train_and_evaluate(tiny(eval__test=False, **fields), root / "head")
    fields |= {"train__start_from": root / "head", "train__epochs": 1, **ALL}
    loop.train_and_evaluate(tiny(**fields), root / "tuned")
    return root


def test_two_runs_may_be_moved_and_another_of_the_same_name_is_told(pair, tmp_path):
    place = shutil.copytree(pair, tmp_path / "moved")
    fields = {"data__name": "folder", "data__dir": place / "films", "train__epochs": 1, **ALL}
    settings = tiny(train__start_from=place / "head", **fields)
    result, before = result_of(pair / "tuned"), looks()
    assert loop.train_and_evaluate(settings, place / "tuned") == (result, True)
    shutil.rmtree(place / "head")  # needed no more
    assert loop.train_and_evaluate(settings, place / "tuned") == (result, True)
    shutil.copytree(pair / "tuned", place / "head")
    with pytest.raises(UserError, match=r"begun from another run than the one in .*/head that"):
        loop.train_and_evaluate(settings, place / "tuned")
    assert looks() == before


def test_moved_data_are_named_by_the_environment(pair, tmp_path, monkeypatch, capsys):
    run, gone = shutil.copytree(pair / "head", tmp_path / "run"), str(tmp_path / "gone")
    settings = json.loads((run / "config.json").read_text())
    change(run / "config.json", data=settings["data"] | {"dir": gone})
    command = ["--workdir", str(run), "--out", str(tmp_path / "out"), "--split", "validation"]
    command += ["--panels", "1", "--faithfulness", "0", "--sanity", "0", "--agreement", "0"]
    assert explain.main(command) == 2
    assert f"{gone} does not exist" in capsys.readouterr().err
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path / "neither"))
    assert explain.main(command) == 2
    assert f"{gone} does not exist" in capsys.readouterr().err
    monkeypatch.setenv("CXRJAX_DATA", str(pair / "films"))
    assert explain.main(command) == 0
    told = f"{gone} does not exist: images are taken from CXRJAX_DATA ({pair / 'films'})"
    assert capsys.readouterr().err.count(told) == 1
    assert main.main(["--workdir", str(run), "--config.eval.test=True"]) == 0
    assert capsys.readouterr().err.count(told) == 1
    assert audit.main(["--workdir", str(run), "--out", str(tmp_path / "audit")]) == 0
    with pytest.raises(UserError, match="gone does not exist"):  # mistyped, other images are none
        loop.train_and_evaluate(tiny(data__name="folder", data__dir=gone), tmp_path / "new")


def test_other_data_are_told_with_what_mends_it(pair, tmp_path, monkeypatch):
    run, other = shutil.copytree(pair / "head", tmp_path / "run"), films(tmp_path / "other", 1)
    settings = json.loads((run / "config.json").read_text())
    for place in ("gone", "other"):
        monkeypatch.setenv("CXRJAX_DATA", str(other))
        change(run / "config.json", data=settings["data"] | {"dir": str(tmp_path / place)})
        with pytest.raises(UserError, match=f"found at {other}; name .* data.dir in its") as told:
            trained.load(run).data()
        assert "CXRJAX_DATA" not in str(told.value)
    change(run / "config.json", data=settings["data"])
    assert len(trained.load(run).data().store.labels) == 64
