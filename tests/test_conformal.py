"""Conformal thresholds against the definition, and the promise they make."""

import math

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


@given(
    n=st.sampled_from([0, 9, 29, 60]),
    seed=st.integers(0, 10**6),
    level=st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
    grid=st.sampled_from([None, 4]),
)
@settings(max_examples=40, deadline=None)
def test_thresholds_are_those_of_the_definition(n, seed, level, grid):
    probabilities, labels = case(n + 1, seed=seed, grid=grid)
    got = conformal.fit(probabilities, labels, level)
    wanted = [plain_threshold(probabilities[labels == c, c], level) for c in range(3)]
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_an_image_on_the_threshold_is_inside():
    probabilities, labels = case(50)
    least = conformal.fit(probabilities, labels, 0.9)
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
        chosen = conformal.sets(new, conformal.fit(probabilities, labels, 0.8))
        held[trial] = [chosen[truth == c, c].mean() for c in range(3)]
    error = held.std(axis=0) / np.sqrt(len(held))
    assert (held.mean(axis=0) > 0.8 - 3 * error).all()
    assert (held.mean(axis=0) < 0.8 + 1 / 15 + 3 * error).all()


def test_the_table_counts():
    chosen = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    labels = np.array([0, 0, 1, 1, 1])
    table = conformal.coverage_table(chosen, labels, np.arange(5), ("a", "b", "c"), 200, 0)
    assert list(table) == ["all", "a", "b", "c"]
    assert [table["all"][name]["value"] for name in ("coverage", "size", "single", "empty")] == [
        pytest.approx(value) for value in (0.8, 8 / 5, 0.2, 0.2)
    ]
    assert table["a"]["coverage"] == {"value": 1, "low": 1, "high": 1, "n": 2}
    assert table["b"]["coverage"]["value"] == pytest.approx(2 / 3)
    assert table["b"]["size"]["value"] == pytest.approx(5 / 3) and table["b"]["size"]["n"] == 3
    assert table["c"]["coverage"] == {"value": None, "low": None, "high": None, "n": 0}
