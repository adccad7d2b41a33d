"""Temperature, reliability and prevalence against plain forms and known truths."""

import numpy as np
import pytest
from scipy import optimize, special

from cxrjax import bootstrap, calibration, metrics


def sample(n=400, k=4, temperature=1.0, seed=0):
    """Labels drawn from known probabilities, and the probabilities of a net that is off by T."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * 2
    true = special.softmax(z, axis=1)
    labels = (true.cumsum(axis=1) < rng.uniform(size=(n, 1))).sum(axis=1)
    return labels, special.softmax(z * temperature, axis=1), true


def certain(n, mistakes, k=2, seed=3):
    """Answers at .80 to .97, of which so many are wrong: all errors come from few images."""
    rng = np.random.default_rng(seed)
    labels, sure = rng.integers(0, k, n), rng.uniform(0.8, 0.97, n)
    told = np.where(np.arange(n) < mistakes, (labels + 1) % k, labels)
    of_told = np.arange(k)[None] == told[:, None]
    return labels, np.where(of_told, sure[:, None], (1 - sure[:, None]) / (k - 1))


def log_loss(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def loss(t, probabilities, labels):
    z = np.log(probabilities) / t
    return np.mean(special.logsumexp(z, axis=1) - z[np.arange(len(labels)), labels])


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_is_that_of_a_general_minimiser(k, temperature):
    labels, probabilities, _ = sample(k=k, temperature=temperature)
    got = float(calibration.fit_temperature(calibration.logits(probabilities), labels))
    wanted = optimize.minimize_scalar(
        loss, args=(probabilities, labels), bounds=(0.05, 20), method="bounded"
    )
    assert got == pytest.approx(wanted.x, rel=1e-3)
    assert loss(got, probabilities, labels) <= wanted.fun + 1e-7
    assert got == pytest.approx(temperature, rel=0.25)


def test_separable_and_senseless_predictions_end_at_the_bounds():
    labels = np.arange(20) % 2
    right = np.where(np.arange(2)[None] == labels[:, None], 0.9, 0.1)
    for probabilities, wanted in ((right, 0.05), (1 - right, 20.0), (right * 0 + 0.5, None)):
        z = calibration.logits(probabilities)
        got = float(calibration.fit_temperature(z, labels))
        assert got == pytest.approx(wanted, rel=1e-5) if wanted else np.isfinite(got)
        entry = calibration.temperature_entry(probabilities, labels, np.arange(20), 100, 0)
        assert 0.05 <= entry["low"] <= entry["value"] <= entry["high"] <= 20


@pytest.mark.parametrize("k", [2, 4])
def test_a_split_without_a_mistake_makes_no_answer_certain(k):
    """The loss has no minimum then: the probabilities stay as they are."""
    labels, probabilities = certain(60, 0, k)
    entry = calibration.temperature_entry(probabilities, labels, np.arange(60), 200, 0)
    assert (entry["low"], entry["value"], entry["high"]) == (0.05, 1, 1)
    labels, probabilities = certain(200, 10, k, seed=2)  # new images, of which some are told wrong
    after = log_loss(calibration.scaled(probabilities, entry["value"]), labels)
    assert after <= 1.1 * log_loss(probabilities, labels)


def test_scaling_keeps_the_order_and_certain_answers_finite():
    _, probabilities, _ = sample()
    probabilities[0] = [1, 0, 0, 0]
    for t in (0.3, 1.0, 5.0):
        got = calibration.scaled(probabilities, t)
        np.testing.assert_allclose(got.sum(axis=1), 1)
        np.testing.assert_array_equal(got.argmax(axis=1), probabilities.argmax(axis=1))
        np.testing.assert_allclose(
            got[1:], special.softmax(np.log(probabilities[1:]) / t, axis=1), rtol=1e-5
        )


def test_the_interval_of_the_temperature_covers_the_truth():
    covered = 0
    for seed in range(100):
        labels, probabilities, _ = sample(n=200, temperature=2.0, seed=seed)
        entry = calibration.temperature_entry(probabilities, labels, np.arange(200), 300, seed)
        assert entry["low"] < entry["value"] < entry["high"]
        covered += entry["low"] <= 2 <= entry["high"]
    assert 87 <= covered <= 100  # 95, give or take 3.5 standard errors


@pytest.mark.parametrize("sharpness", [2, 15])
def test_nothing_is_found_in_probabilities_that_are_true(sharpness):
    """Of sharp ones, too, whose other classes are all but ruled out."""
    fitted, missed = [], 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        p = special.softmax(rng.normal(0, sharpness, [400, 4]), axis=1)
        labels = np.array([rng.choice(4, p=row) for row in p])
        entry = calibration.temperature_entry(p, labels, np.arange(400), 200, seed)
        fitted.append(entry["value"])
        missed += not entry["low"] <= 1 <= entry["high"]
    assert np.mean(fitted) == pytest.approx(1, abs=0.06) and missed <= 4


@pytest.mark.parametrize("mistakes", [None, 2, 3, 4])
def test_the_interval_of_the_temperature_is_that_of_refits(mistakes):
    """Each resample has a fit of its own, however few mistakes there are to draw."""
    labels, probabilities = sample(n=300, temperature=2.0)[:2]
    if mistakes:
        labels, probabilities = certain(100, mistakes)
    everyone = np.arange(len(labels))
    entry = calibration.temperature_entry(probabilities, labels, everyone, 200, 3)
    z, refits = calibration.logits(probabilities), []
    for w in np.concatenate(list(bootstrap.weights(everyone, 200, 3))).astype(int):
        rows = np.repeat(everyone, w)
        refits.append(float(calibration.fit_temperature(z[rows], labels[rows])))
    wanted = np.percentile(refits, [2.5, 97.5])
    assert (entry["low"], entry["high"]) == pytest.approx(tuple(wanted), rel=0.01)


def test_copies_do_not_narrow_the_interval_of_the_temperature():
    labels, probabilities, _ = sample(n=100, temperature=2.0)
    copies = np.repeat(np.arange(100), 3)
    alone = calibration.temperature_entry(probabilities, labels, np.arange(100), 500, 0)
    copied = calibration.temperature_entry(probabilities[copies], labels[copies], copies, 500, 0)
    assert copied["high"] - copied["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-3)


def test_the_bins_are_those_of_the_ece():
    labels, probabilities, _ = sample(temperature=3.0)
    bins = calibration.reliability(labels, probabilities, np.arange(400), 200, 0)
    ece = sum(b["accuracy"]["n"] * abs(b["accuracy"]["value"] - b["confidence"]) for b in bins)
    assert ece / 400 == pytest.approx(metrics.ece(labels, probabilities, np.ones([1, 400]))[0])
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for b in bins:
        inside = (confidence > b["from"]) & (confidence <= b["to"])
        assert b["accuracy"]["n"] == inside.sum()
        assert b["accuracy"]["value"] == pytest.approx(hit[inside].mean())
        assert b["accuracy"]["low"] <= b["accuracy"]["value"] <= b["accuracy"]["high"]


def test_another_prevalence_is_bayes_rule():
    """Two normal densities: the posterior under either prior is known in closed form."""
    x = np.linspace(-3, 3, 25)
    density = np.exp(-0.5 * (x[:, None] - np.array([-1.0, 0.5, 1.0])) ** 2)
    old, new = np.array([0.2, 0.3, 0.5]), np.array([0.7, 0.25, 0.05])
    posterior = {
        name: density * prior / (density * prior).sum(axis=1, keepdims=True)
        for name, prior in (("old", old), ("new", new))
    }
    got = calibration.for_prevalence(posterior["old"], old, new)
    np.testing.assert_allclose(got, posterior["new"], rtol=1e-12)


def test_one_class_takes_its_prevalence_and_the_rest_keep_their_proportions():
    got = calibration.one_against_rest(np.array([0.2, 0.3, 0.5]), 1, 0.1)
    np.testing.assert_allclose(got, [0.9 * 2 / 7, 0.1, 0.9 * 5 / 7])
