"""Checks of maps: what they say of known maps, and what the command makes of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cxrjax import config as config_lib
from cxrjax import loop, trained
from cxrjax.errors import UserError
from cxrjax.explain import __main__ as explain
from cxrjax.explain import consensus, maps, perturbation, sanity
from cxrjax.models.grid import Grid, pixels

QUICK = ("--panels", "0", "--faithfulness", "4", "--sanity", "4", "--agreement", "8")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed."""
    root = tmp_path_factory.mktemp("checks")
    for seed in (0, 1):
        config = config_lib.default()
        config.seed = seed
        config.data.image_size = 32
        config.data.phantom.count = 80
        config.model.filters = 4
        config.train.epochs = 1
        config.eval.resamples = 100
        config.eval.shortcuts = False
        loop.train_and_evaluate(config, root / f"seed{seed}")
    return root / "seed0", root / "seed1"


@pytest.fixture(scope="module")
def run(runs):
    return trained.load(runs[0])


def linear_network():
    """One linear score of the pixels, its gradient, and films on which it tells."""
    gradient = np.zeros((16, 16))
    gradient[3:7, 9:13] = 1
    films = np.random.default_rng(0).integers(0, 60, (8, 16, 16)).astype(np.uint8)
    films[:, 3:7, 9:13] = 250

    def predict(images):
        p = (images * gradient).sum((1, 2)) / 255 / gradient.sum()
        return np.stack([1 - p, p], axis=1)

    return predict, np.repeat(gradient[None], 8, axis=0), films


def test_true_evidence_beats_maps_that_know_nothing():
    predict, gradient, films = linear_network()
    of = predict, films
    rest = pixels(16), np.ones(8, int), np.arange(8)
    true = perturbation.faithfulness(*of, gradient, *rest)
    noise = np.random.default_rng(1).random(gradient.shape)
    random = perturbation.faithfulness(*of, noise, *rest)
    for way in perturbation.BASELINES:
        for side in ("deletion", "insertion"):
            assert true["gain"][way][side]["low"] > 0
    assert random["gain"]["shuffled"]["deletion"]["low"] < 0
    curve = [point["value"] for point in true["curves"]["map"]["deletion"]]
    assert curve[0] > 0.9 and curve[1] < 0.4
    area = {way: true["area"][way]["deletion"]["value"] for way in true["area"]}
    gained = true["gain"]["centre"]["deletion"]["value"]
    assert gained == pytest.approx(area["centre"] - area["map"])
    assert all(" more than " in said for said in perturbation.sentences(true))
    opposite = perturbation.faithfulness(*of, -gradient, *rest)
    assert "less than" in perturbation.sentences(opposite)[0]


def entry(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 9}


def test_shuffled_maps_keep_their_values_and_lose_their_place():
    raw = np.arange(2 * 49.0).reshape(2, 7, 7)
    other = perturbation.shuffled(raw)
    np.testing.assert_array_equal(np.sort(other.reshape(2, -1)), raw.reshape(2, -1))
    assert (other != raw).mean() > 0.8
    assert not np.array_equal(other[0], other[1] - 49)


def test_sentences_of_curves_claim_only_what_intervals_support():
    area = {
        of: {"deletion": entry(0.3, 0.2, 0.4), "insertion": entry(0.3, 0.2, 0.4)} for of in "ab"
    }
    area = dict.fromkeys(("map", "shuffled", "centre"), area["a"])
    unsure = {"deletion": entry(0.1, -0.1, 0.3), "insertion": entry(0.1, 0.05, 0.3)}
    found = {"area": area, "gain": dict.fromkeys(perturbation.BASELINES, unsure)}
    said = perturbation.sentences(found)
    assert ["not shown" in text for text in said] == [True, False, True, False]
    unknown = dict.fromkeys(("deletion", "insertion"), entry(0.1, None, None))
    found["gain"] = dict.fromkeys(perturbation.BASELINES, unknown)
    assert perturbation.sentences(found) == [
        "Too few images (n=9) to say what deletion and insertion show."
    ]


@pytest.mark.parametrize(
    ("last", "passed"),
    [(entry(0.4, 0.3, 0.49), True), (entry(0.4, 0.3, 0.51), False), (entry(0.1, None, None), None)],
)
def test_the_interval_decides_the_sanity_check(run, monkeypatch, last, passed):
    monkeypatch.setattr(sanity, "mean_interval", lambda *_: last)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32)).astype(np.uint8)
    explainer = maps.Explainer(run, "grad_cam")
    found = sanity.check(explainer, images, np.zeros(2, int), np.arange(2), depths=[5])
    assert found["passed"] is passed
    word = {True: "passed", False: "FAILED", None: "Too few"}[passed]
    assert word in sanity.sentence(found, "grad_cam")


def test_the_cascade_ends_with_all_layers():
    assert sanity.cascade(5) == [1, 2, 3, 4, 5]
    assert sanity.cascade(16) == [1, 4, 16]
    assert sanity.cascade(121) == [1, 4, 16, 64, 121]


