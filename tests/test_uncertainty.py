"""calibration.json: fitted on validation alone, reported on the test split, then applied."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from finished_runs import AIMS, CLASSES, split
from sklearn import metrics as sk

from cxrjax import config, evaluation, uncertainty

PRIOR = np.array([0.2, 0.5, 0.3])


@pytest.fixture(scope="module")
def splits():
    return {"validation": split(200, 0.9, 1), "test": split(300, 0.9, 2)}


@pytest.fixture(scope="module")
def found(splits):
    return uncertainty.assess(splits, CLASSES, PRIOR, AIMS, 300, 0)


def test_the_result_is_strict_json_with_an_interval_and_a_count_behind_every_figure(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found

    def walk(part):
        if isinstance(part, dict) and "value" in part:
            assert list(part) == ["value", "low", "high", "n"]
            assert part["low"] <= part["high"] and part["n"] > 0
            return 1
        below = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
        return sum(walk(item) for item in below)

    assert walk(found) > 50


def test_nothing_of_the_test_split_enters_what_is_fitted(splits, found):
    other = split(120, 0.4, 9)
    again = uncertainty.assess(splits | {"test": other}, CLASSES, PRIOR, AIMS, 300, 0)
    assert again["temperature"] == found["temperature"]
    assert again["conformal"]["thresholds"] == found["conformal"]["thresholds"]
    assert again["abstention"]["threshold"] == found["abstention"]["threshold"]
    for name in CLASSES:
        cuts = [of["operating_points"][name]["threshold"] for of in (again, found)]
        assert cuts[0] == cuts[1]
    assert again["after"]["log_loss"]["value"] > found["after"]["log_loss"]["value"]


def test_without_a_test_split_the_same_is_fitted_and_nothing_reported(splits, found):
    def holds(part, whole):
        for key, value in part.items():
            if isinstance(value, dict):
                holds(value, whole[key])
            else:
                assert value == whole[key], key

    alone = {"validation": splits["validation"]}
    fitted = uncertainty.assess(alone, CLASSES, PRIOR, AIMS, 300, 0, seen=True)
    assert fitted.pop("reported_on") is None and fitted.pop("fitted_on_training_images") is True
    holds(fitted, found)
    assert not {"before", "after"} & fitted.keys()
    assert [set(fitted[part]) for part in ("conformal", "abstention")] == [
        {"level", "thresholds"},
        {"coverage", "threshold"},
    ]
    answers = [uncertainty.answer(of, splits["test"].probabilities) for of in (fitted, found)]
    np.testing.assert_array_equal(answers[0].sets, answers[1].sets)
    assert found["fitted_on_training_images"] is False


def test_a_network_too_sure_of_itself_is_cooled(splits, found):
    assert found["temperature"]["low"] > 1.2
    for name in ("log_loss", "ece"):
        assert found["after"][name]["value"] < found["before"][name]["value"]
    test = splits["test"]
    wanted = sk.log_loss(test.labels, test.probabilities.astype(float))
    assert found["before"]["log_loss"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_new_images_are_answered_as_the_test_split_was(splits, found):
    fitted = json.loads(json.dumps(found))
    test = splits["test"]
    given = uncertainty.answer(fitted, test.probabilities)
    table, abstention = found["conformal"]["test"], found["abstention"]["test"]
    held = given.sets[np.arange(300), test.labels]
    assert held.mean() == pytest.approx(table["all"]["coverage"]["value"])
    assert given.sets.sum(axis=1).mean() == pytest.approx(table["all"]["size"]["value"])
    assert 1 - given.abstained.mean() == pytest.approx(abstention["coverage"]["value"])
    right = given.probabilities.argmax(axis=1) == test.labels
    assert right[~given.abstained].mean() == pytest.approx(abstention["accuracy_answered"]["value"])
    validation = uncertainty.answer(fitted, splits["validation"].probabilities)
    assert 0.9 <= 1 - validation.abstained.mean() < 0.91  # the cut lies on an image, not below it


def test_risk_falls_where_the_network_knows_what_it_does_not_know(splits, found):
    curve = found["abstention"]["curve"]
    assert [point["coverage"] for point in curve] == pytest.approx(np.arange(1, 21) / 20)
    assert curve[9]["risk"]["value"] < curve[-1]["risk"]["value"]
    accuracy = (splits["test"].probabilities.argmax(axis=1) == splits["test"].labels).mean()
    assert curve[-1]["risk"]["value"] == pytest.approx(1 - accuracy)


@pytest.mark.parametrize(
    ("weights", "on_validation", "prior"),
    [
        ("none", False, [0.5, 0.25, 0.25]),
        ("none", True, [0.4, 0.2, 0.4]),
        ("balanced", True, [1 / 3] * 3),
    ],
)
def test_the_prior_is_that_of_the_training_loss(weights, on_validation, prior):
    labels = np.array([2, 0, 0, 1, 0, 2, 1, 0, 1, 2, 2])
    data = SimpleNamespace(
        classes=CLASSES,
        store=SimpleNamespace(labels=labels),
        splits={"train": np.arange(8), "test": np.array([8]), "validation": np.array([9, 10])},
    )
    settings = config.default()
    settings.train.class_weights = weights
    settings.train.on_validation = on_validation
    np.testing.assert_allclose(evaluation._prior(data, settings), prior)


def test_a_split_without_one_of_the_classes_is_assessed(splits):
    few = {
        name: replace(of, labels=np.where(of.labels == 2, 0, of.labels))
        for name, of in splits.items()
    }
    found = uncertainty.assess(few, CLASSES, PRIOR, AIMS, 100, 0)
    assert found["conformal"]["thresholds"]["Viral Pneumonia"] == 0
    missing = found["operating_points"]["Viral Pneumonia"]
    assert missing["threshold"] == 0 and missing["sensitivity"]["value"] is None
