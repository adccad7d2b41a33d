"""The two reports done again: rows from what runs leave behind, and where they are written."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from test_loop import ROOT

from cxrjax.errors import UserError

sys.path.insert(0, str(ROOT / "experiments"))
import binary_report
import four_class_report
import reproduction
from reproduction import Row


def metric(value, n=100):
    return {"value": value, "low": value - 0.05, "high": value + 0.04, "n": n}


def test_table_shows_both_protocols_beside_the_report():
    rows = [
        Row("CNN", "accuracy", 0.79, metric(0.8), metric(0.7, 50)),
        Row("CNN", "recall COVID", None, None, metric(0.6)),
    ]
    assert reproduction.table(rows).splitlines()[2:] == [
        "| CNN | accuracy | .79 | .80 [.75, .84] n=100 | .70 [.65, .74] n=50 |",
        "| CNN | recall COVID |  |  | .60 [.55, .64] n=100 |",
    ]


def test_write_replaces_its_own_table_only(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text(
        "before\n<!-- a -->\nold\n<!-- end of a -->\nbetween\n<!-- b -->\nkept\n<!-- end of b -->\n"
    )
    monkeypatch.setattr(reproduction, "HERE", tmp_path)
    monkeypatch.setattr(reproduction, "README", tmp_path / "README.md")
    rows = [Row("CNN", "accuracy", 0.79, metric(0.8), None)]
    data, picture = reproduction.write("a", "title", rows, {"device": "cpu"}, quick=False)
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n") and "old" not in page
    assert page.endswith("between\n<!-- b -->\nkept\n<!-- end of b -->\n")
    assert page.count("| CNN | accuracy | .79 |") == 1
    told = json.loads(data.read_text())
    assert told["rows"][0]["as_report"]["value"] == 0.8 and told["device"] == "cpu"
    assert picture.read_bytes().startswith(b"\x89PNG")
    reproduction.write("a", "title", rows, {}, quick=True)
    assert (tmp_path / "README.md").read_text() == page
    assert (tmp_path / "results" / "a-quick.json").is_file()
    with pytest.raises(UserError, match="no lines <!-- c -->"):
        reproduction.write("c", "title", rows, {}, quick=False)


def test_share_is_wilsons_interval():
    """Against the closed form, z = 1.959964."""
    k, n, z = 81, 100, 1.959963984540054
    p = k / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = reproduction.share(k, n)
    np.testing.assert_allclose([found["low"], found["high"]], [middle - half, middle + half])


def test_trained_counts_every_image_trained_on(tmp_path):
    lines = [
        {"epoch": 1, "split": "train", "accuracy": 0.5, "loss": 0.7},
        {"epoch": 1, "split": "validation", "accuracy": 0.1, "loss": 0.9},
        {"epoch": 2, "split": "train", "accuracy": 0.75, "loss": 0.4},
        {"epoch": 2, "split": "validation", "accuracy": 0.2, "loss": 0.8},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = {"n": {"train": 160, "validation": 40}, "trained_on": ["train", "validation"]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    accuracy, loss = reproduction.trained(tmp_path)
    assert (accuracy["value"], accuracy["n"], loss) == (0.75, 200, 0.4)


def four_classes(table):
    classes = ["COVID", "Normal"]
    part = {"per_class": {name: {"support": 150} for name in classes}}
    audit = {"confounding": {"table": table}}
    return {"classes": classes, "validation": part, "test": part, "audit": audit}


def test_sources_held_out_leave_every_class_images():
    table = {
        "only covid": {"COVID": 900, "Normal": 0},
        "small": {"COVID": 50, "Normal": 10},
        "half": {"COVID": 0, "Normal": 400},
        "other half": {"COVID": 0, "Normal": 400},
    }
    # All COVID of known source is in one place: without it 50 are left.
    assert four_class_report.spare_sources(four_classes(table)) == ["half", "other half"]
    assert (
        four_class_report.spare_sources({"audit": {"confounding": None}} | four_classes({})) == []
    )


def test_the_reports_column_is_tuned_and_reported_on_the_same_images():
    """Of the report's protocol the validation split is told, corrected the test split."""

    def part(value):
        recall = {name: {"recall": metric(value)} for name in four_class_report.CLASSES}
        return {"accuracy": metric(value), "macro_f1": metric(value), "per_class": recall}

    result = {
        "classes": list(four_class_report.CLASSES),
        "validation": part(0.9),
        "test": part(0.8),
    }
    results = {"report": {"densenet4": result}, "corrected": {"densenet4": result}}
    rows = four_class_report.rows_of("densenet4", results)
    assert [row.figure for row in rows][2:] == [f"recall {c}" for c in four_class_report.CLASSES]
    assert {row.as_report["value"] for row in rows} == {0.9}
    assert {row.corrected["value"] for row in rows} == {0.8}
    assert rows[2].report == 0.77


