"""Report B's protocol in single runs: on validation images too, and from another run."""

import csv
import json
import shutil
import signal
from dataclasses import replace

import jax
import numpy as np
import pytest
from protocol_runs import (
    ALL,
    arguments,
    assert_equal,
    finished,
    looks,
    opened,
    result_of,
    tiny,
)
from test_ahead import STEPS, compilations

from cxrjax import (
    build,
    compare,
    config,
    decide,
    evaluation,
    loop,
    main,
    predict,
    prefix,
    trained,
    verdict,
)
from cxrjax.audit import __main__ as audit
from cxrjax.data import dataset
from cxrjax.errors import UserError
from cxrjax.explain import __main__ as explain
from cxrjax.explain.maps import Explained


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A finished run whose head is trained on a frozen random backbone."""
    return finished(tiny(eval__test=False), tmp_path_factory, "head")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run on training and validation images."""
    return finished(tiny(train__on_validation=True), tmp_path_factory, "whole")


@pytest.fixture(scope="module")
def moved(tmp_path_factory, head):
    """A finished run that fine-tuned every layer from `head`."""
    settings = tiny(train__start_from=head, eval__test=False, train__epochs=1, **ALL)
    return finished(settings, tmp_path_factory, "moved")


# ------------------------------------------------------------------ train.on_validation


@pytest.mark.parametrize("stored", [True, False])
def test_training_on_validation_is_training_on_the_union(tmp_path, stored):
    settings = {"cache__prefix": stored, "train__class_weights": "balanced"}
    both, alone = tiny(train__on_validation=True, **settings), tiny(**settings)
    data = dataset.prepare(alone)
    union = np.sort(np.concatenate([data.splits["train"], data.splits["validation"]]))
    joined = replace(data, splits=data.splits | {"train": union})
    with opened(both, tmp_path / "both") as ours, opened(alone, tmp_path / "one", joined) as theirs:
        assert isinstance(ours.input, prefix.FrozenMaps) == stored
        ours.fit()
        theirs.fit()
        assert_equal(ours.state, theirs.state)
        for line, other in zip(ours.note["history"], theirs.note["history"], strict=True):
            assert line["loss"] == other["loss"]
        assert int(ours.state.step) == 2 * -(-len(union) // 8)
    np.testing.assert_array_equal(evaluation._prior(data, both), evaluation._prior(joined, alone))


def test_the_last_epoch_is_kept_whatever_its_loss(tmp_path, monkeypatch):
    for on_validation, kept in ((True, 2), (False, 1)):
        settings = tiny(train__on_validation=on_validation)
        with opened(settings, tmp_path / str(on_validation)) as training:
            validate = training._validate
            monkeypatch.setattr(training, "_validate", lambda e, v=validate: v(e) | {"loss": e + 1})
            training.fit()
            assert training.note["best_epoch"] == kept
            last = training.state.params, training.state.batch_stats
            if on_validation:
                assert_equal(training.best, last)


def test_figures_of_images_trained_on_say_so(whole, capsys):
    result = result_of(whole)
    assert result["trained_on"] == ["train", "validation"]
    assert result["best_epoch"] == result["epochs"] == 2
    assert result["validation"]["trained_on"] is True and "trained_on" not in result["test"]
    assert "; trained on validation images too; leaks 0" in result["verdict"]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("trained_on") for line in lines] == [None, True] * 2
    told = verdict.summary(result)
    assert "2 epochs on training and validation images, the last one kept" in told
    assert told.count("on images trained on") == 1
    fitted = json.loads((whole / "calibration.json").read_text())
    assert fitted["fitted_on_training_images"] is True
    predict.calibration(whole)
    assert "images that the network was trained on" in capsys.readouterr().err
    assert decide.main(["--workdir", str(whole), "--disease", "clear", "--resamples", "100"]) == 0
    assert "images that the network was trained on" in capsys.readouterr().err


@pytest.mark.parametrize("only", ["all", "misclassified"])
def test_explanations_of_images_trained_on_say_so(whole, tmp_path, capsys, monkeypatch, only):
    monkeypatch.setattr(Explained, "right", property(lambda found: found.labels >= 0))
    checks = ("faithfulness", "sanity", "agreement", "panels")
    out = ["--out", str(tmp_path), "--only", only, *(f"--{check}=0" for check in checks)]
    for split, trained_on in (("validation", True), ("test", False)):
        assert explain.main(["--workdir", str(whole), *out, "--split", split]) == 0
        told = f"The images of the {split} split were trained on."
        assert (told in capsys.readouterr().out) == trained_on
        sentences = json.loads((tmp_path / "summary.json").read_text())["sentences"]
        assert (told == sentences[0]) == trained_on and len(sentences) > trained_on


def test_nothing_stops_early_by_images_trained_on():
    with pytest.raises(UserError, match=r"train\.patience to 0, not 3"):
        tiny(train__on_validation=True, train__patience=3)


# ------------------------------------------------------------------ train.start_from


