"""The test split is read last, or later: `eval.test`."""

import json

from protocol_runs import arguments, looks, result_of, rows

from cxrjax import loop, main


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
