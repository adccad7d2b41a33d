"""Sweep files of the reports, the Keras loop over a grid, and what is extrapolated from it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_loop import ROOT

from cxrjax import config
from cxrjax.bench import job as jobs
from cxrjax.errors import UserError
from cxrjax.sweep import grid, search
from cxrjax.sweep.trials import Trials

SWEEPS = ROOT / "configs" / "sweeps"
sys.path.insert(0, str(ROOT / "experiments"))
import extrapolation  # noqa: E402
import report_f_job  # noqa: E402
import sweep_job  # noqa: E402


@pytest.mark.parametrize(
    ("name", "points", "like"),
    [("baseline2", 54, "baseline2"), ("resnet2_head", 27, "resnet2"), ("backbones4", 3, None)],
)
def test_sweep_files_hold_the_reports_grids(name, points, like):
    sweep = grid.load(str(SWEEPS / f"{name}.py"))
    assert len(sweep.points) == points == len({point.key for point in sweep.points})
    if like is None:  # each point is one of the single configurations
        singles = ("densenet4", "mobilenet4", "inception4")
        assert [p.key for p in sweep.points] == [_alone(single) for single in singles]
    else:
        assert sum(point.key == _alone(like) for point in sweep.points) == 1


def _alone(name):
    """Key of a single configuration, every epoch augmented anew."""
    settings = config.load(str(ROOT / "configs" / f"{name}.py"), {"cache.views": "0"})
    return grid.expand(settings, {}, name).points[0].key


@given(
    st.lists(st.floats(0.1, 1e3), min_size=2, max_size=6),
    st.floats(0, 1e3),
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
def test_an_extrapolated_point_is_the_measured_one_at_its_epochs(later, fixed, epochs):
    typical = float(np.median(later))
    line = {"shape": "a", "epoch_seconds": [typical + 3, *later], "seconds": 0.0}
    line["seconds"] = sum(line["epoch_seconds"]) + fixed
    told = extrapolation.extrapolate([line], ["a"] * len(epochs), epochs)
    want = [fixed + 3 + n * typical for n in epochs]
    assert told["points"] == pytest.approx(want)
    assert told["fastest"] == pytest.approx([fixed + 3 + n * min(later) for n in epochs])


@pytest.mark.parametrize("field", ["border", "gamma"])
def test_an_augmentation_that_keras_lacks_is_refused(field, capsys):
    settings = config.load(str(ROOT / "configs" / "baseline2.py"), {f"augment.{field}": "0.1"})
    with pytest.raises(UserError, match=rf"augment\.{field} is 0\.1"):
        sweep_job.peer_job(settings, None)
    assert report_f_job.main([f"--config.augment.{field}=0.1"]) == 2
    assert "Keras augments nothing" in capsys.readouterr().err


def test_a_schedule_that_keras_lacks_is_refused(capsys):
    settings = config.load(str(ROOT / "configs" / "baseline2.py"), {"train.schedule": "cosine"})
    with pytest.raises(UserError, match=r"train\.schedule is cosine"):
        sweep_job.peer_job(settings, None)
    assert report_f_job.main(["--config.train.schedule=cosine"]) == 2
    assert "train.schedule is cosine" in capsys.readouterr().err


def test_shapes_are_not_mixed_and_none_may_lack():
    lines = [
        {"shape": shape, "seconds": 10.0 + 2 * epoch, "epoch_seconds": [epoch, epoch]}
        for shape, epoch in (("a", 1.0), ("b", 5.0), ("a", 3.0))
    ]
    told = extrapolation.extrapolate(lines, ["b", "a"], [2, 4])
    assert told["points"] == [20, 18] and told["fastest"] == [20, 14]
    assert told["shapes"]["a"] == {"fixed": 10, "epoch": 2, "fastest": 1}
    with pytest.raises(UserError, match="shape c was measured"):
        extrapolation.extrapolate(lines, ["a", "c"], [1, 1])
    lines = [{"point": p, "epoch_seconds": [9.0, s]} for p, s in ((4, 2.0), (5, 7.0), (4, 3.0))]
    assert extrapolation.drift(lines) == 1.5


def test_cost_of_a_point_more():
    told = extrapolation.cost_of_a_point(
        {4: {"one": 100.0, "all": 126.0}, 1: {"one": 40.0, "all": 56.0}}, 27
    )
    assert told["commands"]["4"]["share"] == pytest.approx(0.01)
    assert told["commands"]["1"]["share"] == pytest.approx(16 / 26 / 40)
    assert told["per_epoch"]["one"] == 20
    assert told["per_epoch"]["share"] == pytest.approx(10 / 3 / 26 / 20)
    assert extrapolation.cost_of_a_point({2: {"one": 1.0, "all": 2.0}}, 27)["per_epoch"] is None


def test_a_search_run_before_takes_as_long_as_its_longest_command(tmp_path):
    points = grid.load(str(SWEEPS / "baseline2.py"), {}, {"model.filters": "8"}).points
    accuracy = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 4}
    record = {"seed": 0, "status": "finished", "best_epoch": 1, "how": "alone", "data": "d"}
    record["validation"] = {"loss": 0.7, "accuracy": accuracy}
    for number, point in enumerate(points[:-1]):
        of_point = {"key": point.key, "values": point.values, "epochs": number + 1}
        Trials(tmp_path).append(record | of_point | {"seconds": number}, {})
    with pytest.raises(UserError, match=r"lacks 1 of 18 trials.*'train.optimizer': 'sgd'"):
        sweep_job.trials_of(points, tmp_path)
    had = points[:-1]
    assert [t["epochs"] for t in sweep_job.trials_of(had, tmp_path)] == list(range(1, 18))
    assert sweep_job.recorded(had, tmp_path, 1)["search_seconds"] == sum(range(17))
    told = sweep_job.recorded(had, tmp_path, 2)
    shards = [{point.key for point in search.shard(had, i, 2)} for i in (0, 1)]
    sums = [sum(i for i, point in enumerate(had) if point.key in part) for part in shards]
    assert told["shard_seconds"] == sums and sum(sums) == sum(range(17))
    assert told["search_seconds"] == max(sums) > min(sums)


def test_each_part_of_a_sweep_has_cores_of_its_own(monkeypatch):
    monkeypatch.setattr(sweep_job.os, "sched_getaffinity", lambda process: {7, 2, 5}, raising=False)
    assert sweep_job.sharded(["sweep"], 1) == [["sweep"]]
    first, last = sweep_job.sharded(["sweep"], 2)
    assert first == ["taskset", "-c", "2,7", "sweep", "--shard", "0/2"]
    assert last == ["taskset", "-c", "5", "sweep", "--shard", "1/2"]
    with pytest.raises(UserError, match="--shards is 4 and 3 cores"):
        sweep_job.sharded(["sweep"], 4)


def test_what_decides_an_epochs_seconds():
    points = grid.load(str(SWEEPS / "baseline2.py")).points
    shapes = {sweep_job.shape(jobs.describe(point.config, "synthetic")) for point in points}
    assert shapes == {f"baseline of {n}, batch 32" for n in (8, 32, 64)}


@pytest.mark.parametrize("how", ["--augment=pipeline", "--views=3"])
def test_the_keras_loop_learns_the_points_it_is_given(how, tmp_path):
    """Bright images against dark ones: told apart after a few epochs, through every way in."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.arange(72) % 2).astype(np.int32)
    levels = rng.integers(0, 100, (72, 16, 16)) + 150 * labels[:, None, None]
    np.save(tmp_path / "images.npy", levels.astype(np.uint8))
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "train.npy", np.arange(48))
    np.save(tmp_path / "validation.npy", np.arange(48, 72))
    job = {
        **{"network": "baseline", "filters": 8, "channels": 1, "image_size": 16, "logits": 1},
        "trainable_layers": 0 if how.startswith("--views") else -1,
        "head": {"batch_norm": False, "dense": 8, "l2": 0.0, "dropout": 0.1},
        **{"optimizer": "adam", "learning_rate": 0.03, "momentum": 0.0, "batch_size": 8},
        **{"mean": [0.5], "std": [0.25], "patience": 0, "class_weights": "balanced"},
        "augment": {"shift": 0.1, "rotation": 15.0, "zoom": 0.2},
    }
    hopeless = job | {"learning_rate": 0.0, "patience": 1, "batch_size": 5}
    points = [{"values": {"n": i}, "job": j} for i, j in enumerate((job, job, hopeless))]
    (tmp_path / "points.json").write_text(json.dumps(points))
    command = [sys.executable, str(ROOT / "experiments" / "peers" / "keras_sweep.py"), how]
    command += ["--data", str(tmp_path), "--jobs", str(tmp_path / "points.json")]
    chosen = "0,2" if how.startswith("--views") else "0"
    done = subprocess.run(
        [*command, "--points", chosen, "--epochs", "8"], capture_output=True, text=True, check=True
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if how.startswith("--views"):
        assert told.pop(0)["prepare_seconds"] > 0
        bad = told.pop()
        assert (bad["point"], bad["values"]) == (2, {"n": 2})
        assert bad["epochs"] < 8  # nothing is learnt: stopped early
    (good,) = told
    assert good["point"] == 0 and good["values"] == {"n": 0}
    assert good["validation"]["accuracy"] >= 0.9
    assert good["epochs"] == len(good["epoch_seconds"]) == 8 >= good["best_epoch"]
    assert good["seconds"] > sum(good["epoch_seconds"])
