"""Recipes against shortcuts: that each is a config, and what their runs say, as a table."""

import json
import sys

import numpy as np
import pytest
from test_loop import ROOT
from test_reproduction import metric

from cxrjax import cli, config, plotting

sys.path.insert(0, str(ROOT / "experiments"))
import reproduction
import robustness


def leave(folder, content):
    """A finished run: what `result.json` says."""
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(content))


def split(**recalls):
    """A split with that recall of each class, or None of those it has no images of."""
    per_class = {
        name: {"recall": metric(value or 0.5), "support": 0 if value is None else 100}
        for name, value in recalls.items()
    }
    return {"accuracy": metric(0.8), "macro_f1": metric(0.7), "per_class": per_class}


def result(scores, **parts):
    shortcuts = {
        "views": {"lungs_only": {"auroc": metric(0.75)}},
        "scores": {view: metric(value) for view, value in scores.items()},
        "lungs": "segmentation",
    }
    told = {"verdict": "SOUND", "seconds": 1, "epochs": 2, "best_epoch": 1, "test_looks": 2}
    told |= {"n": {"test": 100}, "audit": {"shortcuts": shortcuts}, "classes": ["COVID", "Normal"]}
    return told | {"device": "cpu", "versions": {}} | parts


@pytest.fixture
def root(tmp_path):
    """Two recipes, of one of which the run without source north is finished too."""
    both = split(COVID=0.8, Normal=0.8)
    parts = {"test": both, "validation": both}
    scores = {"without_lungs": 0.4, "flat_lungs": 0.3}
    leave(tmp_path / "plain/ordinary", result(scores, **parts))
    leave(tmp_path / "lungs_only/ordinary", result({"flat_lungs": 0.1}, **parts))
    held_out = {"test": split(COVID=None, Normal=0.6), "validation": split(COVID=0.8, Normal=0.9)}
    leave(tmp_path / "plain/without_source/north", result(scores, **held_out))
    return tmp_path


@pytest.mark.parametrize(
    ("recipe", "frame", "augmented"),
    [
        ("plain", "whole", set()),
        ("augmented", "whole", {"shift", "rotation", "zoom", "gamma", "border"}),
        ("lungs_box", "lungs_box", set()),
        ("lungs_only", "lungs_only", set()),
        ("lungs_only_augmented", "lungs_only", {"shift", "rotation", "zoom", "gamma"}),
    ],
)
def test_a_recipe_changes_what_it_says_and_nothing_else(recipe, frame, augmented):
    overrides = cli.parse_overrides(reproduction.settings(robustness.RECIPES[recipe]))
    usual = config.fields(config.load(str(robustness.CONFIG)))
    found = config.fields(config.load(str(robustness.CONFIG), overrides))
    assert found["data.frame"] == frame
    assert {f for f in found if f.startswith("augment.") and found[f]} == {
        f"augment.{name}" for name in augmented
    }
    # Without stored views the frozen layers would run anew for each augmented image.
    assert bool(found["cache.views"]) == bool(augmented)
    changed = {field for field, value in found.items() if value != usual[field]}
    assert all(f.startswith("augment.") or f in ("data.frame", "cache.views") for f in changed)


def test_no_recipe_is_unknown_to_these_tests():
    names = "plain augmented lungs_box lungs_only lungs_only_augmented"
    assert " ".join(robustness.RECIPES) == names


def test_rows_of_what_is_finished(root):
    sources = ["north", "south"]
    told = {name: robustness.told_of(root, name, {}, sources) for name in ("plain", "lungs_only")}
    assert robustness.table(told, sources).splitlines() == [
        "| recipe | accuracy | shortcut score (lungs black) | shortcut score (lungs one grey) "
        "| lungs-only AUROC | recall on north | recall on south |",
        "|---|---|---|---|---|---|---|",
        "| plain | .80 [.75, .84] n=100 | .40 [.35, .44] n=100 | .30 [.25, .34] n=100 "
        "| .75 [.70, .79] n=100 "
        "| Normal .60 [.55, .64] n=100 (validation .90 [.85, .94] n=100) | - |",
        "| lungs_only | .80 [.75, .84] n=100 | - | .10 [.05, .14] n=100 "
        "| .75 [.70, .79] n=100 | - | - |",
    ]


def test_what_is_written(root, monkeypatch):
    """JSON, a figure, and the table between its marks; sources held out or none."""
    marks = "<!-- robustness -->\nNot run yet.\n<!-- end of robustness -->\n"
    (root / "README.md").write_text(marks)
    monkeypatch.setattr(reproduction, "HERE", root)
    monkeypatch.setattr(reproduction, "README", root / "README.md")
    done = {"plain": {"train.epochs": 3}}
    data, _ = robustness._write(root, done, [], False)
    assert json.loads(data.read_text())["recipes"]["plain"]["held_out"] == {}
    data, picture = robustness._write(root, done, ["north", "south"], False)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| plain | .80 [.75, .84]" in (root / "README.md").read_text()
    told = json.loads(data.read_text())
    assert told["device"] == "cpu" and list(told["recipes"]) == ["plain"]
    plain = told["recipes"]["plain"]
    assert plain["overrides"] == {"train.epochs": 3} and plain["validation"]["accuracy"]["n"] == 100
    assert list(plain["held_out"]) == ["north"]
    assert list(plain["held_out"]["north"]["recall"]) == ["Normal"]


def test_the_figure_shows_every_score_and_recall(root, monkeypatch):
    """Score to the right, accuracy up; nothing where a score means nothing or a run is missing."""
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
    told = {name: robustness.told_of(root, name, {}, ["north"]) for name in ("plain", "lungs_only")}
    robustness.draw(told, ["north"], root / "unused.png")
    above, below = (
        [line.get_xydata()[0] for line, *_ in axes.containers] for axes in drawn[0].axes
    )
    np.testing.assert_allclose(above, [[0.4, 0.8], [0.3, 0.8], [np.nan, 0.8], [0.1, 0.8]])
    np.testing.assert_allclose([x for x, _ in below], [0.6, np.nan])
    assert [tick.get_text() for tick in drawn[0].axes[1].get_yticklabels()] == ["north: Normal"]
    robustness.draw(told, [], root / "unused.png")
    assert len(drawn[1].axes) == 1


def test_a_run_is_audited_once(root, monkeypatch):
    """Each audit is a look at the test split."""
    commands = []
    monkeypatch.setattr(reproduction, "run", lambda *command: commands.append(command))
    robustness._audit(root / "plain/ordinary")
    assert not commands
    # As a run leaves it: the one view that its verdict rests on.
    fresh = result({"without_lungs": 0.4}) | {"test": {}}
    leave(root / "fresh", fresh)
    robustness._audit(root / "fresh")
    assert commands == [("audit", "--workdir", str(root / "fresh"))]