def test_a_run_starts_with_the_best_weights_of_another(head, moved, tmp_path):
    source = trained.load(head)
    # What model.weights says does not count.
    settings = tiny(train__start_from=head, model__weights="/does/not/exist.h5", **ALL)
    build.check(settings)
    with opened(settings, tmp_path / "run") as training:
        assert_equal(training.state.params, source.params)
        assert_equal(training.state.batch_stats, source.batch_stats)
        assert training.recipe.mean == source.recipe.mean
        best = min(line["loss"] for line in validation_lines(head))
        assert training._validate(0)["loss"] == pytest.approx(best, rel=1e-5)
        started = training.note["input"]["start_from"]
        assert started == {
            "run": str(head),
            "sha256": result_of(head)["weights_digest"],
            "best_epoch": result_of(head)["best_epoch"],
            "trained_on": ["train"],
            "start_from": None,
        }
        origin = build.network(settings, training.data)[2].origin
    assert build.origin(settings) == origin == source.weights_digest
    assert build.origin(tiny()) is None and origin != trained.load(moved).weights_digest


def test_fine_tuning_moves_every_layer(head, moved):
    before, after = (trained.load(run).params["backbone"] for run in (head, moved))
    assert before.keys() == after.keys()
    for layer, tensors in before.items():
        for name, values in tensors.items():
            assert np.abs(after[layer][name] - values).max() > 1e-5, (layer, name)


def validation_lines(workdir):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == "validation"]


def test_what_started_from_a_run_can_be_opened_and_started_from(head, moved, tmp_path):
    last = tmp_path / "last"
    settings = tiny(train__start_from=moved, train__on_validation=True)
    loop.train_and_evaluate(settings, last)
    told = result_of(last)["input"]["start_from"]
    assert (told["run"], told["start_from"]["run"]) == (str(moved), str(head))
    found = trained.load(last)
    frozen = trained.load(moved).params["backbone"]
    assert_equal(found.params["backbone"], frozen)  # as the other run left them, not as initialised
    images = dataset.prepare(settings)
    ours = found.predict(images.store.images[images.splits["test"]])
    with open(last / "predictions.csv", newline="") as file:
        test = [row for row in csv.DictReader(file) if row["split"] == "test"]
    theirs = [[float(row[name]) for name in found.classes] for row in test]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def each_step_once(compiled):
    steps = [about["fun_name"] for about in compiled if about.get("fun_name") in STEPS]
    return len(steps) == len(set(steps)) == 2


def test_resuming_needs_the_other_run_no_more(moved, tmp_path, monkeypatch):
    first, broken = tmp_path / "first", tmp_path / "broken"
    shutil.copytree(moved, first)
    settings = tiny(train__start_from=first)
    with compilations() as seen, opened(settings, tmp_path / "unbroken") as training:
        training.fit()
        unbroken, stored = jax.device_get(training.state), training.input._file._maps
    assert each_step_once(seen)
    train_epoch = loop.Training._train_epoch

    def stopped(self, epoch, stop):
        if epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, stop)

    with monkeypatch.context() as patch, opened(settings, broken) as training:
        patch.setattr(loop.Training, "_train_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            training.fit()
    shutil.rmtree(first)
    with pytest.raises(UserError, match=r"train\.start_from: .* holds no run"):
        build.check(settings, tmp_path / "another")
    build.check(settings, broken)
    with compilations() as seen, opened(settings, broken) as training:
        assert training.input._file._maps == stored  # not computed again
        training.resume()
        assert training.note["input"]["start_from"]["run"] == str(first)
        training.fit()
        assert_equal(training.state, unbroken)
    assert each_step_once(seen)


def test_a_resumed_run_names_the_same_start(head, tmp_path, monkeypatch):
    settings = tiny(train__start_from=head, eval__test=False)
    loop.train_and_evaluate(settings, tmp_path / "whole")
    train_epoch = loop.Training._train_epoch

    def stopped(self, epoch, stop):
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)
        return train_epoch(self, epoch, stop)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Training, "_train_epoch", stopped)
        loop.train_and_evaluate(settings, tmp_path / "broken")
    loop.train_and_evaluate(settings, tmp_path / "broken")
    whole, broken = (result_of(tmp_path / name)["input"] for name in ("whole", "broken"))
    assert whole == broken and broken["start_from"]["run"] == str(head)
    # Whoever builds a network upon the run's own checkpoint is told the same.
    data = dataset.prepare(settings)
    _, _, variables = build.network(settings, data, tmp_path / "broken")
    assert variables.start == broken["start_from"]


