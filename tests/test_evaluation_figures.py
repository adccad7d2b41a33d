"""The figures of calibration, comparison and decision show the numbers they are given."""

import json

import numpy as np
import pytest
from finished_runs import make
from matplotlib.figure import Figure
from PIL import Image

from cxrjax import compare, decide


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [make(root / name, q) for name, q in (("one", 0.9), ("two", 0.7))]


@pytest.fixture
def drawn(monkeypatch):
    """The figures as objects, kept when they are saved."""
    kept, savefig = [], Figure.savefig

    def keep(self, *args, **settings):
        kept.append(self)
        return savefig(self, *args, **settings)

    monkeypatch.setattr(Figure, "savefig", keep)
    return kept


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 300


def bars(axes):
    """Middle, low and high of every bar of an axis, by its label."""
    found = {}
    for container in axes.containers:
        line, _, (segments,) = container
        ends = np.array(segments.get_segments())
        found[container.get_label()] = (np.array(line.get_xydata()), ends)
    return found


def test_calibration_shows_the_json(runs, tmp_path, drawn):
    from cxrjax import evaluation_figures

    found = json.loads((runs[0] / "calibration.json").read_text())
    evaluation_figures.calibration(found, tmp_path / "calibration.png")
    assert is_picture(tmp_path / "calibration.png")
    reliability, risk, sets, cuts = drawn[0].axes
    for part, label in (("before", "as trained"), ("after", "with temperature")):
        name = f"{label}, ECE {found[part]['ece']['value']:.3f}"
        points, ends = bars(reliability)[name]
        for bin_, point, (low, high) in zip(found[part]["reliability"], points, ends, strict=True):
            assert point.tolist() == [bin_["confidence"], bin_["accuracy"]["value"]]
            assert low[1] == pytest.approx(min(bin_["accuracy"]["low"], point[1]))
            assert high[1] == pytest.approx(max(bin_["accuracy"]["high"], point[1]))
    curve = found["abstention"]["curve"]
    ((points, _),) = bars(risk).values()
    assert points.tolist() == [[p["coverage"], p["risk"]["value"]] for p in curve]
    names = [text.get_text() for text in sets.get_yticklabels()]
    assert names == ["all", "COVID", "Normal", "Viral Pneumonia"]
    ((points, _),) = bars(sets).values()
    wanted = [row["coverage"]["value"] for row in found["conformal"]["test"].values()]
    assert points[:, 0].tolist() == wanted and points[:, 1].tolist() == [3, 2, 1, 0]
    specificity, _ = bars(cuts)["specificity"]
    wanted = [at["specificity"]["value"] for at in found["operating_points"].values()]
    assert specificity[:, 0].tolist() == wanted


def test_comparison_shows_every_run_in_every_row(runs, tmp_path, drawn):
    compare.main([*map(str, runs), "--out", str(tmp_path), "--resamples", "100"])
    found = json.loads((tmp_path / "comparison.json").read_text())
    rows, differences = drawn[0].axes
    assert [t.get_text() for t in rows.get_yticklabels()][:2] == ["accuracy", "recall COVID"]
    for run in found["runs"]:
        points, _ = bars(rows)[run["name"]]
        wanted = [run["accuracy"]["value"], *(r["value"] for r in run["recall"].values())]
        assert points[:, 0].tolist() == wanted
    heights = np.concatenate([points[:, 1] for points, _ in bars(rows).values()])
    assert len(np.unique(heights.round(6))) == len(heights)  # none hides another
    ((points, ends),) = bars(differences).values()
    entry = found["pairs"][0]["difference"]["accuracy"]
    assert points[0, 0] == entry["value"]
    assert ends[0, :, 0].tolist() == pytest.approx([entry["low"], entry["high"]])


def test_decision_shows_both_benefits_and_the_curve(runs, drawn):
    decide.main(["--workdir", str(runs[0]), "--resamples", "100"])
    found = json.loads((runs[0] / "decision.json").read_text())
    assert is_picture(runs[0] / "figures" / "decision.png")
    report, corrected, curve = drawn[0].axes
    lines = {line.get_label(): line for line in report.get_lines()}
    assert lines["X-ray"].get_ydata().tolist() == found["report"]["over_prevalence"]["xray"]
    lines = {line.get_label(): line for line in corrected.get_lines()}
    wanted = [entry["value"] for entry in found["corrected"]["over_prevalence"]["xray"]]
    assert lines["X-ray"].get_ydata().tolist() == wanted
    lines = {line.get_label(): line for line in curve.get_lines()}
    wanted = [entry["value"] for entry in found["decision_curve"]["model"]]
    assert lines["model"].get_ydata().tolist() == wanted
    assert lines["treat all"].get_ydata().tolist() == found["decision_curve"]["all"]
