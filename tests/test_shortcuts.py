"""Shortcut audit: views take away what they say, the score tells readers of tags from readers of
lungs."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cxrjax import verdict
from cxrjax.audit import figures, shortcuts
from cxrjax.data.phantom import PhantomSource

CLASSES = ("a", "b", "c")
N, SIDE = 240, 32


@pytest.fixture(scope="module")
def films():
    """Noise in which the class is the grey of a tag outside the lungs, and of a spot inside."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=N)
    images = rng.integers(60, 90, (N, SIDE, SIDE)).astype(np.uint8)
    masks = np.zeros((N, SIDE, SIDE), bool)
    masks[:, 8:24, 6:14] = masks[:, 8:24, 18:26] = True
    images[:, 14:18, 8:12] = (labels * 60 + 60)[:, None, None]
    images[:, 1:4, 1:4] = (labels * 60 + 60)[:, None, None]
    return images, masks, labels


def reader(rows: slice, columns: slice):
    """A classifier that looks at one place only."""

    def predict(images: np.ndarray) -> np.ndarray:
        grey = images[:, rows, columns].mean(axis=(1, 2))
        logits = -np.abs(grey[:, None] - np.array([60.0, 120, 180])) / 20
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    return predict


TAG, SPOT = reader(slice(1, 4), slice(1, 4)), reader(slice(14, 18), slice(8, 12))


def measured(films, predict, **options):
    images, masks, labels = films
    groups = np.arange(N)
    return shortcuts.measure(predict, images, masks, labels, CLASSES, groups, **options)


def test_a_reader_of_the_tag_keeps_all_it_knows_without_lungs(films):
    found = measured(films, TAG)
    assert found["score"]["value"] == pytest.approx(1) and found["score"]["low"] > 0.95
    assert found["views"]["lungs_only"]["auroc"]["value"] == pytest.approx(0.5)
    assert found["views"]["borders_only"]["auroc"]["value"] > 0.95
    assert found["views"]["centre_only"]["auroc"]["value"] < 0.6


def test_a_reader_of_the_lungs_keeps_nothing(films):
    found = measured(films, SPOT)
    assert found["score"]["value"] == pytest.approx(0) and found["score"]["n"] == N
    assert found["views"]["lungs_only"]["auroc"]["value"] > 0.95
    assert found["views"]["intact"]["accuracy"]["value"] == 1


def test_a_reader_of_both_lies_between(films):
    def both(images):
        return (3 * SPOT(images) + TAG(images)) / 4

    score = measured(films, both, views=("without_lungs",))["score"]
    assert score["low"] > 0.5


def test_a_score_for_each_view_it_can_rest_on(films):
    """The grey of flat lungs is their mean, and the spot shifts it: only black lungs hide that."""
    found = measured(films, SPOT, resamples=400)
    assert set(found["scores"]) == {"without_lungs", "flat_lungs"}
    assert found["scores"]["without_lungs"] == found["score"]
    assert found["score"]["high"] < 0.1 and found["scores"]["flat_lungs"]["low"] > 0.5
    views = found["views"]
    kept = [views[name]["auroc"]["value"] - 0.5 for name in ("intact", "flat_lungs")]
    assert found["scores"]["flat_lungs"]["value"] == pytest.approx(kept[1] / kept[0])
    # Cut to the lungs alone, a film with black ones is black: no score rests on that.
    cut = measured(films, SPOT, without="flat_lungs", resamples=400)
    assert cut["scores"] == {"flat_lungs": cut["score"]}
    assert cut["score"] == found["scores"]["flat_lungs"]


