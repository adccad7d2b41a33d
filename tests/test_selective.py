"""Risk, coverage, abstention and operating points against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformal import grouped_threshold

from cxrjax import bootstrap, selective


@given(pairs=st.lists(st.tuples(st.sampled_from([0.5, 0.6, 0.75, 1.0]), st.booleans()), min_size=1))
@settings(max_examples=40, deadline=None)
def test_risk_is_that_of_all_who_are_as_sure(pairs):
    confidence, wrong = (np.array(part) for part in zip(*pairs, strict=True))
    coverage, risk = selective.risk_coverage(confidence, wrong)
    np.testing.assert_allclose(coverage, np.arange(1, len(pairs) + 1) / len(pairs), rtol=1e-6)
    for got, cut in zip(risk, np.sort(confidence)[::-1], strict=True):
        assert got == pytest.approx(wrong[confidence >= cut].mean(), rel=1e-6)


def test_very_sure_answers_are_not_all_as_sure():
    """1 - 1e-9 and 1 - 2e-9 are one number in float32: a tie that hides where the mistakes are."""
    confidence = 1 - np.array([2e-9, 1e-9, 3e-9, 4e-9])
    coverage, risk = selective.risk_coverage(confidence, np.array([False, False, True, True]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 2])


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n", [1, 10, 37])
def test_the_cut_answers_just_enough(coverage, n):
    confidence = np.random.default_rng(n).permutation(n) / n
    cut = selective.abstention_threshold(confidence, coverage)
    assert (confidence >= cut).sum() >= coverage * n - 1e-9
    assert (confidence > cut).sum() < coverage * n


def test_what_is_answered_and_what_is_not():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.45, 0.55]])
    found = selective.answered(np.array([0, 0, 0, 0]), probabilities, np.arange(4), 0.6, 200, 0)
    assert found["coverage"]["value"] == 0.75
    assert found["accuracy_answered"]["value"] == pytest.approx(2 / 3)
    assert found["accuracy_answered"]["n"] == 3
    assert found["accuracy_abstained"] == {
        "value": 0, "low": 0, "high": pytest.approx(0.975), "n": 1,
    }  # fmt: skip
    everything = selective.answered(np.zeros(4, int), probabilities, np.arange(4), 0, 200, 0)
    assert everything["accuracy_abstained"]["value"] is None


def scored(n, seed, grouped):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.4, 0.4, 0.2])
    scores = np.clip(rng.normal(0.3 + 0.3 * (labels[:, None] == np.arange(3)), 0.2), 0, 1)
    return scores.round(2), labels, rng.integers(0, n // 2, n) if grouped else np.arange(n)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("required", [0.8, 0.95])
def test_operating_points_are_those_of_a_plain_double_bootstrap(grouped, required):
    validation, test = scored(60, 1, grouped), scored(80, 2, grouped)
    found = selective.operating_points(validation, test, required, 200, 7)
    first = np.concatenate(list(bootstrap.weights(validation[2], 200, 8))).astype(int)
    second = np.concatenate(list(bootstrap.weights(test[2], 200, 7))).astype(int)
    for k, point in enumerate(found):
        fitted = []
        for v in (np.ones(60, int), *first):
            own = np.repeat(validation[1], v) == k
            copies = np.concatenate([np.arange(times) for times in v])
            drawn = 1000 * np.repeat(validation[2], v) + copies  # a group drawn twice is two
            scores = np.repeat(validation[0][:, k], v)[own]
            fitted.append(grouped_threshold(scores, drawn[own], required))
        assert point["threshold"] == pytest.approx(fitted[0])
        rates = []
        for w, cut in zip([np.ones(80, int), *second], fitted, strict=True):
            scores, own = np.repeat(test[0][:, k], w), np.repeat(test[1], w) == k
            reached = scores >= cut - 1e-12
            rates.append([reached[own].mean(), 1 - reached[~own].mean()])
        for name, (value, *drawn), whose in zip(
            ("sensitivity", "specificity"),
            np.transpose(rates),
            (test[1] == k, test[1] != k),
            strict=True,
        ):
            low, high = np.percentile(drawn, [2.5, 97.5])
            low, high = bootstrap.widened(value, low, high, len(np.unique(test[2][whose])))
            wanted = {"value": value, "low": low, "high": high}
            assert {key: point[name][key] for key in wanted} == pytest.approx(wanted)
        assert point["sensitivity"]["n"] == (test[1] == k).sum()
        assert point["specificity"]["n"] == (test[1] != k).sum()


def test_too_few_examples_put_the_cut_at_nought():
    scores = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]])
    three = scores, np.array([0, 0, 1]), np.arange(3)
    for point in selective.operating_points(three, three, 0.95, 100, 0):
        assert point["threshold"] == 0
        assert (point["sensitivity"]["value"], point["specificity"]["value"]) == (1, 0)
