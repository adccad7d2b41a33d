"""Conformal thresholds against the definition, and the promise they make."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import conformal


def case(n, k=3, seed=0, grid=None):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    scores = rng.uniform(0.05, 1, (n, k))
    scores[np.arange(n), labels] += 0.7
    if grid:
        scores = np.ceil(scores * grid)
    return scores / scores.sum(axis=1, keepdims=True), labels


def plain_threshold(own, level):
    """Quantile of the scores 1 - p of a class, as in Angelopoulos & Bates, section 1."""
    rank = math.ceil(round((len(own) + 1) * level, 6))
    return 1 - np.sort(1 - own)[rank - 1] if rank <= len(own) else 0.0


def grouped_threshold(own, groups, level):
    """The highest of the probabilities below which the groups' shares add up to little enough."""
    names, sizes = np.unique(groups, return_counts=True)
    share = {name: Fraction(1, int(size)) for name, size in zip(names, sizes, strict=True)}
    most = len(names) - (len(names) + 1) * Fraction(str(level))
    below = {p: sum((share[g] for q, g in zip(own, groups, strict=True) if q < p)) for p in own}
    return max((p for p, mass in below.items() if mass <= most), default=0.0)


@given(
    n=st.sampled_from([0, 9, 29, 60]),
    seed=st.integers(0, 10**6),
    level=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
    grid=st.sampled_from([None, 4]),
)
@settings(max_examples=40, deadline=None)
def test_thresholds_are_those_of_the_definition(n, seed, level, grid):
    probabilities, labels = case(n + 1, seed=seed, grid=grid)
    got = conformal.fit(probabilities, labels, np.arange(n + 1), level)
    wanted = [plain_threshold(probabilities[labels == c, c], level) for c in range(3)]
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@given(
    of=st.lists(st.integers(0, 8), min_size=1, max_size=40),
    seed=st.integers(0, 10**6),
    level=st.sampled_from([0.5, 0.75, 0.8, 0.9]),
    grid=st.sampled_from([None, 4]),
)
@settings(max_examples=60, deadline=None)
def test_the_images_of_a_group_share_a_mass_of_one(of, seed, level, grid):
    probabilities, labels = case(len(of), seed=seed, grid=grid)
    got = conformal.fit(probabilities, labels, np.array(of), level)
    for c in range(3):
        own = labels == c
        wanted = grouped_threshold(probabilities[own, c], np.array(of)[own], level)
        assert got[c] == pytest.approx(wanted, abs=1e-12)


def test_an_image_on_the_threshold_is_inside():
    probabilities, labels = case(50)
    least = conformal.fit(probabilities, labels, np.arange(50), 0.9)
    for c in range(3):
        own = probabilities[labels == c]
        assert conformal.sets(own, least)[:, c].mean() >= 0.9
        assert (own[:, c] == least[c]).any()


def test_each_class_is_covered_as_often_as_asked():
    """Over many draws: the mean lies between the level and the level + 1 / (n + 1)."""
    held = np.zeros([600, 3])
    for trial in range(600):
        probabilities, labels = case(60, seed=trial)
        new, truth = case(300, seed=10_000 + trial)
        chosen = conformal.sets(new, conformal.fit(probabilities, labels, np.arange(60), 0.8))
        held[trial] = [chosen[truth == c, c].mean() for c in range(3)]
    error = held.std(axis=0) / np.sqrt(len(held))
    assert (held.mean(axis=0) > 0.8 - 3 * error).all()
    assert (held.mean(axis=0) < 0.8 + 1 / 15 + 3 * error).all()


def test_new_patients_are_covered_as_often_as_asked_though_their_films_are_alike():
    """Eight patients, twelve films each: counted as images they would be covered too seldom."""
    held = {"groups": [], "images": []}
    for trial in range(600):
        rng = np.random.default_rng(trial)
        patients = np.clip(rng.normal(0.6, 0.2, [2, 8, 1]) + rng.normal(0, 0.01, [2, 8, 12]), 0, 1)
        films = patients.reshape(2, -1)
        old, new = (np.stack([p, 1 - p], axis=1) for p in films)
        zeros, member = np.zeros(96, int), np.repeat(np.arange(8), 12)
        for name, groups in (("groups", member), ("images", np.arange(96))):
            least = conformal.fit(old, zeros, groups, 0.8)
            held[name].append(conformal.sets(new, least)[:, 0].mean())
    mean = {name: np.mean(shares) for name, shares in held.items()}
    error = np.std(held["groups"]) / np.sqrt(600)
    assert 0.8 - 3 * error < mean["groups"] < 0.8 + 1 / 9 + 3 * error
    assert mean["images"] < 0.8 - 3 * error


def test_the_table_counts():
    chosen = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    labels = np.array([0, 0, 1, 1, 1])
    table = conformal.coverage_table(chosen, labels, np.arange(5), ("a", "b", "c"), 200, 0)
    assert list(table) == ["all", "a", "b", "c"]
    assert [table["all"][name]["value"] for name in ("coverage", "size", "single", "empty")] == [
        pytest.approx(value) for value in (0.8, 8 / 5, 0.2, 0.2)
    ]
    assert table["a"]["coverage"] == {
        "value": 1, "low": pytest.approx(0.025**0.5), "high": 1, "n": 2,
    }  # fmt: skip
    assert table["b"]["coverage"]["value"] == pytest.approx(2 / 3)
    assert table["b"]["size"]["value"] == pytest.approx(5 / 3) and table["b"]["size"]["n"] == 3
    assert table["c"]["coverage"] == {"value": None, "low": None, "high": None, "n": 0}