def test_tasks_run_apart_stand_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "HERE", tmp_path)
    path = reproduction.results_file("binary_report", True)
    path.parent.mkdir()
    alone = binary_report._beside_earlier([], {"tasks": ["1"], "exploration": 1}, True)
    assert alone == ([], {"tasks": ["1"], "exploration": 1})

    def row(what, value):
        return Row(what, "test accuracy", None, metric(value), metric(value))

    earlier = [row("baseline CNN", 0.7), row("ResNet50V2, head", 0.8)]
    kept = {"tasks": ["2", "3"], "baseline": "old", "heads": "old"}
    path.write_text(json.dumps({"rows": [asdict(r) for r in earlier], **kept}))
    rows, more = binary_report._beside_earlier(
        [row("baseline CNN", 0.75)], {"tasks": ["1", "2"], "baseline": "new"}, True
    )
    assert rows == [row("baseline CNN", 0.75), earlier[1]]
    assert more == {"tasks": ["1", "2", "3"], "baseline": "new", "heads": "old"}


def test_exploration_alone_is_written(tmp_path, monkeypatch):
    def explore(*arguments):
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        part = {"n": 4, "classes": {}, "mean": 0.5, "std": 0.2}
        splits = dict.fromkeys(("train", "validation", "test"), part)
        (out / "explore.json").write_text(json.dumps({"splits": splits}))

    monkeypatch.setattr(reproduction, "HERE", tmp_path)
    monkeypatch.setattr(reproduction, "run", explore)
    options = ["--quick", "--tasks", "1", "--workdir", str(tmp_path / "run")]
    assert binary_report.main(options) == 0
    told = reproduction.read(reproduction.results_file("binary_report", True))
    assert told["exploration"]["train"]["mean"] == 0.5 and told["rows"] == []


def test_what_is_finished_is_told_where_a_later_call_leaves_it_out(tmp_path, monkeypatch):
    def train(key, folder, overrides):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text("{}")

    told = []
    monkeypatch.setattr(four_class_report, "_train", train)
    monkeypatch.setattr(reproduction, "run", lambda *arguments: None)
    monkeypatch.setattr(four_class_report, "_finish", lambda *of: told.append(of[1:3]) or 0)
    root = ["--workdir", str(tmp_path)]
    assert four_class_report.main([*root, "--sources", "a,b"]) == 0
    part = ["--networks", "mobilenet4", "--sources", "none", "--final-epochs", "0"]
    assert four_class_report.main([*root, *part]) == 0
    assert told[0] == told[1] == (list(four_class_report.PRINTED), ["a", "b"])


def test_what_the_best_of_many_is_worth():
    best = {
        "winner": {"accuracy": metric(0.875, 400), "seeds": [0]},
        "optimism": {
            "optimism": metric(0.013),
            "corrected": 0.862,
            "corrected_interval": [0.82, 0.9],
        },
    }
    worth = binary_report._worth(best)
    assert worth["value"] == pytest.approx(0.862) and worth["n"] == 400
    assert (worth["low"], worth["high"]) == (0.82, 0.9)
    best["winner"]["seeds"] = [0, 1]
    worth = binary_report._worth(best)
    assert worth["value"] == pytest.approx(0.862)
    assert worth["high"] - worth["low"] == pytest.approx(0.09)


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    [
        ("binary_report", ["--tasks", "3,7"], "--tasks holds '7'"),
        ("binary_report", ["--tasks", "4"], "give 3,4"),
        ("four_class_report", ["--networks", "densenet4,vgg"], "--networks holds 'vgg'"),
        ("four_class_report", ["--epochs", "-1"], "--epochs must be 1 or more"),
        ("four_class_report", ["--epochs", "0"], "--epochs must be 1 or more"),
        ("four_class_report", ["--sources", ""], "--sources '' holds an empty name"),
        ("sweep_job", ["--cost-epochs", "1;4"], "--cost-epochs is '1;4'"),
        ("sweep_job", ["--keras-points", "a"], "--keras-points is 'a'"),
        ("throughput", ["--windows", "0"], "--windows must be 1 or more"),
        ("gpu_throughput", ["--windows", "0"], "--windows must be 1 or more"),
        ("false_alarms", ["--seeds", "0"], "--seeds must be 1 or more"),
        ("false_alarms", ["--faults", "x"], "--faults holds 'x'"),
        ("four_class_report", ["--quick", "--config.no.field=1"], "config field no.field"),
        ("robustness", ["--recipes", "plain,vgg"], "--recipes holds 'vgg'"),
        ("robustness", ["--epochs", "0"], "--epochs must be 1 or more"),
        ("robustness", ["--sources", "a,,b"], "--sources 'a,,b' holds an empty name"),
        ("robustness", ["--quick", "--recipe=plain"], "unknown argument --recipe=plain"),
    ],
)
def test_bad_input_is_one_sentence(script, arguments, told, tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 2
    assert told in found.stderr and "Traceback" not in found.stderr
