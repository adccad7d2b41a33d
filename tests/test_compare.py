"""`python -m cxrjax.compare`: what it prints and writes, and the runs it refuses."""

import json

import numpy as np
import pytest
from finished_runs import change, make
from PIL import Image

from cxrjax import compare, predictions
from cxrjax.data import ledger
from cxrjax.errors import UserError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    qualities = {"densenet4": 0.95, "mobilenet4": 0.6, "inception4": 0.94}
    return [make(root / name, q, cache=root / "cache") for name, q in qualities.items()]


def command(*arguments):
    return compare.main([*map(str, arguments), "--resamples", "200"])


def test_three_runs_side_by_side(runs, tmp_path, capsys):
    assert command(*runs, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split("  ")[0] == "run" and "recall Viral Pneumonia" in printed[0]
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    for line, row in zip(printed[1:4], found["runs"], strict=True):
        value = f"{row['accuracy']['value']:.2f}".replace("0.", ".")
        assert line.startswith(row["name"]) and value in line
    assert sum("not distinguishable" in line for line in printed) == 1
    assert sum("is better than mobilenet4" in line for line in printed) == 2
    assert printed[-1] == "test split read 1 time(s) so far"
    assert (len(found["pairs"]), found["n"], found["test_looks"]) == (3, 160, 1)
    with Image.open(tmp_path / "out" / "comparison.png") as image:
        assert min(image.size) > 300


def test_looks_are_those_of_the_ledger(runs, capsys):
    cache = runs[0].parent / "cache"
    cache.mkdir(exist_ok=True)
    for digest in ("d" * 64, "d" * 64, "e"):
        ledger.record(cache, "f", digest, "a run")
    assert command(*runs[:2]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "test split read 2 time(s) so far; 1 time(s) in other splits of the data"
    (cache / ledger.FILE).unlink()


def test_folders_of_one_name_are_told_by_their_path(runs, tmp_path, capsys):
    (tmp_path / "again").mkdir()
    other = make(tmp_path / "again" / "densenet4", 0.5)
    assert command(runs[0], other) == 0
    assert f"{runs[0]} is better than {other}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 150}, "different images (160 and 150, 150 in both); train both on the same data"),
        ({"data_fingerprint": "g"}, "different images (160 and 160, 0 in both)"),
        ({"data_fingerprint": ["f"]}, "different images (160 and 160, 0 in both)"),
        ({"classes": ("COVID", "Normal", "Other")}, "tell other classes apart (COVID, Normal, V"),
    ],
)
def test_runs_on_other_images_are_refused_in_a_sentence(runs, tmp_path, capsys, changes, words):
    other = make(tmp_path / "other", **changes)
    assert command(runs[0], other) == 2
    told = capsys.readouterr().err
    assert words in told and str(other) in told and told.count("\n") == 1


def test_a_run_of_an_older_version_can_be_compared(runs, tmp_path):
    other = make(tmp_path / "other", data_fingerprint=None)
    (other / "groups.json").unlink()
    (other / "config.json").unlink()
    assert command(other, runs[0]) == 0


@pytest.mark.parametrize("without", [0, 1])
def test_groups_are_those_of_any_run_that_kept_them(tmp_path, without):
    """Whichever is named first; and equal groups are equal by whatever numbers they are called."""
    pair = [make(tmp_path / name, q) for name, q in (("a", 0.95), ("b", 0.7))]
    kept = pair[1 - without] / "groups.json"
    found = [compared(pair, tmp_path)]
    (pair[without] / "groups.json").unlink()
    found += [compared(pair, tmp_path), compared(pair[::-1], tmp_path)]
    groups = json.loads(kept.read_text())
    change(kept, test=[1000 - of for of in groups["test"]])
    found += [compared(pair, tmp_path)]
    assert all(of == found[0] for of in found)
    kept.unlink()  # every image alone: other intervals
    assert compared(pair, tmp_path) != found[0]


def compared(runs, tmp_path):
    assert command(*runs, "--out", tmp_path / "out") == 0
    return json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"]


def test_images_that_one_run_groups_are_together_for_all(tmp_path):
    """Runs of other image sizes may find other near-duplicates."""
    pair = [make(tmp_path / name, q) for name, q in (("a", 0.95), ("b", 0.7))]
    wanted = compared(pair, tmp_path)
    kept = [run / "groups.json" for run in pair]
    groups = json.loads(kept[0].read_text())["test"]  # each of two images
    change(kept[0], test=[of if of % 4 else 1000 + i for i, of in enumerate(groups)])
    change(kept[1], test=[of if not of % 4 else 1000 + i for i, of in enumerate(groups)])
    assert compared(pair, tmp_path) == wanted
    change(kept[0], test=list(range(160)))
    assert compared(pair, tmp_path) != wanted


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: (run / "result.json").unlink(), "holds no result.json"),
        (lambda run: (run / "result.json").write_text("{"), "cannot be read"),
        (lambda run: (run / "predictions.csv").unlink(), "cannot be read"),
        (lambda run: (run / "predictions.csv").write_text("split,index\n"), "header"),
        (lambda run: change(run / "groups.json", test=[1]), "160 predictions for 1"),
        (lambda run: change(run / "result.json", classes=["a"]), "header"),
    ],
)
def test_damaged_runs_are_a_sentence(runs, tmp_path, capsys, spoil, words):
    run = make(tmp_path / "run")
    spoil(run)
    assert command(runs[0], run) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    with pytest.raises(UserError, match="not a folder"):
        predictions.read(tmp_path / "nowhere")


def test_what_makes_no_sense_is_a_sentence(runs, capsys):
    assert command(runs[0]) == 2
    assert "two runs or more" in capsys.readouterr().err
    again = f"{runs[0].parent}/./{runs[0].name}/"
    assert command(*runs, again) == 2  # a pair more would adjust the others' p values
    assert f"{again} is named twice" in capsys.readouterr().err
    assert compare.main([*map(str, runs), "--resamples", "3"]) == 2
    assert "give 100 or more" in capsys.readouterr().err


def test_predictions_are_read_as_they_were_written(runs):
    run = predictions.read(runs[0])
    again = json.loads((runs[0] / "result.json").read_text())
    assert run.result == again and run.name == "densenet4"
    test = run.splits["test"]
    table = np.zeros([3, 3], int)
    np.add.at(table, (test.labels, test.probabilities.argmax(axis=1)), 1)
    assert table.tolist() == again["test"]["confusion_matrix"]
    np.testing.assert_array_equal(test.groups, np.arange(160) // 2)