@pytest.mark.parametrize("method", ["grad_cam", "ablation_cam", "integrated_gradients"])
def test_maps_of_chosen_classes_are_those_of_all_classes(run, method):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    classes = np.array([2, 0, 1, 1, 3])
    explainer = maps.Explainer(run, method)
    whole = explainer(images)[1][np.arange(5), classes]
    alone = explainer.of_classes(images, classes)
    np.testing.assert_allclose(alone, whole, atol=1e-5 * np.abs(whole).max())


def test_agreement_is_set_against_maps_of_other_images():
    rng = np.random.default_rng(0)
    fine = rng.normal(size=(12, 16, 16))
    cells = fine.reshape(12, 4, 4, 4, 4).mean((2, 4))
    classes, groups = np.arange(12) % 3, np.arange(12)
    grid = Grid(1.5, 4, 4, 16)
    own, same = consensus.pairs(
        {
            "a": consensus.Maps(cells, grid),
            "b": consensus.Maps(maps.enlarge(cells, grid), pixels(16)),
            "c": consensus.Maps(rng.normal(size=(12, 4, 4)), grid),
        },
        classes,
        groups,
    )[:2]
    assert (own["first"], own["second"], same["second"]) == ("a", "b", "c")
    assert own["same_image"]["value"] > 0.9 and own["difference"]["low"] > 0
    assert abs(own["other_image"]["value"]) < 0.3
    assert same["difference"]["low"] < 0 < same["difference"]["high"]
    said = consensus.sentences([own, same], "methods")
    assert "agree on the single image" in said[0] and "not shown" in said[1]


def test_other_images_are_of_the_same_class():
    classes = np.array([0, 0, 0, 1, 1, 2])
    other = consensus.others(classes)
    np.testing.assert_array_equal(classes[other], classes)
    assert (other[:5] != np.arange(5)).all() and other[5] == 5
    assert sorted(other) == list(range(6))


def test_the_command_checks_its_maps(runs, tmp_path, capsys):
    arguments = ["--workdir", str(runs[0]), "--out", str(tmp_path), *QUICK]
    arguments += ["--method", "grad_cam,layer_cam", "--against", str(runs[1])]
    assert explain.main(arguments) == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == "grad_cam"
    found = summary["checks"]
    assert found["faithfulness"]["area"]["centre"]["insertion"]["n"] == 4
    assert next(iter(found["randomisation"]["layers"])) == "logits"
    (of_methods,), (of_runs,) = (found["agreement"][what] for what in ("methods", "runs"))
    assert (of_methods["first"], of_methods["second"]) == ("grad_cam", "layer_cam")
    assert (of_runs["first"], of_runs["second"]) == ("seed0", "seed1")
    assert of_methods["same_image"]["n"] <= 8 < of_runs["same_image"]["n"]
    assert of_runs["same_image"]["value"] < 0.99
    assert "Randomisation" in printed and "the runs seed0 and seed1" in printed
    assert (tmp_path / "checks.png").stat().st_size > 10_000


def test_maps_of_another_run_are_of_the_same_images_and_classes(run, monkeypatch):
    """A run agrees with itself, whatever the order of the images."""
    data = run.data()
    positions = data.splits["test"][[3, 0, 2]]
    images, classes = np.asarray(data.store.images[positions]), np.array([1, 0, 2])
    explainer = maps.Explainer(run, "grad_cam")
    own = explainer.of_classes(images, classes)
    names = [data.store.names[i] for i in positions]
    monkeypatch.chdir(run.folder)
    explainer.run = replace(run, folder=Path("."))
    twin = maps.Explainer(replace(run, folder=run.folder / "twin"))
    (pair,) = consensus.between_runs(explainer, own, [twin], names, classes, np.arange(3))
    assert (pair["first"], pair["second"]) == ("seed0", "twin")
    assert pair["same_image"]["value"] == pytest.approx(1)


def test_checks_can_be_left_out(runs, tmp_path):
    off = ("--panels", "0", "--faithfulness", "0", "--sanity", "0", "--agreement", "0")
    assert explain.main(["--workdir", str(runs[0]), "--out", str(tmp_path), *off]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["checks"] == {}
    assert not (tmp_path / "checks.png").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--sanity", "-1"], "--sanity must be 0 or more"),
        (["--method", "grad_cam,gradcam"], "no method 'gradcam'"),
        (["--against", "none"], "holds no run"),
        (["--against", "ITSELF"], "the run itself"),
    ],
)
def test_bad_checks_are_one_sentence(runs, tmp_path, capsys, extra, sentence):
    extra = [word.replace("ITSELF", str(runs[0])) for word in extra]
    assert explain.main(["--workdir", str(runs[0]), "--out", str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "explanations.jsonl").exists()


def untested(config):
    config = config.copy_and_resolve_references()
    config.eval.test = False
    return config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (lambda run: {"classes": ("a", "b")}, "tells other classes apart"),
        (lambda run: {"digest": "0" * 64}, "another split of them"),
        (lambda run: {"fingerprint": "other"}, "other images"),
        (lambda run: {"config": untested(run.config)}, "was not tested"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(run, monkeypatch, changes, sentence):
    other = replace(run, **changes(run))
    monkeypatch.setattr(trained, "load", lambda folder: replace(other, folder=folder))
    with pytest.raises(UserError, match=sentence):
        consensus.open_runs(run, ["elsewhere"], "test")
    if sentence == "was not tested":
        assert consensus.open_runs(run, ["elsewhere"], "validation")
