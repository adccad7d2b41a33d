"""Metrics held to scikit-learn, with weights too; intervals to a plain bootstrap."""

import json
import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from cxrjax import bootstrap, losses, metrics

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def case(n=60, k=4, seed=0, grid=None):
    """Labels and informative probabilities; with `grid`, scores on a coarse grid, full of ties."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n - k)])
    scores = rng.uniform(0.01, 1, (n, k))
    scores[np.arange(n), labels] += 0.4
    if grid:
        scores = np.ceil(scores * grid)
    return labels, scores / scores.sum(axis=1, keepdims=True)


def ones(labels):
    return np.ones([1, len(labels)])


def sk_auroc(labels, probabilities, weights=None):
    if probabilities.shape[1] == 2:
        return sk.roc_auc_score(labels, probabilities[:, 1], sample_weight=weights)
    return np.mean(
        [
            sk.roc_auc_score(labels == c, p, sample_weight=weights)
            for c, p in enumerate(probabilities.T)
        ]
    )


SCALAR = {
    "accuracy": lambda y, p, w: sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda y, p, w: sk.balanced_accuracy_score(
        y, p.argmax(1), sample_weight=w
    ),
    "macro_f1": lambda y, p, w: sk.f1_score(
        y, p.argmax(1), average="macro", sample_weight=w, zero_division=0
    ),
    "weighted_f1": lambda y, p, w: sk.f1_score(
        y, p.argmax(1), average="weighted", sample_weight=w, zero_division=0
    ),
    "auroc": sk_auroc,
    "average_precision": lambda y, p, w: np.mean(
        [sk.average_precision_score(y == c, of, sample_weight=w) for c, of in enumerate(p.T)]
    ),
    "brier": lambda y, p, w: sk.brier_score_loss(y, p, sample_weight=w, labels=range(p.shape[1])),
    "log_loss": lambda y, p, w: sk.log_loss(y, p, sample_weight=w, labels=range(p.shape[1])),
}
RANKED = {"auroc": sk.roc_auc_score, "average_precision": sk.average_precision_score}


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("k", [2, 3, 4])
@given(seed=st.integers(0, 10**6), grid=st.sampled_from([None, 2, 5]), whole=st.booleans())
@settings(max_examples=15, deadline=None)
def test_equal_to_sklearn_with_and_without_weights(name, k, seed, grid, whole):
    labels, probabilities = case(k=k, seed=seed, grid=grid)
    rng = np.random.default_rng(seed + 1)
    weights = rng.integers(0, 4, (3, len(labels))) if whole else rng.exponential(size=(3, 60))
    weights = np.concatenate([ones(labels), weights])
    weights[:, : 2 * k] += 1  # every class occurs, else scikit-learn counts or refuses differently
    got = getattr(metrics, name)(labels, probabilities, weights)
    wanted = [SCALAR[name](labels, probabilities, w) for w in weights]
    np.testing.assert_allclose(got, wanted, rtol=1e-10)


@pytest.mark.parametrize("name", SCALAR)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_a_weight_is_the_number_of_copies(name, seed):
    """Also where a class is drawn in no copy: the resample's own value."""
    labels, probabilities = case(n=24, seed=seed)
    weights = np.random.default_rng(seed).integers(0, 3, (4, 24)).astype(float)
    weights[0] *= labels != 3
    weights[1] *= (labels != 3) & (probabilities.argmax(axis=1) != 3)
    got = getattr(metrics, name)(labels, probabilities, weights)
    for value, w in zip(got, weights.astype(int), strict=True):
        y, p = np.repeat(labels, w), np.repeat(probabilities, w, axis=0)
        assert value == pytest.approx(getattr(metrics, name)(y, p, ones(y))[0], rel=1e-10)
        if name not in RANKED:  # scikit-learn refuses a class without positives
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a class among predictions only
                assert value == pytest.approx(SCALAR[name](y, p, None), rel=1e-10)
        else:
            occurring = [c for c in range(4) if np.any(y == c)]
            each = [RANKED[name](y == c, p[:, c]) for c in occurring]
            assert value == pytest.approx(np.mean(each), rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_per_class_figures_and_averages_are_sklearns_classification_report(weighted):
    labels, probabilities = case(n=200, grid=3)
    w = np.random.default_rng(5).integers(1, 4, 200) if weighted else None
    predicted = probabilities.argmax(axis=1)
    weights = ones(labels) if w is None else w[None].astype(float)
    report = sk.classification_report(
        labels, predicted, target_names=CLASSES, output_dict=True, sample_weight=w
    )
    each = metrics.per_class(labels, probabilities, weights)
    for k, name in enumerate(CLASSES):
        for ours, theirs in (
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1", "f1-score"),
            ("support", "support"),
        ):
            assert each[ours][0, k] == pytest.approx(report[name][theirs])
        specificity = sk.recall_score(labels != k, predicted != k, sample_weight=w)
        assert each["specificity"][0, k] == pytest.approx(specificity)
    for average in ("macro", "weighted"):
        ours = getattr(metrics, f"{average}_average")(labels, probabilities, weights)
        for name, values in ours.items():
            theirs = report[f"{average} avg"]["f1-score" if name == "f1" else name]
            assert values[0] == pytest.approx(theirs)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(labels, probabilities, weights)[0],
        sk.confusion_matrix(labels, predicted, sample_weight=w),
    )


