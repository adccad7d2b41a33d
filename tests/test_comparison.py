"""Paired comparison: the exact test, the adjustment, and what may be said."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrjax import comparison, metrics

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
    labels, probabilities = runs(n=90)
    groups = np.random.default_rng(1).integers(0, 50, 90)
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
    assert same["mcnemar"]["p"] > 0.05


def test_a_run_against_itself_differs_in_nothing():
    labels, probabilities = runs()
    (pair,) = comparison.compare(
        labels, [probabilities[0]] * 2, ("a", "b"), CLASSES, np.arange(300), 200, 0
    )
    assert pair["difference"]["accuracy"] == {"value": 0, "low": 0, "high": 0, "n": 300}
    assert pair["mcnemar"]["p"] == 1 and "not distinguishable" in pair["finding"]


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
