"""Intervals of shares near 0 and 1: how often they hold the truth, and where they are exact."""

import numpy as np
import pytest
from scipy import stats

from cxrjax import bootstrap, metrics


def share_intervals(n):
    """Of k hits of n, each its own group: the percentiles of resamples, and what is reported."""
    hits = np.arange(n + 1) / n
    plain = stats.binom.ppf(np.array([[0.025], [0.975]]), n, hits) / n  # the bootstrap, exactly
    widened = [bootstrap.widened(p, *bounds, n) for p, bounds in zip(hits, plain.T, strict=True)]
    return plain, np.array(widened).T


@pytest.mark.parametrize("n", [12, 50, 200, 2000])
@pytest.mark.parametrize("p", [0.6, 0.9, 0.97, 0.99, 0.995])
def test_intervals_of_shares_hold_the_truth_as_often_as_promised(n, p):
    chance = stats.binom.pmf(np.arange(n + 1), n, p)
    plain, widened = (chance[(low <= p) & (p <= high)].sum() for low, high in share_intervals(n))
    assert widened >= max(0.93, plain)
    if n * (1 - p) < 3:
        assert plain < 0.93  # what it is for


def test_near_the_ends_the_interval_is_that_of_clopper_and_pearson():
    for n in (1, 7, 300):
        for k in (0, 1, n - 1, n):
            exact = stats.binomtest(k, n).proportion_ci(method="exact")
            found = bootstrap.widened(k / n, k / n, k / n, n)
            np.testing.assert_allclose(found, (exact.low, exact.high), rtol=1e-9)
    assert bootstrap.widened(0.5, 0.4, 0.6, 20) == (0.4, 0.6)  # ten on either side: left alone
    assert np.isnan(bootstrap.widened(np.nan, np.nan, np.nan, 0)).all()


def test_all_right_is_not_certainty():
    """Of 3 groups of 20 copies each, whose answers are all right, little is known."""
    labels, groups = np.repeat([0, 1], 30), np.repeat([0, 1, 2], 20)
    found = metrics.evaluate(labels, np.eye(2)[labels], ("a", "b"), groups, 200)
    assert found["accuracy"]["high"] == 1
    np.testing.assert_allclose(found["accuracy"]["low"], 0.025 ** (1 / 3))
    np.testing.assert_allclose(found["weighted_average"]["recall"]["low"], 0.025 ** (1 / 3))
    for name in ("precision", "recall", "specificity"):  # each of two groups
        assert found["per_class"]["a"][name]["high"] == 1
        np.testing.assert_allclose(found["per_class"]["a"][name]["low"], 0.025**0.5)
    alone = metrics.evaluate(labels, np.eye(2)[np.arange(60) % 2], ("a", "b"), labels * 0, 200)
    assert alone["accuracy"]["low"] < 0.1 and alone["accuracy"]["high"] > 0.9
    everyone = bootstrap.count_groups(groups, np.stack([labels == 0, labels == 1, labels > 1], 1))
    assert everyone.tolist() == [2, 2, 0]