def test_a_model_that_always_says_the_same():
    labels = np.array([0, 0, 1, 2])
    probabilities = np.tile([0.8, 0.1, 0.1], (4, 1))
    result = metrics.evaluate(labels, probabilities, CLASSES[:3], resamples=200)
    assert result["per_class"]["Normal"]["precision"] == {
        "value": None, "low": None, "high": None, "n": 0,
    }  # fmt: skip
    assert result["per_class"]["Normal"]["recall"]["value"] == 0
    assert result["macro_average"]["precision"]["value"] == pytest.approx(0.5 / 3)
    assert result["auroc"]["value"] == 0.5
    assert result["balanced_accuracy"]["value"] == pytest.approx(1 / 3)


def test_ece_is_that_of_a_plain_loop_and_of_a_worked_example():
    labels, probabilities = case(n=300, k=3, grid=5)
    w = np.random.default_rng(1).integers(0, 3, 300)
    wanted = 0.0
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if w[inside].sum():
            gap = np.average(hit[inside], weights=w[inside]) - np.average(
                confidence[inside], weights=w[inside]
            )
            wanted += abs(gap) * w[inside].sum() / w.sum()
    got = metrics.ece(labels, probabilities, w[None].astype(float))
    assert got[0] == pytest.approx(wanted, rel=1e-10)
    # Four answers at 0.9 of which three are right, one at 1.0 that is wrong.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[1.0, 0.0]])
    labels = np.array([0, 0, 0, 1, 1])
    assert metrics.ece(labels, probabilities, ones(labels))[0] == pytest.approx(
        0.8 * 0.15 + 0.2 * 1.0
    )


def test_log_loss_of_a_certain_mistake_is_large_but_finite():
    labels, probabilities = np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    value = metrics.log_loss(labels, probabilities, ones(labels))[0]
    assert value == pytest.approx(sk.log_loss(labels, probabilities.astype(np.float64)))


def plain_bootstrap(labels, probabilities, groups, metric, resamples, seed):
    """The textbook loop: draw groups, copy their members, evaluate the copies."""
    names = np.unique(groups)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = names[rng.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(groups == g) for g in drawn])
        values.append(metric(labels[rows], probabilities[rows], None))
    return np.percentile(values, [2.5, 97.5])


@pytest.mark.parametrize("name", [name for name in SCALAR if name != "weighted_f1"])
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_a_plain_bootstrap_with_the_same_draws(name, grouped):
    labels, probabilities = case(n=90, k=3)
    groups = np.random.default_rng(2).integers(100, 150, 90) if grouped else np.arange(90)
    result = metrics.evaluate(
        labels, probabilities, CLASSES[:3], groups if grouped else None, resamples=150, seed=3
    )
    wanted = plain_bootstrap(labels, probabilities, groups, SCALAR[name], 150, 3)
    assert [result[name]["low"], result[name]["high"]] == pytest.approx(list(wanted), rel=1e-9)
    assert result["groups"] == len(np.unique(groups))


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("grid", [None, 3])
@pytest.mark.parametrize("grouped", [False, True])
def test_the_jitted_statistics_are_the_plain_ones_of_the_same_draws(k, grid, grouped):
    labels, probabilities = case(n=70, k=k, grid=grid)
    labels[labels == 1] = 0  # class 1 has three examples: often it is not drawn at all
    labels[:3] = 1
    groups = np.random.default_rng(2).integers(100, 130, 70) if grouped else np.arange(70)
    drawn = np.concatenate(list(bootstrap.weights(groups, 130, 5)))
    wanted = metrics.plain_statistics(labels, probabilities, drawn)
    assert np.isnan(wanted.auroc).any() == np.isnan(wanted.average_precision).any()
    got = bootstrap.statistics(labels, probabilities, groups, 130, 5)
    for name, values in wanted._asdict().items():
        np.testing.assert_allclose(getattr(got, name), values, rtol=1e-11, atol=1e-13, err_msg=name)