def test_films_without_lungs_do_not_count_as_known_without_lungs(films, tmp_path, drawn):
    """Whatever is done to lungs leaves such a film as it is."""
    images, masks, labels = films
    some = masks & (np.arange(N) % 4 > 0)[:, None, None]
    found = measured((images, some, labels), SPOT, resamples=200)
    assert found["score"]["value"] == pytest.approx(0) and found["score"]["n"] == 3 * N / 4
    counted = {name: view["accuracy"]["n"] for name, view in found["views"].items()}
    whole = {"intact", "borders_only", "centre_only", "blurred_8x8"}
    assert counted == {name: N if name in whole else 3 * N / 4 for name in counted}
    none = measured((images, masks & False, labels), SPOT, resamples=200)
    unknown = {"value": None, "low": None, "high": None, "n": 0}
    assert none["score"] == none["scores"]["flat_lungs"] == unknown
    assert none["views"]["lungs_only"]["auroc"] == unknown
    assert none["views"]["blurred_8x8"]["auroc"]["n"] == N
    assert verdict.word(0, none["score"]) == "UNCERTAIN"
    figures.shortcut_views(none, images[0], masks[0], tmp_path / "shortcuts.png")
    assert "undefined, n = 0" in drawn[0].axes[-1].get_title()


def test_a_network_at_chance_has_no_score(films):
    score = measured(films, lambda images: np.full((len(images), 3), 1 / 3))["score"]
    assert score == {"value": None, "low": None, "high": None, "n": N}


@pytest.mark.filterwarnings("error")
def test_images_of_one_class_have_no_score():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 20)
    labels, groups = np.ones(20, int), np.arange(20)
    score = shortcuts.shortcut_score(labels, probabilities, probabilities, groups, 50)
    assert score == {"value": None, "low": None, "high": None, "n": 20}


def test_the_score_is_that_of_scikit_learns_auroc(films):
    _, _, labels = films
    rng = np.random.default_rng(1)
    intact = rng.dirichlet(np.ones(3), N)
    intact[np.arange(N), labels] += 0.3
    without = rng.dirichlet(np.ones(3), N)
    without[np.arange(N), labels] += 0.1
    intact, without = (p / p.sum(1, keepdims=True) for p in (intact, without))
    before, after = (
        roc_auc_score(labels, p, multi_class="ovr", average="macro") for p in (intact, without)
    )
    score = shortcuts.shortcut_score(labels, intact, without, np.arange(N), 400)
    assert score["value"] == pytest.approx((after - 0.5) / (before - 0.5))
    assert score["low"] < score["value"] < score["high"]
    # Copies of every film in its group say nothing new: the interval stays as wide.
    twice = shortcuts.shortcut_score(
        np.tile(labels, 2), np.tile(intact, (2, 1)), np.tile(without, (2, 1)),
        np.tile(np.arange(N), 2), 400,
    )  # fmt: skip
    assert twice["high"] - twice["low"] == pytest.approx(score["high"] - score["low"], rel=0.2)


def test_views_share_out_the_pixels(films):
    images, masks, _ = films
    for one, other in (("lungs_only", "without_lungs"), ("borders_only", "centre_only")):
        parts = [shortcuts.VIEWS[name](images[0], masks[0]) for name in (one, other)]
        assert (parts[0].astype(int) + parts[1] == images[0]).all()
        assert ((parts[0] == 0) | (parts[1] == 0)).all()
    black = shortcuts.without_lungs(images[0], masks[0]) == 0
    assert black[masks[0]].all() and black.sum() > masks[0].sum()
    coarse = shortcuts.blurred(images[0], masks[0])
    assert coarse.shape == images[0].shape and coarse.dtype == np.uint8
    assert np.abs(np.diff(coarse.astype(int), axis=0)).max() < 60


@pytest.mark.parametrize("size", [64, 160])
def test_markers_are_inpainted(size):
    marked, clean = PhantomSource(12, 3, marker=1.0), PhantomSource(12, 3)
    for i in range(12):
        image, lung = marked.read(i, size), marked.read_mask(i, size) > 0
        bare = clean.read(i, size).astype(int)
        tag = np.abs(image - bare) > 40
        painted = shortcuts.markers_inpainted(image, lung)
        assert (painted[lung] == image[lung]).all()
        before, after = (np.abs(x - bare)[tag].mean() for x in (image.astype(int), painted))
        assert after < 0.6 * before
