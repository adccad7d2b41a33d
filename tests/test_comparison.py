"""Paired comparison: the exact test, the adjustment, and what may be said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrjax import bootstrap, comparison, metrics

CLASSES = ("COVID", "Normal", "Viral Pneumonia")


@given(wins=st.integers(0, 40), losses=st.integers(0, 40), same=st.integers(0, 5))
def test_mcnemar_is_the_binomial_sum(wins, losses, same):
    first = np.repeat([True, False, True], [wins, losses, same])
    second = np.repeat([False, True, True], [wins, losses, same])
    found = comparison.mcnemar(first, second)
    n, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
    assert found["p"] == pytest.approx(min(1, 2 * tail) if n else 1)
    assert (found["only_first"], found["only_second"]) == (wins, losses)


def test_holm_is_the_worked_example_of_r():
    """p.adjust(c(.01, .04, .03, .005), "holm")"""
    assert comparison.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert comparison.holm([0.9, 0.8]) == [1, 1]
    assert comparison.holm([]) == []


def runs(n=300, quality=(0.95, 0.6, 0.94), seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    luck = rng.uniform(size=n)
    probabilities = []
    for q in quality:
        told = np.where(luck < q, labels, (labels + 1) % 3)
        p = rng.uniform(0, 0.3, (n, 3))
        p[np.arange(n), told] += 1
        probabilities.append(p / p.sum(axis=1, keepdims=True))
    return labels, probabilities


def test_differences_are_those_of_a_plain_paired_bootstrap():
    labels, probabilities = runs(n=180)
    groups = np.random.default_rng(1).integers(0, 100, 180)
    names = np.unique(groups)
    pairs = comparison.compare(labels, probabilities[:2], ("a", "b"), CLASSES, groups, 150, 3)
    rng = np.random.default_rng(3)
    drawn = {"accuracy": [], "log_loss": [], "macro_f1": [], "COVID": []}
    for _ in range(150):
        chosen = names[rng.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(groups == g) for g in chosen])
        once = np.ones([1, len(rows)])
        a, b = ((labels[rows], p[rows], once) for p in probabilities[:2])
        for name in ("accuracy", "log_loss", "macro_f1"):
            metric = getattr(metrics, name)
            drawn[name].append(metric(*a)[0] - metric(*b)[0])
        recall = [metrics.per_class(*of)["recall"][0, 0] for of in (a, b)]
        drawn["COVID"].append(recall[0] - recall[1])
    difference = pairs[0]["difference"]
    for name, values in drawn.items():
        entry = difference["recall"][name] if name == "COVID" else difference[name]
        assert (entry["low"], entry["high"]) == pytest.approx(
            tuple(np.percentile(values, [2.5, 97.5])), rel=1e-9
        )
    assert difference["recall"]["COVID"]["n"] == (labels == 0).sum()


def test_what_is_found_is_said_in_words():
    labels, probabilities = runs()
    names = ("weak", "good", "as good")
    probabilities = [probabilities[1], probabilities[0], probabilities[2]]
    pairs = comparison.compare(labels, probabilities, names, CLASSES, np.arange(300), 500, 0)
    found = {frozenset((pair["first"], pair["second"])): pair for pair in pairs}
    assert len(found) == 3
    same = found[frozenset(("good", "as good"))]
    assert "not distinguishable" in same["finding"] and "is better" not in same["finding"]
    for other in ("good", "as good"):
        pair = found[frozenset(("weak", other))]
        assert pair["first"] == other and f"{other} is better than weak" in pair["finding"]
        assert pair["difference"]["accuracy"]["low"] > 0
        assert pair["mcnemar"]["p"] <= pair["mcnemar"]["p_adjusted"] < 0.05
        assert f"exact test adjusted p = {pair['mcnemar']['p_adjusted']:.2g}" in pair["finding"]
    assert same["mcnemar"]["p"] > 0.05
    (alone,) = comparison.compare(
        labels, probabilities[:2], names[:2], CLASSES, np.arange(300), 500, 0
    )
    assert f"exact test p = {alone['mcnemar']['p']:.2g}" in alone["finding"]


def test_a_run_against_itself_differs_in_nothing_that_is_known():
    labels, probabilities = runs()
    (pair,) = comparison.compare(
        labels, [probabilities[0]] * 2, ("a", "b"), CLASSES, np.arange(300), 200, 0
    )
    accuracy = pair["difference"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0, 300)
    assert accuracy["low"] == pytest.approx(-accuracy["high"]) and 0 < accuracy["high"] < 0.02
    assert pair["difference"]["log_loss"] == {"value": 0, "low": 0, "high": 0, "n": 300}
    assert pair["mcnemar"]["p"] == 1 and "not distinguishable" in pair["finding"]


def told(labels, right):
    """Probabilities float64 [N, 2] of a classifier that is right where `right` says."""
    of_told = np.arange(2)[None] == np.where(right, labels, 1 - labels)[:, None]
    return np.where(of_told, 0.9, 0.1)


def differences(labels, first, second, groups=None):
    groups = np.arange(len(labels)) if groups is None else groups
    runs = [told(labels, np.asarray(right, bool)) for right in (first, second)]
    (pair,) = comparison.compare(labels, runs, ("a", "b"), ("common", "rare"), groups, 500, 0)
    return pair["difference"]


def test_few_images_leave_a_difference_of_recall_open():
    """Three of three against none of three: every resample has the same, p is .25."""
    labels = np.repeat([0, 1], [40, 3])
    rare = differences(labels, labels >= 0, labels == 0)["recall"]["rare"]
    # Lower limit of Wilson's interval of 3 of 3 is .4385; the two add as 1 - sqrt(2) .5615.
    assert rare == {"value": 1, "low": pytest.approx(0.2059, abs=1e-4), "high": 1, "n": 3}


def test_two_faultless_runs_are_as_alike_as_their_images_can_tell():
    labels = np.arange(12) % 2
    found = differences(labels, labels >= 0, labels >= 0)
    reach = 3.8415 / (12 + 3.8415)  # Wilson's interval of 12 of 12
    assert found["accuracy"] == {
        "value": 0, "low": pytest.approx(-reach, abs=1e-4), "high": pytest.approx(reach, abs=1e-4),
        "n": 12,
    }  # fmt: skip
    assert found["recall"]["rare"]["high"] > found["accuracy"]["high"]
    copies = np.repeat(np.arange(12), 5)  # say no more than the images that they are of
    copied = differences(labels[copies], copies >= 0, copies >= 0, copies)
    assert copied["accuracy"]["high"] == pytest.approx(found["accuracy"]["high"])
    many = np.arange(3000) % 2
    assert differences(many, many >= 0, many >= 0)["accuracy"]["high"] < 0.0013


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        # Cells of the examples of Newcombe 1998 and of Altman et al. 2000, table 6.2.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((14, 5, 0, 22), (0.0115, 0.2265)),
        ((53, 0, 0, 1), (-0.0729, 0.0729)),
        ((54, 0, 0, 0), (-0.0664, 0.0664)),
    ],
)
def test_the_interval_of_paired_shares_is_newcombes(cells, wanted):
    n = sum(cells)
    both, only_first, only_second, _ = (of / n for of in cells)
    got = comparison.paired_interval(both, only_first, only_second, n)
    assert got == pytest.approx(wanted, abs=6e-5)


@pytest.mark.parametrize("apart", [10, 9])
def test_where_ten_images_tell_two_runs_apart_the_resamples_decide(apart):
    """Of 2000 images; where nine do, the bounds move by less than .15 points."""
    labels, everyone = np.arange(2000) % 2, np.arange(2000)
    found = differences(labels, labels >= 0, everyone >= apart)["accuracy"]
    drawn = bootstrap.totals((everyone < apart)[:, None] / 2000, everyone, 500, 0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    if apart == 10:
        assert (found["low"], found["high"]) == pytest.approx((low, high))
    else:
        assert low - 0.0015 < found["low"] < low and high <= found["high"] < high + 0.0015


def test_copies_of_one_patient_do_not_tell_two_runs_apart():
    """The exact test takes images as independent ones; the interval over patients does not."""
    labels = np.zeros(40, int)
    right, wrong = np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.9, 0.05])
    first = np.tile(right, (40, 1))
    second = np.where((np.arange(40) < 10)[:, None], wrong, right)
    patients = np.where(np.arange(40) < 10, 0, np.arange(40))
    grouped, alone = (
        comparison.compare(labels, [first, second], ("a", "b"), CLASSES, groups, 500, 0)[0]
        for groups in (patients, np.arange(40))
    )
    assert grouped["mcnemar"]["p"] < 0.05
    assert "not distinguishable" in grouped["finding"] and "a is better" in alone["finding"]
