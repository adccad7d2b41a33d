"""experiments/throughput.py and report_f_job.py: tables that go on, jobs that are kept."""

import json
import sys
from pathlib import Path

import pytest
from test_loop import ROOT

from cxrjax.bench import job as jobs
from cxrjax.bench import session
from cxrjax.bench.processes import ProcessFailed
from cxrjax.bench.summary import ratios, spread
from cxrjax.errors import UserError


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import throughput

    peak = {"flop_per_second": 1e9, "dtype": "float32", "platform": "cpu", "device": "cpu (cpu)"}
    monkeypatch.setattr(session, "measured_peak", lambda *_: peak | {"versions": {"jax": "1.2"}})
    return throughput


def test_the_table_goes_on_where_it_stopped(throughput, tmp_path, monkeypatch):
    asked, broken = [], {"densenet121"}
    peer = {"figures": {"images_per_second": spread([2.0]), "ratio": ratios([1.0], [2.0])}}

    def measure_row(settings, row, peers, _, peak):
        asked.append((settings.model.name, row, settings.model.trainable_layers, tuple(peers)))
        if settings.model.name in broken:
            raise ProcessFailed(row, "out of memory", "the end of a log")
        rate = spread([1.0, 2.0, 3.0])
        return {"images_per_second": rate, "peers": dict.fromkeys(peers, peer["figures"])}

    def run(*more):
        asked.clear()
        options = ["--models", "densenet121,baseline", "--modes", "full,last20,forward"]
        assert throughput.main([*options, "--out", str(tmp_path), *more]) == 0
        (path,) = tmp_path.glob("throughput-cpu-*-cores-*-jax-1.2.json")
        return json.loads(path.read_text())["cells"]

    monkeypatch.setattr(session, "measure_row", measure_row)
    cells = run()
    keras = ("keras-tensorflow",)
    ours = [("baseline", "synthetic", -1, keras), ("baseline", "forward", -1, keras)]
    dense = [("synthetic", -1), ("synthetic", 20), ("forward", -1)]
    failing = [("densenet121", *which, keras) for which in dense]
    assert asked == failing + ours
    failed = cells["densenet121/last20/224px/batch32/float32"]
    assert failed == {"error": "synthetic: out of memory", "log": "the end of a log"}
    assert "images_per_second" in cells["baseline/full/128px/batch32/float32"]
    assert list(tmp_path.glob("*.png"))

    run("--budget-seconds", "0")
    assert not asked
    broken.clear()
    run()
    assert asked == failing  # what was finished is kept
    cells = run("--peers", "keras-tensorflow,torch")
    assert len(asked) == 5 and all(peers == ("torch",) for *_, peers in asked)
    assert set(cells["baseline/full/128px/batch32/float32"]["peers"]) == {*keras, "torch"}
    cells = run("--again")
    assert asked == failing + ours
    broken.add("baseline")
    assert run("--again") == cells  # what fails replaces no figures
    assert asked == failing + ours
    broken.clear()
    peer["figures"] = {"error": "gone"}
    assert run("--again") == cells


def test_a_job_measured_before_the_other_failed_is_kept(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import report_f_job

    def timed(command):
        if "--workdir" not in command:
            raise UserError("keras is not there.")
        run = Path(command[command.index("--workdir") + 1])
        run.mkdir()
        own = {"test": {"accuracy": {"value": 0.5}}}
        own |= dict.fromkeys(("device", "versions", "parameters"), "x")
        (run / "result.json").write_text(json.dumps(own))
        return {"seconds": 3.0}

    monkeypatch.setattr(report_f_job, "timed", timed)
    out = tmp_path / "new" / "job.json"
    out.parent.mkdir()
    out.write_text("the whole of before")
    changes = {"data.name": "phantom", "data.classes": "", "data.phantom.count": 80}
    changes |= {"data.image_size": 32, "model.weights": "none"}
    fields = [f"--config.{name}={value}" for name, value in changes.items()]
    assert report_f_job.main(["--out", str(out), *fields]) == 2
    assert "keras is not there" in capsys.readouterr().err
    assert out.read_text() == "the whole of before"
    told = json.loads((out.parent / "job-unfinished.json").read_text())
    assert told["ours"]["seconds"] == 3 and told["ours"]["test_accuracy"] == 0.5
    assert report_f_job.results("job", "ours") != report_f_job.results("job", None)


def test_every_cell_is_a_valid_configuration(throughput):
    for model, mode in throughput.cells(throughput.MODELS, tuple(throughput.MODES)):
        settings = throughput.configure(model, mode, 4, "float32")
        described = jobs.describe(settings, "synthetic")
        assert described["logits"] == (1 if model in ("baseline", "resnet50v2") else 4)


def test_whole_jobs_are_extrapolated_from_what_was_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import report_f_job

    script = "for i in (1, 2, 3): print(f'epoch {i}/3', flush=True)\nprint('{\"a\": 1}')"
    run = report_f_job.timed([sys.executable, "-c", script])
    assert len(run["later_epochs"]) == 2 and run["told"] == {"a": 1}
    parts = run["to_first_epoch_end"] + sum(run["later_epochs"]) + run["after_last_epoch"]
    assert parts == pytest.approx(run["seconds"])
    with pytest.raises(UserError, match="ended with code 1"):
        report_f_job.timed([sys.executable, "-c", "print('epoch 1/3'); raise SystemExit(1)"])
    known = {"seconds": 0, "to_first_epoch_end": 20.0, "epoch_median": 2.0, "after_last_epoch": 5.0}
    assert report_f_job.seconds_of(known, 1) == 25 and report_f_job.seconds_of(known, 10) == 43
    slow = known | {"seconds": 90, "epoch_median": 20.0}
    assert report_f_job.speedups(known | {"seconds": 45}, slow, 2)["measured"]["speedup"] == 2
