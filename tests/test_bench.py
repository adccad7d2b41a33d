"""The benchmark: its JSON, its count of operations, the turns it takes. No test of speed."""

import contextlib
import json
import time

import pytest
from test_loop import ROOT, TINY

from cxrjax import config
from cxrjax.bench import __main__ as bench
from cxrjax.bench import feed, session, worker
from cxrjax.bench import job as jobs
from cxrjax.bench.processes import ProcessFailed
from cxrjax.bench.summary import spread
from cxrjax.checkpoint import Checkpoints
from cxrjax.data import dataset
from cxrjax.errors import UserError

QUICKSTART = str(ROOT / "configs" / "quickstart.py")
OVERRIDES = [f"--config.{name}={value}" for name, value in TINY.items()]


def tiny(**changes):
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return config.load(QUICKSTART, {name: str(value) for name, value in settings.items()})


# ------------------------------------------------------------------ ours


def test_the_command_writes_every_figure(tmp_path, capsys):
    out = tmp_path / "bench.json"
    rows = "synthetic,end_to_end,forward"
    options = ["--rows", rows, "--steps", "2", "--windows", "2", "--json", str(out)]
    assert bench.main(["--config", QUICKSTART, *options, *OVERRIDES]) == 0
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    for name in ("device", "versions", "precision", "image_size", "threads", "config", "platform"):
        assert result[name], name
    assert result["peak"]["flop_per_second"] > 0 and result["peak"]["dtype"] == "float32"
    assert [row["row"] for row in result["rows"]] == rows.split(",")
    assert [row["batch_size"] for row in result["rows"]] == [8, 8, 8]
    for row in result["rows"]:
        rate = row["images_per_second"]
        assert len(rate["windows"]) == 2 and 0 < rate["min"] <= rate["median"] <= rate["max"]
        assert row["peak_memory"]["bytes"] > 1e7 and "maxrss" in row["peak_memory"]["of"]
        assert row["flop_per_image"] > 0 and 0 < row["share_of_peak"] < 1
        assert row["row"] in printed
    synthetic, end_to_end, forward = result["rows"]
    assert synthetic["compile_seconds"] > 0 and forward["compile_seconds"] > 0
    assert synthetic["steps"] == forward["steps"] == 2
    assert synthetic["flop_per_image"] > 2 * forward["flop_per_image"]
    assert synthetic["parameters"]["frozen"] == 0
    assert end_to_end["steps"] == 5 and end_to_end["input"] == "resident"  # of 8 of 36 images
    over = end_to_end["over"]["synthetic"]
    assert 0 < over["min"] <= over["median"] <= over["max"]
    assert f"end_to_end / synthetic: {over['median']:.3f} [" in printed


@pytest.mark.parametrize("row", ["resident", "tfdata"])
def test_rows_on_data_use_the_input_path_they_name(row, monkeypatch):
    from cxrjax import build

    made, make = [], build.make_input

    def noting(*arguments):
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(build, "make_input", noting)
    # Six steps are more than an epoch of five.
    prepared = worker.prepare(jobs.describe(tiny(), row, steps=6))
    assert [source.name for source in made] == [row]
    seconds, images = prepared.window()
    assert seconds > 0 and images == 6 * 8
    assert prepared.finish()["peak_memory"]["bytes"] > 0


def test_on_an_accelerator_the_resident_row_scans_as_the_loop_does(monkeypatch):
    from cxrjax import runtime

    monkeypatch.setattr(runtime, "steps_per_dispatch", lambda: 2)
    prepared = worker.prepare(jobs.describe(tiny(), "resident", steps=7))
    assert prepared.facts["steps_per_dispatch"] == 2 and prepared.facts["steps"] == 6
    assert prepared.window()[1] == 6 * 8


def test_the_cached_row_starts_behind_the_frozen_layers():
    frozen = tiny(model__trainable_layers=4, augment__shift=0, augment__rotation=0, augment__zoom=0)
    cached, whole = (
        worker.prepare(jobs.describe(frozen, row, steps=2)) for row in ("cached", "synthetic")
    )
    assert cached.window()[1] == 16
    assert cached.facts["flop_per_image"] < 0.6 * whole.facts["flop_per_image"]
    assert cached.facts["parameters"] == whole.facts["parameters"]
    with pytest.raises(UserError, match="trainable_layers"):
        worker.prepare(jobs.describe(tiny(), "cached"))


def test_operations_agree_with_a_count_by_hand():
    settings = tiny(model__filters=16)
    facts = worker.prepare(jobs.describe(settings, "forward", steps=1)).facts
    side, n_in, products = 32, 1, 0
    for block, width in enumerate((16, 32, 64, 64)):
        # A 3x3 window at the border has 2 rows inside the image instead of 3.
        products += (3 * side - 2) ** 2 * n_in * width
        n_in, side = width, side // 2 if block < 3 else side
    assert facts["flop_per_image"] == pytest.approx(2 * products, rel=0.05)
    assert facts["flop_per_image_as_written"] == pytest.approx(2 * products, rel=0.05)


