"""Names of classes can be read on every picture, however many or long they are."""

import itertools

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.text import Text

from cxrjax import figures, plotting
from cxrjax.explain import pictures

CLASSES = {
    "usual": ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"),
    "many": (
        *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule"),
        *("Pneumonia", "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis"),
        *("Pleural_Thickening", "Hernia"),
    ),
    "long": (
        "Bacterial_pneumonia_confirmed_by_culture",
        "Viral_pneumonia_other_than_COVID-19_2023",
        "No_acute_cardiopulmonary_finding_at_all_",
    ),
    "one word": ("x" * 40, "W" * 40, "m" * 40),
}


def curves(classes, path):
    history = [
        {"epoch": e, "split": split, "loss": 1 / e, "accuracy": 0.5}
        | {"recall": {name: 0.05 * (k + e) for k, name in enumerate(classes)}}
        for e in (1, 2, 3)
        for split in ("train", "validation")
    ]
    figures.curves(history, 2, path)


def predicted(k):
    """Images uint8 [12, 32, 32], labels and probabilities: half are wrong, all classes occur."""
    labels = np.arange(12) % k
    told = np.where(np.arange(12) % 2, labels, (labels + 1) % k)
    probabilities = np.eye(k)[told] * 0.99 + 0.01 / k
    return np.zeros((12, 32, 32), np.uint8), labels, probabilities


def test_images(classes, path):
    images, labels, probabilities = predicted(len(classes))
    names = ["film.png"] * 12
    figures.test_images(images, np.arange(12), labels, probabilities, classes, names, path)


test_images.__test__ = False


def panel(classes, path):
    images, labels, probabilities = predicted(len(classes))
    evidence = np.ones((len(classes), 32, 32))
    args = (probabilities[-2], classes, labels[-2], "f" * 200 + ".png")
    pictures.panel(path, images[0], evidence, 2.0, *args)


def mistakes(classes, path):
    images, labels, probabilities = predicted(len(classes))
    names = ["film.png"] * 12
    pictures.mistakes(path, images, images + 1.0, 2.0, probabilities, classes, labels, names)


def share_histogram(classes, path):
    labels = np.arange(200) % len(classes)
    share = np.random.default_rng(0).random(200)
    pictures.share_histogram(path, share, labels, share > 0.5, classes, "evidence in the lungs")


PICTURES = (curves, test_images, panel, mistakes, share_histogram)


def texts(figure):
    """Every text that is seen, but labels of ticks, and its box."""
    figure.draw_without_rendering()
    ticks = [label for axis in figure.findobj(Axis) for label in axis.get_ticklabels(minor=False)]
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    return [(text, text.get_window_extent()) for text in found if text not in ticks]


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("draw", PICTURES, ids=lambda draw: draw.__name__)
def test_names_neither_overlap_nor_leave_the_figure(tmp_path, drawn, draw, classes):
    draw(CLASSES[classes], tmp_path / "picture.png")
    (figure,) = drawn
    found = texts(figure)
    for text, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1
        assert inside and box.y1 <= figure.bbox.y1 + 1, text.get_text()
    titles = [
        title
        for axes in figure.axes
        for title in (axes.title, axes._left_title)
        if title.get_text()
    ]
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    named = [text for legend in legends for text in legend.get_texts()]
    boxes = [(text, box.shrunk(0.99, 0.9)) for text, box in found if text in (*titles, *named)]
    assert len(boxes) >= 4 or draw is share_histogram
    for (a, first), (b, second) in itertools.combinations(boxes, 2):
        assert not first.overlaps(second), (a.get_text(), b.get_text())
    if classes != "usual" and draw in (curves, share_histogram):
        legend = max(legends, key=lambda legend: len(legend.get_texts())).get_window_extent()
        for axes in figure.axes:
            below = axes.xaxis.label.get_window_extent()
            assert not legend.overlaps(axes.bbox) and not legend.overlaps(below)


def test_a_panel_shows_the_true_the_predicted_and_the_most_probable_classes(tmp_path, drawn):
    classes = CLASSES["many"]
    order = np.random.default_rng(0).permutation(14)
    probabilities = np.empty(14)
    probabilities[order] = (np.arange(14, 0, -1) + 1) / 119  # the first of `order` is predicted
    image, evidence = (
        np.zeros((32, 32), np.uint8),
        np.arange(14.0)[:, None, None] + np.zeros((32, 32)),
    )
    true = int(order[-1])
    pictures.panel(tmp_path / "p.png", image, evidence, 14.0, probabilities, classes, true, "a.png")
    (figure,) = drawn
    shown = [int(axes.images[0].get_array()[0, 0]) for axes in figure.axes[1:7]]
    assert shown == sorted([*order[:5], true])
    assert figure.get_suptitle() == "a.png (8 of 14 classes are not shown)"
    told = [axes.get_title().split("\n")[0] for axes in figure.axes[1:7]]
    assert all(classes[k].startswith(name) for k, name in zip(shown, told, strict=True))
    assert f"{probabilities[true]:.1%}" in figure.axes[1 + shown.index(true)].get_title()
    assert len(figure.axes) == 9  # the film, six classes, the overlay, the scale


def test_a_sheet_of_long_names_is_no_taller(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(pictures, "_ON_A_SHEET", 10)
    for classes in ("usual", "long"):
        mistakes(CLASSES[classes], tmp_path / "sheet.png")
    usual, long = drawn
    assert "(10 shown)" in usual.get_suptitle() and "(5 shown)" in long.get_suptitle()
    assert long.get_figheight() < usual.get_figheight()


def test_classes_are_told_apart_by_their_lines(tmp_path, drawn):
    share_histogram(CLASSES["many"], tmp_path / "share.png")
    patches = drawn[0].axes[0].patches
    assert len({(patch.get_edgecolor(), patch.get_linestyle()) for patch in patches}) == 14


def test_names_are_broken_before_they_are_cut():
    assert plotting.wrapped("Lung_Opacity", 5, 8) == "Lung Opacity"
    assert plotting.wrapped("Lung_Opacity", 0.6, 8) == "Lung\nOpacity"
    cut = plotting.wrapped("Lung_Opacity seen by two readers", 0.6, 8)
    assert cut.startswith("Lung\nOpac") and cut.endswith("…")
    assert plotting.wrapped("neumon\udceda", 5, 8) == "neumon\\udceda"
    assert plotting.cut("a  b_c.png", 5, 8) == "a  b_c.png"
