"""Figures show what they claim, whatever the run looked like, and are replaced in one step."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cxrjax import figures

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def history(epochs, classes=CLASSES):
    return [
        {
            "epoch": e,
            "split": split,
            "loss": 1 / e + (split == "validation"),
            "accuracy": 1 - 0.5 / e,
            "recall": {c: (k + 1) / (len(classes) + e) for k, c in enumerate(classes)},
        }
        for e in range(1, epochs + 1)
        for split in ("train", "validation")
    ]


def is_picture(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 200
        assert len(np.unique(np.asarray(image.convert("L")))) > 10
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left
    return True


def test_curves_tell_images_trained_on(tmp_path, drawn):
    lines = history(3)
    for line in lines[1::2]:
        line["trained_on"] = True
    figures.curves(lines, 3, tmp_path / "curves.png")
    told = drawn[0].axes[0].get_legend_handles_labels()[1]
    assert told == ["train", "validation, trained on"]
    assert "epoch 3, the last: validation images were trained on" in drawn[0].get_suptitle()


def test_curves_hold_the_history_and_mark_the_best_epoch(tmp_path, drawn):
    lines = history(7)
    lines[4]["loss"] = None  # as a diverged epoch is read back from metrics.jsonl
    figures.curves(lines, 4, tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")
    loss, accuracy, recall = drawn[0].axes
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for line, split in zip(axes.get_lines(), ("train", "validation"), strict=False):
            assert line.get_label() == split
            wanted = [part[name] for part in lines if part["split"] == split]
            np.testing.assert_array_equal(line.get_ydata(), np.array(wanted, float))
            np.testing.assert_array_equal(line.get_xdata(), range(1, 8))
    assert np.isnan(loss.get_lines()[0].get_ydata()[2])
    shown = {line.get_label(): line.get_ydata() for line in recall.get_lines()}
    for name in CLASSES:
        wanted = [part["recall"][name] for part in lines if part["split"] == "validation"]
        np.testing.assert_array_equal(shown[name.replace("_", " ")], wanted)
    for axes in drawn[0].axes:
        assert axes.get_lines()[-1].get_xdata()[0] == 4 and axes.get_xlabel() == "epoch"
    looks = [(line.get_color(), line.get_marker()) for line in recall.get_lines()[:-1]]
    assert len({c for c, _ in looks}) == len({m for _, m in looks}) == 4  # not by colour alone


@pytest.mark.parametrize(
    ("epochs", "classes"), [(1, CLASSES[:2]), (300, CLASSES[:2]), (3, [*"abcdefgh"])]
)
def test_curves_of_any_length_and_number_of_classes(tmp_path, drawn, epochs, classes):
    figures.curves(history(epochs, classes), 1, tmp_path / "curves.png")
    assert is_picture(tmp_path / "curves.png")
    for axes in drawn[0].axes:
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks and all(tick == round(tick) for tick in ticks)
        bottom, top = axes.get_ylim()
        values = np.concatenate([line.get_ydata() for line in axes.get_lines()[:-1]])
        assert bottom <= values.min() and values.max() <= top
    looks = {(ln.get_color(), ln.get_linestyle()) for ln in drawn[0].axes[2].get_lines()[:-1]}
    assert len(looks) == len(classes)


def test_confusion_matrix_shows_counts_and_row_percentages(tmp_path, drawn):
    matrix = np.array([[6, 2, 0, 0], [0, 3, 0, 0], [1, 1, 1230, 2], [0, 0, 0, 0]])
    figures.confusion_matrix(matrix, CLASSES, "test split", tmp_path / "matrix.png")
    assert is_picture(tmp_path / "matrix.png")
    axes = drawn[0].axes[0]
    cells = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts
    }
    assert cells[0, 0] == "6\n75.0%" and cells[0, 1] == "2\n25.0%"
    assert cells[2, 2] == "1,230\n99.7%" and cells[2, 0] == "1\n0.1%"
    assert cells[3, 3] == "0\n–"  # no such example: no percentage
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.75, 0.25, 0, 0])
    assert axes.get_title() == "test split, n = 1,245"
    assert [t.get_text() for t in axes.get_xticklabels()][3] == "Viral Pneumonia"
    assert axes.get_yticklabels()[0].get_text() == "COVID\nn = 8"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def case(n=60, mistakes=20, k=4):
    """A store in which image i is all of grey level i, and predictions with so many mistakes."""
    store = np.broadcast_to(np.arange(200, dtype=np.uint8)[:, None, None], (200, 16, 16))
    labels = np.arange(n) % k
    predicted = np.where(np.arange(n) < mistakes, (labels + 1) % k, labels)
    probabilities = np.full([n, k], 0.1)
    probabilities[np.arange(n), predicted] = 0.1 * (11 - k)
    positions = 199 - np.arange(n)
    names = [f"images/case-{p}.png" for p in positions]
    return store, positions, labels, probabilities, names


@pytest.mark.parametrize(
    ("n", "mistakes", "wrong", "right"),
    [(60, 20, 6, 6), (60, 0, 0, 12), (60, 2, 2, 10), (60, 57, 9, 3), (5, 5, 5, 0), (1, 0, 0, 1)],
)
def test_images_stand_beside_their_own_labels(tmp_path, drawn, n, mistakes, wrong, right):
    store, positions, labels, probabilities, names = case(n, mistakes)
    path = tmp_path / "images.png"
    figures.test_images(store, positions, labels, probabilities, CLASSES, names, path)
    assert is_picture(path)
    title = drawn[0].get_suptitle()
    assert f"n = {n}: {wrong} of {mistakes} wrong" in title
    assert f"{right} of {n - mistakes} right" in title
    panels = [axes for axes in drawn[0].axes if axes.images]
    assert len(panels) == wrong + right
    levels, marks = [], []
    for axes in panels:
        level = int(axes.images[0].get_array()[0, 0])
        i = 199 - level
        true = CLASSES[labels[i]].replace("_", " ")
        told = CLASSES[probabilities[i].argmax()].replace("_", " ")
        mark = "✓" if true == told else "✗"
        assert axes.get_title(loc="left") == f"true: {true}\n{mark} {told} 70%"
        assert axes.get_xlabel() == f"case-{level}.png"
        frames = {spine.get_linewidth() for spine in axes.spines.values()}
        assert frames == ({1} if true == told else {4})
        levels.append(level)
        marks.append(mark)
    assert len(set(levels)) == len(levels)
    assert marks == ["✗"] * wrong + ["✓"] * right


def test_the_sample_takes_classes_in_turn_however_rare_they_are():
    labels = np.repeat(np.arange(4), [900, 50, 40, 2])
    predicted = np.where(np.arange(992) % 2, labels, (labels + 1) % 4)
    wrong, right = figures._sample(labels, predicted)
    np.testing.assert_array_equal(np.sort(np.bincount(labels[wrong])), [1, 1, 2, 2])
    np.testing.assert_array_equal(np.sort(np.bincount(labels[right])), [1, 1, 2, 2])
    assert (predicted != labels)[wrong].all() and (predicted == labels)[right].all()
    again = figures._sample(labels, predicted)
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([wrong, right]))


def test_a_name_too_long_for_its_panel_keeps_its_end(tmp_path, drawn):
    store, positions, labels, probabilities, _ = case(1, 0)
    names = ["x" * 60 + "-17.png"]
    figures.test_images(
        store, positions, labels, probabilities, CLASSES, names, tmp_path / "images.png"
    )
    label = drawn[0].axes[0].get_xlabel()
    assert label.startswith("…") and label.endswith("-17.png") and len(label) == 30


def test_dollars_in_a_name_are_no_formula(tmp_path, drawn):
    classes = ("m$x_{$b", "$\\frac$")
    figures.confusion_matrix(np.eye(2, dtype=int), classes, "a$_{$b", tmp_path / "matrix.png")
    assert is_picture(tmp_path / "matrix.png")


def test_names_that_are_no_utf_8_are_drawn_as_bytes(tmp_path, drawn):
    classes, path = ("neumon\udceda", "b"), tmp_path / "picture.png"
    store, positions, labels, probabilities, _ = case(2, 1, 2)
    names = ["radiograf\udceda-013.png", "b.png"]
    figures.test_images(store, positions, labels, probabilities, classes, names, path)
    assert is_picture(path) and drawn[0].axes[0].get_xlabel() == "radiograf\\udceda-013.png"
    figures.confusion_matrix(np.eye(2, dtype=int), classes, "test split", path)
    assert is_picture(path)
    assert drawn[1].axes[0].get_xticklabels()[0].get_text() == "neumon\\udceda"
    figures.curves(history(2, classes), 1, path)
    assert is_picture(path)


def test_a_failed_write_leaves_the_old_figure_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "matrix.png"
    path.write_bytes(b"before")

    def fail(self, file, **settings):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        figures.confusion_matrix(np.eye(2, dtype=int), CLASSES[:2], "test split", path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
