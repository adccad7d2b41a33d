"""Recipes against shortcuts: what each changes, what is run, and what the runs say, as a table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from test_loop import ROOT
from test_reproduction import metric

from cxrjax import cli, config, plotting

sys.path.insert(0, str(ROOT / "experiments"))
import reproduction
import robustness


def leave(folder, content, **overrides):
    """A finished run: what `result.json` says, and the config where it differs from the usual."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    texts = cli.parse_overrides(reproduction.settings(overrides))
    settings = config.load(str(robustness.CONFIG), texts)
    (folder / "config.json").write_text(config.to_json(settings))


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


BOTH = split(COVID=0.8, Normal=0.8)
ORDINARY = {"test": BOTH, "validation": BOTH}
HELD_OUT = {"test": split(COVID=None, Normal=0.6), "validation": split(COVID=0.8, Normal=0.9)}
SCORES = {"without_lungs": 0.4, "flat_lungs": 0.3}


def fresh(view="without_lungs", **parts):
    """The result as a run leaves it: no view but the one that its verdict rests on."""
    told = result({view: 0.4}, **parts)
    told["audit"]["shortcuts"]["views"] = {view: {"auroc": metric(0.7)}}
    return told


@pytest.fixture
def root(tmp_path):
    """Two recipes, of one of which the run without source north is finished too."""
    leave(tmp_path / "plain/ordinary", result(SCORES, **ORDINARY), **{"train.epochs": 3})
    leave(tmp_path / "lungs_only/ordinary", result({"flat_lungs": 0.1}, **ORDINARY))
    leave(tmp_path / "plain/without_source/north", result(SCORES, **HELD_OUT))
    return tmp_path


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """Results and table go to a folder of the test's."""
    marks = "<!-- robustness -->\nNot run yet.\n<!-- end of robustness -->\n"
    (tmp_path / "README.md").write_text(marks)
    monkeypatch.setattr(reproduction, "HERE", tmp_path)
    monkeypatch.setattr(reproduction, "README", tmp_path / "README.md")
    return tmp_path / "README.md"


@pytest.fixture
def commands(monkeypatch):
    """What was run; each leaves what cxrjax's commands would."""
    done = []

    def run(module, *arguments):
        done.append((module, *arguments))
        folder = Path(arguments[arguments.index("--workdir") + 1])
        if module == "audit":
            told = result(SCORES, **ORDINARY)
            (folder / "result.json").write_text(json.dumps(told))
        elif not (folder / "result.json").is_file():
            fields = cli.parse_overrides([a for a in arguments if a.startswith("--config.")])
            parts = HELD_OUT if "data.hold_out_source" in fields else ORDINARY
            view = "flat_lungs" if fields.get("data.frame") == "lungs_only" else "without_lungs"
            leave(folder, fresh(view, **parts), **fields)

    monkeypatch.setattr(reproduction, "run", run)
    return done


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


def test_each_recipe_is_run_audited_and_run_without_each_source(tmp_path, readme, commands):
    options = ["--recipes", "plain,lungs_only", "--sources", "north", "--epochs", "3"]
    root = tmp_path / "runs"
    options += ["--workdir", str(root), "--config.seed=5"]
    assert robustness._run(options) == 0

    def trained(folder, *fields):
        return (
            "main",
            "--config",
            str(robustness.CONFIG),
            "--workdir",
            str(root / folder),
            *fields,
        )

    shared = ["--config.data.image_size=128", "--config.train.epochs=3", "--config.seed=5"]
    frame, without = "--config.data.frame=lungs_only", "--config.data.hold_out_source=north"
    expected = [
        trained("plain/ordinary", *shared),
        ("audit", "--workdir", str(root / "plain/ordinary")),
        trained("lungs_only/ordinary", frame, *shared),
        ("audit", "--workdir", str(root / "lungs_only/ordinary")),
        trained("plain/without_source/north", *shared, without),
        trained("lungs_only/without_source/north", frame, *shared, without),
    ]
    assert commands == expected
    told = json.loads((tmp_path / "results/robustness.json").read_text())
    assert {name: list(of["held_out"]) for name, of in told["recipes"].items()} == {
        "plain": ["north"],
        "lungs_only": ["north"],
    }
    assert readme.read_text().count("| .30 [.25, .34] n=100 |") == 2
    # What is finished is asked for again, and each audit is a look at the test split.
    robustness._run(options)
    assert commands[len(expected) :] == [one for one in expected if one[0] == "main"]


