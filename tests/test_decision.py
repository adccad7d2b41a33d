"""Net benefit: the report's arithmetic, its correction, and decision curves as dcurves has them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrjax import bootstrap, decision
from cxrjax.decision import Diagnostic, Setting

XRAY, PCR = Diagnostic(0.92, 0.9, 5.0), Diagnostic(0.985, 0.99, 40.0)
share = st.floats(0.01, 0.99)
amount = st.floats(0.01, 1000)


def test_the_reports_net_benefit_and_inequality_by_hand():
    at = Setting(prevalence=0.1, value=100, cost_weight=0.5, false_positive_cost=20)
    assert decision.net_benefit(XRAY, at) == pytest.approx(0.1 * 0.92 * 100 - 0.5 * 5)
    assert decision.net_benefit(PCR, at) == pytest.approx(9.85 - 20)
    assert decision.preferable(XRAY, PCR, at)  # -0.65 > -17.5
    assert not decision.preferable(XRAY, PCR, Setting(0.9, 1000, 0.5, 20))  # -58.5 < -17.5
    assert decision.break_even(XRAY, PCR, Setting(0.9, 1000, 0.5, 20)) == pytest.approx(17.5 / 65)
    assert decision.break_even(XRAY, PCR, at) is None  # would be at a prevalence of 2.7


@given(p=share, s=share, v=amount, a=amount, c=amount, other=amount)
def test_the_inequality_is_the_difference_of_the_benefits(p, s, v, a, c, other):
    at = Setting(p, v, a, 0.0)
    xray, pcr = Diagnostic(s, 0.5, c), Diagnostic(0.985, 0.5, other)
    gap = decision.net_benefit(xray, at) - decision.net_benefit(pcr, at)
    if abs(gap) > 1e-6 * (v + a * (c + other)):
        assert decision.preferable(xray, pcr, at) == (gap > 0)


def test_false_alarms_are_paid_for_by_the_healthy():
    at = Setting(0.1, 100, 1.0, 20.0)
    assert decision.corrected_net_benefit(XRAY, at) == pytest.approx(9.2 - 5 - 0.9 * 0.1 * 20)
    perfect = Diagnostic(0.92, 1.0, 5.0)
    assert decision.corrected_net_benefit(perfect, at) == decision.net_benefit(perfect, at)


@given(sx=share, spx=share, v=amount, f=amount, cx=amount, cp=amount)
def test_at_the_break_even_both_tests_are_worth_the_same(sx, spx, v, f, cx, cp):
    xray, pcr = Diagnostic(sx, spx, cx), Diagnostic(0.985, 0.99, cp)
    turn = decision.corrected_break_even(xray, pcr, Setting(None, v, 1.0, f))
    ends = [
        decision.corrected_net_benefit(xray, Setting(p, v, 1.0, f))
        - decision.corrected_net_benefit(pcr, Setting(p, v, 1.0, f))
        for p in (0.0, 1.0)
    ]
    scale = v + f + cx + cp
    if turn is None:
        assert ends[0] * ends[1] > -1e-9 * scale**2
    else:
        at = Setting(turn, v, 1.0, f)
        gap = decision.corrected_net_benefit(xray, at) - decision.corrected_net_benefit(pcr, at)
        assert abs(gap) < 1e-9 * scale


def test_predictive_values_of_a_worked_example():
    """1 % ill, sensitivity .9, specificity .9: 9 of 108 positives are ill."""
    ppv, npv = decision.predictive_values(Diagnostic(0.9, 0.9, 0), 0.01)
    assert ppv == pytest.approx(9 / 108) and npv == pytest.approx(891 / 892)


def patients(n=240, seed=0):
    rng = np.random.default_rng(seed)
    ill = rng.uniform(size=n) < 0.3
    risk = rng.normal(0.3 + 0.3 * ill, 0.2)
    risk[:40] = np.round(risk[:40], 1)  # some lie on a threshold
    return np.clip(risk, 0.001, 0.999), ill


GRID = np.arange(1, 100) / 100


@pytest.mark.parametrize("prevalence", [None, 0.05])
def test_decision_curves_are_those_of_dcurves(prevalence):
    reason = "dcurves is not installed (it is in the extra `test`)"
    dcurves = pytest.importorskip("dcurves", reason=reason)
    pandas = pytest.importorskip("pandas", reason=reason)
    risk, ill = patients()
    found = decision.decision_curve(risk, ill, np.arange(240), GRID, 100, 0, prevalence)
    table = dcurves.dca(
        data=pandas.DataFrame({"ill": ill, "risk": risk}),
        outcome="ill",
        modelnames=["risk"],
        thresholds=GRID,
        prevalence=prevalence,
    )
    wanted = {name: rows["net_benefit"].to_numpy() for name, rows in table.groupby("model")}
    np.testing.assert_allclose([e["value"] for e in found["model"]], wanted["risk"], atol=1e-12)
    np.testing.assert_allclose(found["all"], wanted["all"], atol=1e-12)
    np.testing.assert_allclose(found["none"], wanted["none"], atol=1e-12)


@pytest.mark.parametrize("grouped", [False, True])
def test_decision_curves_and_their_intervals_are_those_of_plain_counting(grouped):
    risk, ill = patients(480)
    groups = np.arange(480) // 2 if grouped else np.arange(480)
    thresholds = np.array([0.4, 0.45, 0.5])
    for t in thresholds:  # so many right and wrong that no interval is widened
        each = [(ill == kind) & ((risk >= t) == told) for kind in (0, 1) for told in (0, 1)]
        assert min(len(np.unique(groups[cell])) for cell in each) > 18
    found = decision.decision_curve(risk, ill, groups, thresholds, 150, 4)

    def plain(r, d, t):
        positive = r >= t
        tp, fp, n = np.sum(positive & d), np.sum(positive & ~d), len(r)
        return tp / n - fp / n * t / (1 - t)

    drawn = np.concatenate(list(bootstrap.weights(groups, 150, 4))).astype(int)
    for k, t in enumerate(thresholds):
        assert found["model"][k]["value"] == pytest.approx(plain(risk, ill, t))
        assert found["all"][k] == pytest.approx(plain(np.ones(480), ill, t))
        values = [plain(np.repeat(risk, w), np.repeat(ill, w), t) for w in drawn]
        wanted = np.percentile(values, [2.5, 97.5])
        got = found["model"][k]
        assert [got["low"], got["high"]] == pytest.approx(list(wanted))


def test_a_curve_without_a_mistake_is_not_certain():
    ill = np.arange(12) < 6
    thresholds = np.array([0.1, 0.5])
    risk, groups = np.where(ill, 0.9, 0.05), np.arange(12)
    found = decision.decision_curve(risk, ill, groups, thresholds, 100, 0, prevalence=0.5)
    worst = 0.025 ** (1 / 6)  # Clopper and Pearson of 6 of 6
    for entry, t in zip(found["model"], thresholds, strict=True):
        alarms = 0.5 - 0.5 * (1 - worst) * t / (1 - t)
        assert entry["value"] == pytest.approx(0.5)
        assert entry["low"] == pytest.approx(min(0.5 * worst, alarms))
    assert found["useful"][1] and not found["useful"][0]  # at first all are treated


def test_without_disease_or_without_health_there_is_no_curve():
    for ill in (np.zeros(5, bool), np.ones(5, bool)):
        with pytest.raises(ValueError, match="with and without"):
            decision.decision_curve(np.full(5, 0.5), ill, np.arange(5), GRID, 100, 0)


def test_rates_are_counted_and_drawn():
    positive = np.array([True, True, False, False, True, False])
    ill = np.array([True, True, True, False, False, False])
    found, drawn = decision.rates_of(positive, ill, np.arange(6), 500, 0)
    assert (found.sensitivity, found.specificity) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert drawn.shape == (500, 2) and np.nanstd(drawn, axis=0).min() > 0.1
    weights = np.concatenate(list(bootstrap.weights(np.arange(6), 500, 0)))
    hits, all_ill = (weights * (positive & ill)).sum(axis=1), (weights * ill).sum(axis=1)
    known = all_ill > 0
    np.testing.assert_allclose(drawn[known, 0], hits[known] / all_ill[known])
    assert np.isnan(drawn[~known, 0]).all() and not known.all()