def test_intervals_do_not_depend_on_how_many_resamples_fit_into_memory(monkeypatch):
    labels, probabilities = case(n=50)
    whole = metrics.evaluate(labels, probabilities, CLASSES, resamples=101, seed=1)
    monkeypatch.setattr(bootstrap, "_BLOCK", 350)  # seven at a time
    monkeypatch.setattr(bootstrap, "_CALL", 1000)  # twenty in a call
    pieces = metrics.evaluate(labels, probabilities, CLASSES, resamples=101, seed=1)
    for part in ("accuracy", "auroc", "log_loss", "ece"):
        assert whole[part] == pytest.approx(pieces[part], rel=1e-12)


def test_memory_is_bounded():
    labels, probabilities = case(n=4000)
    tracemalloc.start()
    metrics.evaluate(labels, probabilities, CLASSES, resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6  # all weights at once would take 64 MB, and each copy as much again


def test_95_percent_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = {"accuracy": 0, "per_class": 0}
    for trial in range(200):
        labels = rng.integers(0, 2, 120)
        predicted = np.where(rng.uniform(size=120) < 0.8, labels, 1 - labels)
        result = metrics.evaluate(
            labels, np.eye(2)[predicted] * 0.8 + 0.1, CLASSES[:2], resamples=300, seed=trial
        )
        recall = result["per_class"]["COVID"]["recall"]
        covered["accuracy"] += result["accuracy"]["low"] <= 0.8 <= result["accuracy"]["high"]
        covered["per_class"] += recall["low"] <= 0.8 <= recall["high"]
    for count in covered.values():
        assert 178 <= count <= 199, covered  # 95 % of 200, give or take 3.9 standard errors


def test_copies_do_not_narrow_the_interval_when_groups_say_they_are_copies():
    labels, probabilities = case(n=60)
    alone = metrics.evaluate(labels, probabilities, CLASSES)
    copied = np.repeat(labels, 4), np.repeat(probabilities, 4, axis=0)
    naive = metrics.evaluate(*copied, CLASSES)
    grouped = metrics.evaluate(*copied, CLASSES, groups=np.repeat(np.arange(60) * 7, 4))
    for name in ("accuracy", "macro_f1", "auroc", "log_loss"):
        width = {
            key: part[name]["high"] - part[name]["low"]
            for key, part in (("alone", alone), ("naive", naive), ("grouped", grouped))
        }
        assert width["grouped"] == pytest.approx(width["alone"], rel=1e-9)
        assert width["naive"] == pytest.approx(width["alone"] / 2, rel=0.15)
    assert (grouped["n"], grouped["groups"]) == (240, 60)


def test_the_result_is_strict_json_with_a_count_behind_every_figure():
    labels, probabilities = case(n=80)
    result = metrics.evaluate(labels.astype(np.int32), probabilities.astype(np.float32), CLASSES)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    table = np.array(result["confusion_matrix"])
    np.testing.assert_array_equal(table.sum(axis=1), np.bincount(labels))
    headlines = tuple(name for name in SCALAR if name != "weighted_f1")
    for entry in [result[name] for name in headlines]:
        assert list(entry) == ["value", "low", "high", "n"]
        assert entry["low"] < entry["value"] < entry["high"] and entry["n"] == 80
    assert result["ece"]["low"] < result["ece"]["high"]
    for k, name in enumerate(CLASSES):
        part = result["per_class"][name]
        assert part["recall"]["n"] == part["support"] == table[k].sum()
        assert part["precision"]["n"] == table[:, k].sum()
        assert part["specificity"]["n"] == 80 - table[k].sum()
        assert part["f1"]["n"] == table[k].sum() + table[:, k].sum() - table[k, k]
        assert part["auroc"]["n"] == part["average_precision"]["n"] == 80
        for metric in ("precision", "recall", "specificity", "f1", "auroc", "average_precision"):
            assert part[metric]["low"] < part[metric]["value"] < part[metric]["high"]
    assert result["macro_average"]["f1"] == result["macro_f1"]
    assert result["weighted_average"]["recall"] == result["accuracy"]


def test_seeds_change_the_draws_and_nothing_else():
    labels, probabilities = case()
    one, same, other = (metrics.evaluate(labels, probabilities, CLASSES, seed=s) for s in (1, 1, 2))
    assert one == same
    assert one["accuracy"]["value"] == other["accuracy"]["value"]
    assert one["log_loss"]["low"] != other["log_loss"]["low"]


def test_one_class_alone_has_no_auroc_but_everything_else():
    probabilities = np.array([[0.7, 0.3], [0.4, 0.6], [0.9, 0.1]])
    result = metrics.evaluate(np.zeros(3, int), probabilities, CLASSES[:2], resamples=100)
    assert result["auroc"] == {"value": None, "low": None, "high": None, "n": 3}
    assert result["accuracy"]["value"] == pytest.approx(2 / 3)
    assert result["per_class"]["Lung_Opacity"]["recall"]["value"] is None
    assert result["per_class"]["Lung_Opacity"]["precision"]["value"] == 0
    absent = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    result = metrics.evaluate(np.array([0, 1, 1]), absent, CLASSES[:3], resamples=100)
    assert result["macro_f1"]["value"] == 1  # the third class occurs nowhere
    assert result["auroc"]["value"] == 1
    assert result["per_class"]["Normal"]["f1"]["value"] is None


def test_resamples_without_a_class_are_left_out_of_its_intervals():
    labels, probabilities = np.repeat([0, 1], [30, 1]), np.tile([0.3, 0.7], (31, 1))
    probabilities[:15] = [0.6, 0.4]
    part = metrics.evaluate(labels, probabilities, CLASSES[:2], resamples=100)
    assert part["per_class"]["Lung_Opacity"]["recall"] == {
        "value": 1.0, "low": pytest.approx(0.025), "high": 1.0, "n": 1,
    }  # fmt: skip
    assert 0.5 < part["auroc"]["low"] < part["auroc"]["value"] < part["auroc"]["high"] < 1


def test_two_class_auroc_is_that_of_class_one_where_the_other_ones_score_is_rounded_off():
    probabilities = np.array([[1.0, 1e-20], [1.0, 2e-20]])
    assert metrics.auroc(np.array([0, 1]), probabilities, np.ones([1, 2]))[0] == 1


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_two_classes_keep_the_order_of_their_logit_where_both_are_sure(name, sign):
    """From a logit of 17 on the sigmoid is 1 in float32."""
    rng = np.random.default_rng(0)
    logit = np.float32(sign * rng.uniform(18, 80, 200))[:, None]
    labels = (rng.uniform(18, 80, 200) < sign * logit[:, 0]).astype(int)
    probabilities = np.asarray(losses.probabilities(logit))
    assert (probabilities == 1).any(1).all()
    by_logit = np.concatenate([-logit, logit], axis=1)
    got = getattr(metrics, name)(labels, probabilities, ones(labels))
    assert got[0] == pytest.approx(SCALAR[name](labels, by_logit, None), rel=1e-12)
    drawn = bootstrap.statistics(labels, probabilities, np.arange(200), 20, 0)
    weights = np.concatenate(list(bootstrap.weights(np.arange(200), 20, 0)))
    plain = getattr(metrics, f"class_{name}")(labels, probabilities, weights)
    np.testing.assert_allclose(getattr(drawn, name), plain, rtol=1e-11)


def test_a_single_example_and_perfect_answers_do_not_crash():
    result = metrics.evaluate(np.array([1]), np.array([[0.2, 0.8]]), CLASSES[:2], resamples=100)
    assert result["macro_f1"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        (np.zeros(0, int), np.zeros((0, 2)), "no examples"),
        (np.array([0, 1]), np.full((3, 2), 0.5), "shapes do not fit"),
        (np.array([0, 1]), np.full((2, 3), 0.3), "shapes do not fit"),
        (np.array([0, 2]), np.full((2, 2), 0.5), r"must lie in \[0, 2\)"),
        (np.array([0, -1]), np.full((2, 2), 0.5), "must lie in"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), "diverged"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(labels, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.evaluate(labels, probabilities, CLASSES[:2])
    with pytest.raises(ValueError, match="shapes"):
        metrics.evaluate(*case(k=2), CLASSES[:2], groups=np.arange(7))
