"""`python -m cxrjax.decide`: the decision page of a run."""

import json
import shutil

import numpy as np
import pytest
from finished_runs import make
from PIL import Image

from cxrjax import calibration, decide, predictions


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "run", 0.9)


def command(run, *arguments):
    return decide.main(["--workdir", str(run), "--resamples", "200", *arguments])


def test_the_page_holds_the_reports_arithmetic_and_its_correction(run, capsys):
    assert command(run, "--prevalence", "0.1", "--pcr-cost", "40", "--value", "200") == 0
    printed = capsys.readouterr().out
    found = json.loads((run / "decision.json").read_text())
    of = predictions.read(run).splits["test"]
    told, sick = of.probabilities.argmax(axis=1) == 0, of.labels == 0
    accuracy = (of.probabilities.argmax(axis=1) == of.labels).mean()
    recall, specificity = told[sick].mean(), (~told[~sick]).mean()
    report, corrected = found["report"], found["corrected"]
    assert report["sensitivity"] == pytest.approx(accuracy)
    assert report["xray"] == pytest.approx(0.1 * accuracy * 200 - 5)
    assert report["pcr"] == pytest.approx(0.1 * 0.985 * 200 - 40)
    assert report["left"] == pytest.approx(0.1 * 200 * (accuracy - 0.985))
    assert report["right"] == 5 - 40 and report["xray_preferable"]
    assert found["xray"]["sensitivity"]["value"] == pytest.approx(recall)
    assert found["xray"]["sensitivity"]["n"] == sick.sum()
    wanted = 0.1 * recall * 200 - 0.9 * (1 - specificity) * 20 - 5
    assert corrected["xray"]["value"] == pytest.approx(wanted)
    assert corrected["xray"]["low"] < wanted < corrected["xray"]["high"]
    assert corrected["pcr"] == pytest.approx(0.1 * 0.985 * 200 - 0.9 * 0.01 * 20 - 40)
    assert corrected["finding"] == "the X-ray is worth more"
    assert found["xray"]["ppv"]["value"] == pytest.approx(
        0.1 * recall / (0.1 * recall + 0.9 * (1 - specificity))
    )
    assert "the X-ray is worth more" in printed and "test split read 1 time(s)" in printed
    assert f"S = accuracy {accuracy:.3f}" in printed
    with Image.open(run / "figures" / "decision.png") as image:
        assert min(image.size) > 300


def test_what_a_test_without_positives_predicts_is_undefined(tmp_path, capsys):
    """Nobody is ill and PCR errs never: no positive answer has a value."""
    folder = make(tmp_path / "run")
    assert command(folder, "--prevalence", "0", "--pcr-specificity", "1") == 0
    assert json.loads((folder / "decision.json").read_text())["pcr"] == {"ppv": None, "npv": 1}
    assert "at P: PPV undefined, NPV 1.00" in capsys.readouterr().out


def test_of_two_tests_worth_the_same_none_is_called_preferable(run, capsys):
    accuracy = json.loads((run / "result.json").read_text())["test"]["accuracy"]["value"]
    assumed = {"pcr-sensitivity": accuracy, "pcr-cost": 5, "xray-cost": 5}
    assert command(run, *(f"--{name}={value!r}" for name, value in assumed.items())) == 0
    (told,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("as the report")]
    assert told.endswith("; the answer is the same at every prevalence")


def test_without_a_mistake_nothing_is_certain(tmp_path):
    faultless = make(tmp_path / "run", 1.0, lift=9)
    command(faultless, "--prevalence", "0.1")
    found = json.loads((faultless / "decision.json").read_text())
    xray, low = found["xray"], found["xray"]["specificity"]["low"]
    assert xray["sensitivity"]["value"] == xray["specificity"]["value"] == 1 and low < 1
    assert xray["ppv"]["value"] == xray["ppv"]["high"] == 1
    assert xray["ppv"]["low"] == pytest.approx(0.1 / (0.1 + 0.9 * (1 - low)))
    missed = 0.1 * (1 - xray["sensitivity"]["low"])
    assert xray["npv"]["low"] == pytest.approx(0.9 / (0.9 + missed))
    for entry in (found["corrected"]["xray"], found["corrected"]["difference"]):
        assert entry["low"] < entry["value"] <= entry["high"]
    over = found["corrected"]["over_prevalence"]["xray"]
    assert all(entry["low"] < entry["value"] for entry in over)