@pytest.mark.parametrize("change", ["pretrained", "segmentation", "mean", "std"])
def test_a_run_goes_on_behind_what_it_was_begun_with_only(tmp_path, change):
    settings = tiny(eval__test=False, train__epochs=1)
    with opened(settings, tmp_path) as training:
        weights = {"path": "/elsewhere/w.npz", "sha256": "a" * 64}
        training.folder.keep_config(settings)
        training.note["input"] |= {"pretrained": weights, "segmentation": "1"}
        contract = dict(training.note["input"])
        training.save(wait=True)
    with opened(settings, tmp_path) as training:
        training.note["input"] = contract | {"pretrained": weights | {"path": "/moved.npz"}}
        training.resume()  # the same file elsewhere
        other = {"pretrained": weights | {"sha256": "b" * 64}, "segmentation": "2"}
        other |= {"mean": [0.25], "std": [0.125]}
        training.note["input"] = contract | {change: other[change]}
        with pytest.raises(UserError, match=r"was begun with another .*, now .*--workdir"):
            training.resume()


def test_a_run_cut_off_at_its_first_checkpoint_starts_anew(head, tmp_path):
    settings = tiny(train__start_from=head)
    half = tmp_path / "run/checkpoints/2.orbax-checkpoint-tmp-7"
    half.mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(config.to_json(settings))
    with opened(settings, tmp_path / "run") as training:
        assert_equal(training.state.params["head"], trained.load(head).params["head"])


def test_maps_of_layers_trained_elsewhere_are_not_taken_for_those_of_the_file(
    head, moved, tmp_path
):
    names = {}
    for name, source in (("none", ""), ("same", head), ("moved", moved)):
        with opened(tiny(train__start_from=source), tmp_path / name) as training:
            names[name] = training.input._file._maps.name
    assert names["none"] == names["same"] != names["moved"]


def test_statistics_of_trained_layers_do_not_change_the_maps(tmp_path):
    settings = tiny(model__trainable_layers=3)
    data = dataset.prepare(settings)
    _, recipe, variables = build.network(settings, data)
    keys = []
    for layer in (None, "bn4", "bn1"):
        statistics = jax.tree.map(np.array, variables.batch_stats)
        if layer is not None:
            statistics["backbone"][layer]["mean"] += 1
        changed = variables._replace(batch_stats=statistics)
        keys.append(prefix._key(settings, recipe, data, changed, False, 64))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__filters": 6}, r"model\.filters is 6, .* has 4"),
        ({"model__head__dense": 8}, r"model\.head\.dense is 8"),
        ({"data__image_size": 40}, r"data\.image_size is 40"),
        ({"input__normalize": "backbone"}, r"input\.normalize is 'backbone'"),
        ({"data__classes": "perihilar,clear,consolidation,ground_glass"}, r"other classes"),
        ({"data__split_seed": 1}, r"another split, so it may know test images"),
        ({"data__phantom__seed": 1}, r"other data"),
        ({"train__start_from": "/does/not/exist"}, r"train\.start_from: /does/not/exist"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(head, tmp_path, changes, words):
    settings = {"train__start_from": head, **ALL} | changes
    with pytest.raises(UserError, match=words) as told:
        loop.train_and_evaluate(tiny(**settings), tmp_path / "run")
    assert "train.start_from" in str(told.value)
    assert not (tmp_path / "run/config.json").exists()


def test_an_unfinished_run_is_refused(head, tmp_path):
    shutil.copytree(head, tmp_path / "copy")
    (tmp_path / "copy/result.json").unlink()
    with pytest.raises(UserError, match=r"train\.start_from: the run in .* is not finished"):
        loop.train_and_evaluate(tiny(train__start_from=tmp_path / "copy"), tmp_path / "run")


def test_images_trained_on_before_cannot_choose_the_epoch(whole, tmp_path):
    with pytest.raises(UserError, match="cannot choose an epoch any more"):
        loop.train_and_evaluate(tiny(train__start_from=whole), tmp_path / "run")
    build.check(tiny(train__start_from=whole, train__on_validation=True))


def test_the_path_is_kept_absolute(head, tmp_path, monkeypatch):
    found = []

    def run(settings, workdir):
        found.append(settings.train.start_from)
        raise UserError("enough.")

    monkeypatch.setattr(loop, "train_and_evaluate", run)
    monkeypatch.chdir(head.parent)
    assert main.main(arguments(tmp_path / "run", train__start_from="head")) == 2
    assert found == [str(head)]


# ------------------------------------------------------------------ eval.test


def test_commands_refuse_test_figures_of_a_run_that_was_not_tested(head, whole, tmp_path, capsys):
    before = looks()
    out = ["--out", str(tmp_path / "out")]
    run = ["--workdir", str(head)]
    for command, line in (
        (compare, [str(head), str(whole)]),
        (decide, run),
        (explain, [*run, *out]),
        (audit, [*run, *out]),
    ):
        assert command.main(line) == 2
        told = capsys.readouterr().err
        assert "eval.test is False" in told and f"--workdir {head} --config.eval.test=True" in told
    assert looks() == before
    assert explain.main([*run, *out, "--split", "validation", "--panels", "1"]) == 0
    assert looks() == before
    data = dataset.prepare(trained.load(head).config)
    from PIL import Image

    Image.fromarray(np.asarray(data.store.images[0])).save(tmp_path / "film.png")
    assert predict.main([*run, str(tmp_path / "film.png")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["probabilities"]