def test_what_a_call_leaves_out_stays_published(root, readme, commands):
    """Rows in the recipes' order, columns of sources; each recipe with its own settings."""
    leave(root / "augmented/ordinary", fresh(**ORDINARY), **{"augment.border": 0.1})
    (root / "plain/without_source/begun").mkdir()
    leave(root / "lungs_only/without_source/east", result(SCORES, **HELD_OUT))
    options = ["--recipes", "lungs_box", "--workdir", str(root), "--config.data.cache=/elsewhere"]
    assert robustness._run([*options, "--sources", "south"]) == 0
    told = json.loads((root / "results/robustness.json").read_text())
    assert list(told["recipes"]) == ["plain", "lungs_box", "lungs_only"]
    assert told["sources"] == ["south", "east", "north"]
    assert {name: of["overrides"] for name, of in told["recipes"].items()} == {
        "plain": {"train.epochs": 3},
        "lungs_box": {"data.frame": "lungs_box", "data.image_size": 128, "train.epochs": 10},
        "lungs_only": {},
    }
    robustness._run([*options, "--sources", "none"])
    told = json.loads((root / "results/robustness.json").read_text())
    assert told["sources"] == ["east", "north", "south"]
    assert {name: list(of["held_out"]) for name, of in told["recipes"].items()} == {
        "plain": ["north"],
        "lungs_box": ["south"],
        "lungs_only": ["east"],
    }
    page = readme.read_text()
    assert "| recall on east | recall on north | recall on south |" in page
    assert [page.count(f"\n| {name} |") for name in told["recipes"]] == [1, 1, 1]


def test_rows_of_what_is_finished(root):
    sources = ["north", "south"]
    told = {name: robustness.told_of(root, name) for name in ("plain", "lungs_only")}
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


def test_what_is_written(root, readme):
    """JSON, a figure, and the table between its marks; a source that is yet to be held out."""
    data, picture = robustness._write(root, ["north", "south"], False)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "| plain | .80 [.75, .84]" in readme.read_text()
    told = json.loads(data.read_text())
    assert told["sources"] == ["north", "south"]
    assert list(told["recipes"]) == ["plain", "lungs_only"]
    assert told["recipes"]["lungs_only"]["held_out"] == {}
    plain = told["recipes"]["plain"]
    assert plain["device"] == "cpu" and plain["validation"]["accuracy"]["n"] == 100
    assert plain["overrides"] == {"train.epochs": 3}
    assert list(plain["held_out"]) == ["north"]
    assert list(plain["held_out"]["north"]["recall"]) == ["Normal"]


def test_the_figure_shows_every_score_and_recall(root, monkeypatch):
    """Score to the right, accuracy up; nothing where a score means nothing or a run is missing."""
    drawn = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
    told = {name: robustness.told_of(root, name) for name in ("plain", "lungs_only")}
    robustness.draw(told, ["north"], root / "unused.png")
    above, below = (
        [line.get_xydata()[0] for line, *_ in axes.containers] for axes in drawn[0].axes
    )
    np.testing.assert_allclose(above, [[0.4, 0.8], [0.3, 0.8], [np.nan, 0.8], [0.1, 0.8]])
    np.testing.assert_allclose([x for x, _ in below], [0.6, np.nan])
    assert [tick.get_text() for tick in drawn[0].axes[1].get_yticklabels()] == ["north: Normal"]
    robustness.draw(told, [], root / "unused.png")
    assert len(drawn[1].axes) == 1
