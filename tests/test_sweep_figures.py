"""Figures of a sweep show its records, whatever the grid and however few trials finished."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from sweep_records import arrays, grid, key, record

from cxrjax.sweep import figures, labels, landscape, selection

BASELINE = {
    "model.filters": [8, 32, 64],
    "model.head.dropout": [0.4, 0.3, 0.2],
    "train.learning_rate": [1e-3, 1e-4, 1e-5],
    "train.optimizer": ["adam", "sgd"],
}
BACKBONES = {"model.name": ["densenet121", "mobilenet_v2", "inception_v3"]}
GRIDS = {
    "the baseline's": grid(BASELINE, diverged=(5, 17)),
    "backbones alone": grid(BACKBONES),
    "one field, several seeds": grid({"train.learning_rate": [0.1, 0.01]}, seeds=3, diverged=(0,)),
    "one trial": [record(0)],
    "one trial of an empty grid": [record(0, {})],
    "none finished": grid(
        {"train.learning_rate": [0.1, 0.01], "train.optimizer": ["adam", "sgd"]}, diverged=range(4)
    ),
    "a list, a switch, a gap": grid(
        {"data.classes": [["a", "b"], ["c", "d"]], "train.remat": [True, False], "x.y": [0, 1]}
    )[:-1],
    "many of each": grid(
        {**BASELINE, "train.seed": [1, 2], "a.b": [*range(9)]}, diverged=range(0, 300, 7)
    ),
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_gives_four_pictures_with_nothing_cut_off(tmp_path, drawn, name):
    by_key = {trial["key"]: trial for trial in GRIDS[name]}
    figures.draw(GRIDS[name], lambda of: arrays(by_key[of]), {}, tmp_path / "figures")
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["accuracy.png", "curves.png", "grid.png", "parallel.png"]
    for figure, file in zip(drawn, ("grid", "parallel", "accuracy", "curves"), strict=True):
        with Image.open(tmp_path / "figures" / f"{file}.png") as image:
            pixels = np.asarray(image.convert("L"))
        # Nothing is drawn up to the border.
        assert all((side == 255).all() for side in (pixels[0], pixels[-1], pixels[:, -1]))
        assert (figure.get_size_inches() < 11).all()


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_heat_maps_hold_the_mean_and_the_best_of_each_cell(tmp_path, drawn):
    records = GRIDS["the baseline's"]
    landscape.heat_maps(records, tmp_path / "grid.png")
    *panels, _ = drawn[0].axes
    assert len(panels) == 6
    axes = next(p for p in panels if {p.get_xlabel(), p.get_ylabel()} == {"filters", "optimizer"})
    assert axes.get_ylabel() == "optimizer"  # the field of fewer values goes down
    shown = axes.images[0].get_array()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "32", "64"]
    lost = 0
    for row, optimizer in enumerate(("adam", "sgd")):
        for column, filters in enumerate((8, 32, 64)):
            cell = [
                trial
                for trial in records
                if trial["values"]["train.optimizer"] == optimizer
                and trial["values"]["model.filters"] == filters
            ]
            done = [t["validation"]["accuracy"]["value"] for t in cell if t["validation"]]
            assert shown[row, column] == pytest.approx(np.mean(done))
            told = texts(axes)[3 * row + column].split("\n")
            assert told[:2] == [f"{np.mean(done):.3f}", f"({max(done):.3f})"]
            assert told[2:] == ([f"{9 - len(done)} lost"] if len(done) < 9 else [])
            lost += 9 - len(done)
    assert lost == 2


def test_words_are_in_the_order_of_the_grid_whichever_trial_ended_first(tmp_path, drawn):
    records = GRIDS["backbones alone"][::-1]
    by_key = {trial["key"]: trial for trial in records}
    figures.draw(records, lambda of: arrays(by_key[of]), BACKBONES, tmp_path)
    across = [label.get_text() for label in drawn[0].axes[0].get_xticklabels()]
    assert across == BACKBONES["model.name"]


def test_of_many_fields_the_strongest_four_are_shown(tmp_path, drawn):
    records = grid({f"a.{name}": [1, 2] for name in "bcdefg"})
    for trial in records:
        trial["validation"]["accuracy"]["value"] = 0.5 + sum(
            share * (trial["values"][f"a.{name}"] - 1)
            for name, share in zip("bcdefg", (0.1, 0, 0.03, 0.05, 0.001, 0.04), strict=True)
        )
    landscape.heat_maps(records, tmp_path / "grid.png")
    shown = {(axes.get_ylabel(), axes.get_xlabel()) for axes in drawn[0].axes[:-1]}
    assert shown == {("b", "d"), ("b", "e"), ("b", "g"), ("d", "e"), ("d", "g"), ("e", "g")}
    for trial in records:
        if trial["values"]["a.f"] == 2:  # nothing decides more than what no trial survives
            trial |= {"status": "diverged", "validation": None}
    landscape.heat_maps(records, tmp_path / "grid.png")
    assert any("f" in (axes.get_ylabel(), axes.get_xlabel()) for axes in drawn[1].axes[:-1])


def test_parallel_lines_pass_their_values_and_end_at_their_accuracy(tmp_path, drawn):
    records = GRIDS["the baseline's"]
    landscape.parallel(records, tmp_path / "parallel.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        *("filters", "dropout", "learning rate", "optimizer"),
        "validation accuracy",
    ]
    places = {text.get_text(): text.xy for text in axes.texts}
    lines = [path.vertices for path in axes.collections[0].get_paths()]
    assert len(lines) == 54
    best = selection.best_first(records)
    for line, trial in ((lines[-1], best[0]), (lines[2], best[-1])):
        for k, value in enumerate(trial["values"].values()):
            _, place = places[labels.text(value)]
            assert np.interp(k, line[:, 0], line[:, 1]) == pytest.approx(place, abs=0.07)
    # Evenly by magnitude, words from top to bottom.
    assert places["1e-4"][1] - places["1e-5"][1] == pytest.approx(0.5)
    assert places["0.001"][1] - places["1e-4"][1] == pytest.approx(0.5)
    assert places["adam"][1] > places["sgd"][1]
    ends = np.array([line[-1, 1] for line in lines])
    assert (ends[:2] < -0.1).all() and places["lost: 2"][1] < -0.1
    reached = [trial["validation"]["accuracy"]["value"] for trial in best[::-1]]
    np.testing.assert_allclose(ends[2:], (reached - np.min(reached)) / np.ptp(reached), atol=1e-9)
    (thick,) = (line for line in axes.lines if line.get_linewidth() > 2)
    np.testing.assert_array_equal(thick.get_xydata(), lines[-1])


def test_a_field_of_similar_numbers_is_linear():
    np.testing.assert_allclose(landscape._spaced([0.2, 0.3, 0.4]), [0, 0.5, 1])
    np.testing.assert_allclose(landscape._spaced([0, 1, 10]), [0, 0.1, 1])
    np.testing.assert_allclose(landscape._spaced([1, 10, 100]), [0, 0.5, 1])
    np.testing.assert_allclose(landscape._spaced([7]), [0.5])


def test_accuracies_are_sorted_the_winners_seeds_marked_and_lost_trials_told(tmp_path, drawn):
    fields = {"train.learning_rate": [0.1, 0.01, 0.001]}
    records = grid(fields, seeds=3, diverged=(1,))
    records.append(record(9, {"train.learning_rate": 1.0}, status="out_of_memory"))
    figures.accuracies(records, tmp_path / "accuracy.png")
    (axes,) = drawn[0].axes
    winner = selection.ranking(records)[0]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    best = selection.best_first(records)
    assert rows == [
        *(f"learning rate {t['values']['train.learning_rate']:g}, seed {t['seed']}" for t in best),
        *("learning rate 0.1, seed 1", "learning rate 1, seed 0"),
    ]
    assert texts(axes) == ["✗ diverged", "✗ out of memory"]
    found = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        for (value, place), bar in zip(line.get_xydata(), bars.get_segments(), strict=True):
            found[round(place)] = (value, *bar[:, 0], to_hex(line.get_color()))
    for place, trial in enumerate(best):
        of = trial["validation"]["accuracy"]
        colour = "#d55e00" if trial["key"] in winner["keys"] else "#0072b2"
        assert found[place][:3] == pytest.approx((of["value"], of["low"], of["high"]))
        assert found[place][3] == colour
    assert len(found) == 8
    assert f"{winner['accuracy']['value']:.3f} [" in drawn[0].get_suptitle()


def test_curves_are_of_the_ten_best_with_their_best_epochs(tmp_path, drawn):
    records = GRIDS["the baseline's"]
    asked = []

    def arrays_of(name):
        asked.append(name)
        return arrays(next(trial for trial in records if trial["key"] == name))

    figures.draw(records, arrays_of, BASELINE, tmp_path)
    best = selection.best_first(records)[:10]
    assert asked == [trial["key"] for trial in best]
    for axes, column in zip(drawn[-1].axes, (2, 3), strict=True):
        assert len(axes.lines) == 20
        for k, trial in enumerate(best):
            curve, dot = axes.lines[2 * k : 2 * k + 2]
            history = arrays(trial)["history"]
            np.testing.assert_array_equal(curve.get_ydata(), history[:, column])
            np.testing.assert_array_equal(curve.get_xdata(), range(1, len(history) + 1))
            (epoch, value), last = dot.get_xydata()[0], trial["best_epoch"]
            assert (epoch, value) == (last, history[last - 1, column])
    looks = {(curve.get_color(), curve.get_linestyle()) for curve in drawn[-1].axes[0].lines[::2]}
    assert len(looks) == 10


def test_names_and_values_are_as_short_as_they_can_be():
    assert labels.short(["model.head.dropout", "model.dropout", "train.learning_rate"]) == {
        "model.head.dropout": "head.dropout",
        "model.dropout": "model.dropout",
        "train.learning_rate": "learning rate",
    }
    assert labels.short(["model.name", "data.name", "seed"]) == {
        "model.name": "model",
        "data.name": "data",
        "seed": "seed",
    }
    told = {0.001: "0.001", 1e-4: "1e-4", 0.00035: "3.5e-4", 1e-10: "1e-10", 0.0: "0", 3.0: "3"}
    assert {value: labels.text(value) for value in told} == told
    assert labels.text([16, 4]) == "16, 4" and labels.text(True) == "True"
    values = {"model.name": "vgg", "train.learning_rate": 1e-5, "train.class_weights": "none"}
    names = labels.short([*values, "a.b"])
    assert labels.point(values, names, 3) == "vgg, learning rate 1e-5, class weights none, seed 3"


def test_levels_are_by_size_or_as_they_come():
    records = [record(k, {"a": a, "b": b}) for k, (a, b) in enumerate([(3, "z"), (1, "a"), (3, 2)])]
    assert (labels.levels(records, "a"), labels.levels(records, "b")) == ([1, 3], ["z", "a", 2])
    assert labels.varied([record(0, {"a": 1, "b": 2}), record(1, {"a": 1, "b": 3})]) == ["b"]
    assert key(1) == records[1]["key"]