def test_synthetic_rows_need_no_data(monkeypatch):
    def none(*arguments):
        raise AssertionError("data were asked for")

    from cxrjax.data import dataset

    monkeypatch.setattr(dataset, "prepare", none)
    settings = config.load(
        str(ROOT / "configs/densenet4.py"),
        {"model.name": "baseline", "model.filters": "2", "model.trainable_layers": "5"}
        | {"data.image_size": "16", "train.batch_size": "6", "model.weights": "none"},
    )
    session.check(settings, ("synthetic", "forward"))
    prepared = worker.prepare(jobs.describe(settings, "synthetic", steps=2))
    assert prepared.window()[1] == 12
    assert prepared.facts["parameter_layers"] == 3  # conv4, bn4, bn3
    with pytest.raises(UserError, match="CXRJAX_DATA"):
        session.check(settings, ("synthetic", "resident"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "synthetik"], "did you mean synthetic"),
        (["--rows", "zzz"], "choose from synthetic, cached, resident, tfdata, end_to_end, forward"),
        (["--rows="], "names nothing"),
        (["--compare", "torsh"], "did you mean torch"),
        (["--compare", ""], "names nothing"),
        (
            ["--compare", "torch", "--rows", "resident"],
            "needs one of the rows synthetic, cached, forward",
        ),
        (["--peer-python", "torch"], "must be PEER=PATH"),
        (["--peer-python", "torch=/no/such/python"], "must be PEER=PATH"),
        (["--windows", "0"], "--windows 1 or more"),
        (["--steps", "-1"], "--steps must be 0"),
        (["--threads", "4096"], "this process may use"),
        (["--json", "/no/such/folder/bench.json"], "choose another --json"),
        (["--json", "/"], "is a folder"),
        (["--config.model.name=densenet"], "there is no network"),
        (["--config.data.name=radiography"], "CXRJAX_DATA"),
        (["--config.data.name=folder", "--rows", "forward"], "config field data.classes is empty"),
        (["--config.model.trainable_layers=99", "--rows", "forward"], "has 16 layers"),
        (["--rows", "forward", "--nonsense"], "unknown argument --nonsense"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words, capsys):
    assert bench.main(["--config", QUICKSTART, *OVERRIDES, *arguments]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in told and told.startswith("cxrjax: ") and "Traceback" not in told


@pytest.mark.parametrize(
    ("more", "peers", "refused"),
    [
        ({}, (), True),  # every layer is trained
        ({"model__trainable_layers": 4}, (), False),
        ({"model__trainable_layers": 16}, (), True),
        ({"model__trainable_layers": 4, "cache__prefix": False}, (), True),
        ({"model__trainable_layers": 4, "augment__shift": 0.1}, (), True),
        ({"model__trainable_layers": 4, "augment__shift": 0.1}, ("torch",), False),
        ({"model__trainable_layers": 4, "augment__shift": 0.1, "cache__views": 2}, (), False),
    ],
)
def test_whether_there_are_maps_is_told_before_anything_is_measured(more, peers, refused):
    plain = dict.fromkeys(("augment__shift", "augment__rotation", "augment__zoom"), 0)
    settings = tiny(**plain | more)
    told = pytest.raises(UserError, match="the row cached needs stored maps")
    with told if refused else contextlib.nullcontext():
        session.check(settings, ("forward", "cached"), peers)


@pytest.mark.parametrize("end", [ProcessFailed("forward", "died", "its log"), KeyboardInterrupt()])
def test_rows_measured_before_one_failed_are_kept(end, tmp_path, monkeypatch, capsys):
    figures = {"images_per_second": spread([7.0]), "batch_size": 8, "peers": {}}
    figures |= {"share_of_peak": None, "peak_memory": {"bytes": 1e8, "of": "process"}}

    def measure_row(settings, row, *_):
        if row == "forward":
            raise end
        return {"row": row, **figures}

    peak = {"flop_per_second": 1e9, "dtype": "float32", "platform": "cpu", "device": "cpu (cpu)"}
    monkeypatch.setattr(session, "measured_peak", lambda *_: peak | {"versions": {"jax": "1.2"}})
    monkeypatch.setattr(session, "measure_row", measure_row)
    out = tmp_path / "bench.json"
    options = ["--rows", "synthetic,forward", "--json", str(out), *OVERRIDES]
    interrupted = isinstance(end, KeyboardInterrupt)
    assert bench.main(["--config", QUICKSTART, *options]) == (130 if interrupted else 2)
    assert [row["row"] for row in json.loads(out.read_text())["rows"]] == ["synthetic"]
    assert "\nsynthetic " in capsys.readouterr().out


def test_epochs_on_images_are_not_told_in_terms_of_stored_maps():
    rows = ("synthetic", "cached", "end_to_end")
    assert session._bases(tiny(augment__shift=0.1), rows) == ["synthetic"]
    views = tiny(augment__shift=0.1, cache__views=2)
    assert session._bases(views, rows) == ["synthetic", "cached"]
    assert session._bases(views, ("cached", "end_to_end")) == ["cached"]


def test_an_epoch_counts_all_images_trained_on(tmp_path):
    settings = tiny(train__on_validation=True, train__patience=0)
    data = dataset.prepare(settings)
    n = len(dataset.training_positions(data, settings))
    job = jobs.describe(settings, "end_to_end") | {"workdir": str(tmp_path)}
    prepared = worker.prepare(job)
    assert prepared.window()[1] == n > len(data.splits["train"])
    assert int(next(feed.plans(settings, data)).mask.sum()) == n


def test_an_epoch_counts_its_checkpoint_until_it_is_written(tmp_path, monkeypatch):
    late, clock, wait = [0.0], time.perf_counter, Checkpoints.wait

    def slow(self):
        late[0] += 1000
        wait(self)

    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(Checkpoints, "wait", slow)
    job = jobs.describe(tiny(), "end_to_end") | {"workdir": str(tmp_path)}
    seconds, _ = worker.prepare(job).window()
    assert 1000 < seconds < 2000


def test_streaming_without_tensorflow_is_told(monkeypatch):
    monkeypatch.setattr(session.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="leave it out of --rows"):
        session.check(tiny(), ("tfdata",))
