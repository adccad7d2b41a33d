"""The test split is read last, or later: `eval.test`."""

import json

import numpy as np
import pytest
from protocol_runs import (
    arguments,
    finished,
    looks,
    result_of,
    rows,
    tiny,
)

from cxrjax import (
    compare,
    decide,
    loop,
    main,
    predict,
    trained,
)
from cxrjax.audit import __main__ as audit
from cxrjax.data import dataset
from cxrjax.explain import __main__ as explain

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A finished run whose head is trained on a frozen random backbone."""
    return finished(tiny(eval__test=False), tmp_path_factory, "head")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on training and validation images."""
    return finished(tiny(train__on_validation=True), tmp_path_factory, "whole")


def test_the_test_split_is_left_alone(tmp_path, capsys, monkeypatch):
    read = []
    predict_split = loop.Training.predict

    def watched(self, split, *weights):
        read.append(split)
        return predict_split(self, split, *weights)

    monkeypatch.setattr(loop.Training, "predict", watched)
    before = looks()
    workdir = tmp_path / "run"
    assert main.main(arguments(workdir, eval__test=False, eval__shortcuts=True)) == 0
    assert looks() == before and set(read) == {"validation"}
    result = result_of(workdir)
    assert "test" not in result and "shortcuts" not in result["audit"]
    assert result["verdict"].endswith("test split not read (eval.test is False): NOT TESTED")
    assert rows(workdir) == {"validation"}
    assert not (workdir / "figures/test_images.png").exists()
    fitted = json.loads((workdir / "calibration.json").read_text())
    assert fitted["reported_on"] is None and "before" not in fitted
    assert fitted["temperature"]["value"] > 0
    told = capsys.readouterr().out
    assert not [line for line in told.splitlines() if line.startswith("test  ")]
    assert "not by this run" in told


def test_commands_refuse_test_figures_of_a_run_that_was_not_tested(head, whole, tmp_path, capsys):
    before = looks()
    out = ["--out", str(tmp_path / "out")]
    run = ["--workdir", str(head)]
    for command, line in (
        (compare, [str(head), str(whole)]),
        (decide, run),
        (explain, [*run, *out]),
        (audit, [*run, *out]),
    ):
        assert command.main(line) == 2
        told = capsys.readouterr().err
        assert "eval.test is False" in told and f"--workdir {head} --config.eval.test=True" in told
    assert looks() == before
    assert explain.main([*run, *out, "--split", "validation", "--panels", "1"]) == 0
    assert looks() == before
    data = dataset.prepare(trained.load(head).config)
    from PIL import Image

    Image.fromarray(np.asarray(data.store.images[0])).save(tmp_path / "film.png")
    assert predict.main([*run, str(tmp_path / "film.png")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["probabilities"]


def test_a_run_is_tested_later(tmp_path, capsys):
    late, early = tmp_path / "late", tmp_path / "early"
    for workdir, tested in ((early, True), (late, False)):
        assert main.main(arguments(workdir, eval__test=tested)) == 0
    before, history = looks(), (late / "metrics.jsonl").read_bytes()
    assert main.main(["--workdir", str(late), "--config.eval.test=True"]) == 0
    assert looks().count("\n") == before.count("\n") + 1
    assert (late / "metrics.jsonl").read_bytes() == history
    assert (late / "predictions.csv").read_bytes() == (early / "predictions.csv").read_bytes()
    assert result_of(late)["test"] == result_of(early)["test"]
    capsys.readouterr()
    assert main.main(["--workdir", str(late)]) == 0
    assert "is finished" in capsys.readouterr().err
    assert main.main(["--workdir", str(late), "--config.eval.test=False"]) == 2
    assert "eval.test was True, now False" in capsys.readouterr().err
    # By the later run too: what the earlier one wrote of it is not what holds now.
    assert main.main(["--workdir", str(early)]) == 0
    told = f"test split read {result_of(late)['test_looks']} time(s) so far"
    assert told in capsys.readouterr().out