def test_the_answer_turns_with_the_assumptions(run):
    command(run, "--pcr-cost", "0", "--xray-cost", "50")
    found = json.loads((run / "decision.json").read_text())
    assert found["corrected"]["finding"] == "PCR is worth more"
    assert not found["report"]["xray_preferable"]
    over = found["corrected"]["over_prevalence"]
    assert over["prevalence"][0] == 0 and over["prevalence"][-1] == 1
    assert over["pcr"][0] == pytest.approx(-0.01 * 20)


def test_the_curve_takes_calibrated_risks_at_the_asked_prevalence(run):
    command(run, "--prevalence", "0.02")
    found = json.loads((run / "decision.json").read_text())["decision_curve"]
    fitted = json.loads((run / "calibration.json").read_text())
    of = predictions.read(run).splits["test"]
    p = calibration.scaled(of.probabilities, fitted["temperature"]["value"])
    p = p * np.array([0.02, 0.49, 0.49]) / (1 / 3)
    risk, sick = p[:, 0] / p.sum(axis=1), of.labels == 0
    t = found["threshold"][9]
    tp, fp = 0.02 * (risk[sick] >= t).mean(), 0.98 * (risk[~sick] >= t).mean()
    assert found["model"][9]["value"] == pytest.approx(tp - fp * t / (1 - t))
    assert found["all"][9] == pytest.approx(0.02 - 0.98 * t / (1 - t))


def test_without_a_prevalence_the_curve_takes_risks_at_that_of_the_validation_split(run, tmp_path):
    """Trained as if the disease were rare, the network gives risks that are too low by far."""
    rare = shutil.copytree(run, tmp_path / "rare")
    fitted = json.loads((rare / "calibration.json").read_text())
    prior = np.array([0.001, 0.4995, 0.4995])
    fitted["training_prior"] = dict(zip(fitted["classes"], prior.tolist(), strict=True))
    (rare / "calibration.json").write_text(json.dumps(fitted))
    command(rare)
    found = json.loads((rare / "decision.json").read_text())["decision_curve"]
    splits = predictions.read(rare).splits
    of = splits["test"]
    p = calibration.scaled(of.probabilities, fitted["temperature"]["value"])
    p = p * np.bincount(splits["validation"].labels, minlength=3) / prior
    risk, sick = p[:, 0] / p.sum(axis=1), of.labels == 0
    t = np.array(found["threshold"])
    treated = risk[:, None] >= t
    net = treated[sick].sum(axis=0) - treated[~sick].sum(axis=0) * t / (1 - t)
    assert [m["value"] for m in found["model"]] == pytest.approx((net / len(sick)).tolist())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--disease", "flu"], "no class is named flu; name one by --disease: COVID, Normal"),
        (["--prevalence", "1.5"], "--prevalence is 1.5; it must lie in [0, 1]"),
        (["--pcr-sensitivity", "nan"], "--pcr-sensitivity is nan"),
    ],
)
def test_mistakes_are_a_sentence(run, capsys, arguments, words):
    assert command(run, *arguments) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1


def test_without_a_class_of_that_name_or_calibration(tmp_path, capsys):
    other = make(tmp_path / "other", classes=("a", "b", "c"))
    assert command(other) == 2
    assert "no class is named COVID; name one by --disease: a, b, c" in capsys.readouterr().err
    assert command(other, "--disease", "B") == 0
    (other / "calibration.json").unlink()
    assert command(other, "--disease", "b") == 2
    assert "calibration.json cannot be read" in capsys.readouterr().err


def test_classes_that_differ_in_case_only_are_told_apart(tmp_path, capsys):
    other = make(tmp_path / "other", classes=("covid", "COVID", "Normal"))
    for asked, wanted in ((["--disease", "covid"], "covid"), ([], "COVID")):
        assert command(other, *asked) == 0
        assert json.loads((other / "decision.json").read_text())["disease"] == wanted
    capsys.readouterr()
    assert command(other, "--disease", "Covid") == 2
    told = capsys.readouterr().err
    assert "several classes are named Covid; name one by --disease: covid, COVID." in told
    assert told.count("\n") == 1


def test_a_test_split_of_one_class_is_a_sentence(tmp_path, capsys):
    """As where a source of COVID films alone is held out."""
    single = make(tmp_path / "single", n=1)
    (label,) = predictions.read(single).splits["test"].labels
    for k, name in enumerate(("COVID", "Normal", "Viral Pneumonia")):
        assert command(single, "--disease", name) == 2
        told = capsys.readouterr().err
        assert f" {'are all' if k == label else 'hold no'} {name}, which" in told
        assert told.count("\n") == 1
