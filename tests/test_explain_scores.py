"""Scores of maps against plain loops and known answers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from cxrjax.explain import perturbation, scores
from cxrjax.models.grid import Grid, pixels


def test_share_inside_counts_positive_evidence_only():
    maps = np.zeros([3, 4, 4])
    maps[0, 0, 0], maps[0, 3, 3], maps[0, 1, 1] = 3, 1, -5
    maps[1] = -1
    maps[2] = 1
    region = np.zeros([4, 4], bool)
    region[:2] = True
    np.testing.assert_allclose(scores.share_inside(maps, region), [0.75, np.nan, 0.5])


def test_pointing_game():
    maps = np.zeros([4, 4, 4])
    maps[0, 1, 1], maps[1, 3, 3], maps[2] = 1, 1, -1
    maps[3, 1, 1] = 1
    regions = np.zeros([4, 4, 4], bool)
    regions[:3, :2, :2] = True
    np.testing.assert_array_equal(scores.pointing(maps, pixels(4), regions), [1, 0, np.nan, np.nan])


@pytest.mark.parametrize("flipped", [slice(None), slice(None, None, -1)])
def test_a_map_points_at_the_centre_of_its_cell(flipped):
    """Beyond the centre of an outermost cell an enlarged map is as large all the way to the edge;
    the centre of this cell lies between four pixels, whichever way the film is turned."""
    maps, regions = np.zeros([3, 8, 8]), np.zeros([3, 64, 64], bool)
    maps[:, 0, 0] = 1
    regions[0, 2:7, 2:7] = regions[1, 4:, :4] = regions[2, :4] = True
    raw, inside = (a[:, flipped, flipped] for a in (maps, regions))
    np.testing.assert_array_equal(scores.pointing(raw, Grid(3.5, 8, 8, 64), inside), [1, 0, 1])
    far = np.zeros([1, 7, 7])
    far[0, 6, 6] = 1  # of a network that looks at the last pixels
    last = np.zeros([1, 224, 224], bool)
    last[0, 222:, 222:] = True
    assert scores.pointing(far, Grid(31, 32, 7, 224), last) == 1


@pytest.mark.parametrize("size", [8, 64, 224])
def test_the_border_lies_at_the_edge(size):
    band = scores.border(size)
    assert band[0].all() and band[:, -1].all() and not band[size // 2, size // 2]
    np.testing.assert_array_equal(band, band[::-1].T)


def test_agreement_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 6, 4, 4)).astype(float)
    ours = scores.agreement(a, b)
    theirs = [spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ours, theirs)
    assert np.isnan(scores.agreement(a, b * 0)).all()


def test_intervals_draw_whole_groups():
    values = np.repeat([0.0, 1.0, 0.0, 1.0], 50)
    alone = scores.mean_interval(values, np.arange(200))
    grouped = scores.mean_interval(values, np.repeat(np.arange(4), 50))
    assert alone["value"] == grouped["value"] == 0.5 and alone["n"] == 200
    assert grouped["high"] - grouped["low"] > 3 * (alone["high"] - alone["low"])
    assert scores.mean_interval(values * np.nan, np.arange(200))["n"] == 0
    assert scores.mean_interval(values, np.zeros(200, int))["low"] is None


def entry(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 9}


def test_a_share_of_hits_is_not_certain_where_all_are():
    found = scores.mean_interval(np.ones(12), np.arange(12))
    assert (found["value"], found["high"], found["n"]) == (1, 1, 12)
    assert found["low"] == pytest.approx(0.025 ** (1 / 12))


def test_sentences_claim_only_what_intervals_support():
    even = entry(0.4, 0.4, 0.4)
    share = {
        "all": entry(0.5, 0.45, 0.55),
        "right": entry(0.6, 0.55, 0.65),
        "wrong": entry(0.4, 0.3, 0.5),
    }
    more = " ".join(scores.sentences(share, even, "inside"))
    assert "More evidence" in more and "more where the prediction is right" in more
    share["all"], share["wrong"] = entry(0.5, 0.35, 0.65), entry(0.5, 0.3, 0.6)
    unsure = " ".join(scores.sentences(share, even, "inside"))
    assert "not shown" in unsure and "No difference" in unsure
    share["all"] = entry(0.2, 0.1, 0.3)
    assert "Less evidence" in scores.sentences(share, even, "inside")[0]
    share["all"] = {"value": None, "low": None, "high": None, "n": 0}
    assert "Too few" in scores.sentences(share, even, "inside")[0]


def solved_by_hand(image, removed):
    """ROAD's linear system written out pixel by pixel, one row for each that is removed."""
    places = list(zip(*np.nonzero(removed), strict=True))
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for i, (y, x) in enumerate(places):
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            beside = y + dy, x + dx
            if (dy, dx) == (0, 0) or not (0 <= beside[0] < 9 and 0 <= beside[1] < 11):
                continue
            weight = 1 / 12 if dy and dx else 1 / 6
            matrix[i, i] += weight
            if removed[beside]:
                matrix[i, places.index(beside)] -= weight
            else:
                right[i] += weight * image[beside]
    filled = image.astype(float)
    filled[removed] = np.linalg.solve(matrix, right)
    return filled


def test_imputation_solves_the_linear_system(monkeypatch):
    monkeypatch.setattr(perturbation, "_NOISE", 0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 9, 11)).astype(np.uint8)
    removed = rng.random((4, 9, 11)) < np.array([0.1, 0.5, 0.9, 0.0])[:, None, None]
    removed[1, 2:7, 3:9] = True
    filled = perturbation.impute(images, removed, np.arange(4))
    by_hand = np.stack([solved_by_hand(*each) for each in zip(images, removed, strict=True)])
    assert np.abs(filled - by_hand).max() < 1.5
    nothing_left = perturbation.impute(images[:1], np.ones((1, 9, 11), bool), np.arange(1))
    assert (nothing_left == round(float(images[0].mean()))).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_imputed_pixels_lie_between_those_that_are_left(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 120, (1, 9, 11)).astype(np.uint8)
    removed = rng.random((1, 9, 11)) < rng.random()
    filled = perturbation.impute(images, removed, np.array([seed]))
    np.testing.assert_array_equal(filled[~removed], images[~removed])
    slack = 5 * 255 * 0.01
    assert filled.min() >= 100 - slack and filled.max() <= 120 + slack


def test_removing_what_counts_lowers_the_score_most():
    """A classifier that looks at one square alone."""
    images = np.random.default_rng(0).integers(0, 60, (4, 16, 16)).astype(np.uint8)
    images[:, 4:8, 4:8] = 250

    def predict(x):
        p = x[:, 4:8, 4:8].mean((1, 2)) / 255
        return np.stack([1 - p, p], axis=1)

    true = np.zeros((4, 16, 16))
    true[:, 4:8, 4:8] = 1
    classes = np.ones(4, int)
    good, bad = (perturbation.curves(predict, images, m, classes) for m in (true, -true))
    share = good["share"]
    down = [perturbation.area(c["deletion"], share).mean() for c in (good, bad)]
    up = [perturbation.area(c["insertion"], share).mean() for c in (good, bad)]
    assert down[0] < 0.4 < 0.8 < down[1]
    assert up[0] > 0.8 > 0.4 > up[1]
    np.testing.assert_allclose(good["deletion"][:, 0], predict(images)[:, 1])
