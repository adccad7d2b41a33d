"""The data audit: every planted fault is found alone, clean phantoms raise nothing."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from cxrjax import config as configuration
from cxrjax.audit import __main__ as command
from cxrjax.audit import data_audit, doubts, predictability, run, statistics
from cxrjax.data.phantom import PhantomSource


def audited(tmp_path, **fields):
    config = configuration.default()
    config.data.image_size = 64
    config.data.phantom.count = 480
    config.data.update_from_flattened_dict(fields)
    configuration.validate(config)
    (tmp_path / "figures").mkdir()
    report, data = run.data_set(config, tmp_path / "figures")
    json.dumps(report, allow_nan=False)
    return report, data


def kinds(report):
    return {finding["kind"] for finding in report["findings"]}


def test_clean_phantoms_raise_nothing(tmp_path):
    """One seed; experiments/false_alarms.py tries twenty."""
    report, _ = audited(tmp_path)
    assert report["findings"] == []
    assert report["sources"]["cramers_v"]["value"] is None
    # Opacities do show in thumbnails: a figure, not a finding.
    assert not report["predictability"]["thumbnails_8x8"]["counts_as_finding"]


@pytest.mark.parametrize("strength", [0.3, 0.9])
def test_markers_are_found(tmp_path, strength):
    report, _ = audited(tmp_path, **{"phantom.marker": strength})
    assert kinds(report) == {"borders"}
    assert (tmp_path / "figures/predictability.png").stat().st_size > 1000


@pytest.mark.parametrize("strength", [0.02, 0.2])
def test_duplicates_are_found(tmp_path, strength):
    report, _ = audited(tmp_path, **{"phantom.duplicates": strength})
    assert kinds(report) == {"duplicates"}  # kept on one side, so nothing leaks
    assert report["duplicates"]["pairs"] >= 0.98 * round(strength * 480)
    assert (tmp_path / "figures/duplicates.png").stat().st_size > 1000


@pytest.mark.parametrize("strength", [0.05, 0.2])
def test_duplicates_across_splits_are_leaks(tmp_path, strength):
    report, _ = audited(tmp_path, **{"phantom.duplicates": strength, "group_duplicates": False})
    assert kinds(report) == {"duplicates", "leaks"}


@pytest.mark.parametrize("strength", [0.15, 0.4])
def test_label_noise_is_found(tmp_path, strength):
    report, _ = audited(tmp_path, **{"phantom.label_noise": strength, "phantom.count": 800})
    assert kinds(report) == {"label_doubts"}


def test_label_noise_shows_in_duplicates_too(tmp_path):
    report, _ = audited(tmp_path, **{"phantom.label_noise": 0.2, "phantom.duplicates": 0.3})
    assert {"duplicates", "label_conflicts"} <= kinds(report)


@pytest.fixture
def folder(tmp_path):
    """Phantoms as files: one class as coarse JPEG of another size, classes from own sources."""
    source, rows = PhantomSource(160, 4), []
    for i, record in enumerate(source.records):
        kind = record.name.split("/")[0]
        path = tmp_path / "films" / kind / f"{i}{'.jpg' if kind == 'clear' else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "clear":
            Image.fromarray(source.read(i, 80)).save(path, quality=60)
        else:
            Image.fromarray(source.read(i, 64)).save(path)
        rows.append([f"{kind}/{path.name}", f"p{i // 2}", f"hospital {record.label // 2}"])
    with open(tmp_path / "films/metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "patient", "source"], *rows])
    return tmp_path / "films"


def test_files_sources_and_patients_that_tell_the_class(tmp_path, folder):
    report, _ = audited(tmp_path, name="folder", dir=str(folder))
    assert {"encoding", "resolution", "sources"} <= kinds(report)
    told = report["predictability"]["encoding"]["auroc"]
    assert told["n"] == 160 and 0.7 < told["low"] <= told["value"] <= told["high"]
    v = report["sources"]["cramers_v"]
    assert 0.95 < v["low"] <= v["value"] <= v["high"] <= 1 and v["n"] == 160
    assert report["sources"]["table"]["hospital 0"]["perihilar"] == 0
    assert (tmp_path / "figures/sources.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("n", "hospitals", "films", "link", "v"),
    [
        (100, 3, 1, 0.0, 0.0),
        (480, 24, 1, 0.0, 0.0),
        (2000, 50, 1, 0.0, 0.0),
        (960, 8, 8, 0.0, 0.0),
        (480, 16, 1, 0.5, 0.5),
        (960, 4, 8, 0.8, 0.8),
    ],
)
def test_many_hospitals_and_films_of_one_patient_raise_nothing_by_chance(
    n, hospitals, films, link, v
):
    """Patients of four classes and of hospitals that tell the class of a share `link` of them."""
    found = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        of = rng.integers(hospitals, size=n // films)
        labels = np.where(rng.random(len(of)) < link, of % 4, rng.integers(4, size=len(of)))
        patient = np.repeat(np.arange(len(of)), films)
        store = SimpleNamespace(sources=[f"h{k}" for k in of[patient]], labels=labels[patient])
        data = SimpleNamespace(store=store, groups=patient, classes=tuple("abcd"))
        found.append(data_audit.by_source(data)["cramers_v"])
    assert all(0 <= each["low"] <= each["value"] <= each["high"] <= 1 for each in found)
    assert sum(each["low"] > data_audit.CRAMERS_V_ALARM for each in found) == (12 if link else 0)
    # The root of what strays about nought is above nought.
    assert abs(np.mean([each["value"] for each in found]) - v) < (0.03 if link else 0.1)


def test_a_patient_on_two_sides_of_given_splits_is_found(tmp_path, folder):
    rows = ["file,patient"]
    for i, path in enumerate(sorted(folder.glob("*/*.*"))):
        part, kind = ("train", "test")[i % 2], path.parent.name
        (folder / part / kind).mkdir(parents=True, exist_ok=True)
        path.rename(folder / part / kind / path.name)
        rows.append(f"{part}/{kind}/{path.name},p{i // 2}")
    for kind in {path.name for path in folder.iterdir()} - {"train", "test", "metadata.csv"}:
        (folder / kind).rmdir()
    (folder / "metadata.csv").write_text("\n".join(rows))
    report, data = audited(tmp_path, name="folder", dir=str(folder), group_duplicates=False)
    assert "patients" in kinds(report)
    assert sum(report["leaks"]["patients"].values()) >= 70
    assert data.groups.max() > 0


def test_the_command_writes_and_tells(tmp_path, capsys):
    arguments = ["--config.data.image_size=32", "--config.data.phantom.count=100"]
    arguments += ["--config", "configs/quickstart.py", "--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--strict"]) == 0
    assert "nothing found in 100 images" in capsys.readouterr().out
    arguments.append("--config.data.phantom.duplicates=0.2")
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--strict"]) == 1
    assert "pairs of near-duplicates" in capsys.readouterr().out
    report = json.loads((tmp_path / "out/audit.json").read_text())
    assert report["findings"] and report["seconds"]["total"] > report["seconds"]["prepare"] >= 0
    assert command.main(["--workdir", str(tmp_path / "nowhere")]) == 2


def test_the_interval_holds_the_auroc_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    features = rng.normal(size=(400, 5)) + 0.5 * labels[:, None]
    groups = np.arange(400)
    shuffled = features[rng.permutation(400)]
    families = {"told": features, "shuffled": shuffled}
    found, none = predictability.scores(families, labels, ("a", "b"), groups).values()
    chosen = np.random.default_rng(0).permutation(400)
    folds = predictability.divide(labels[chosen], 2, groups[chosen])
    held_out = predictability.held_out(features[chosen], labels[chosen], 2, folds)
    assert found["value"] == pytest.approx(roc_auc_score(labels[chosen], held_out[:, 1]))
    assert found["low"] < found["value"] < found["high"] and found["n"] == 400
    assert none["low"] < 0.5 < data_audit.AUROC_ALARM


def test_copies_do_not_help_the_classifier():
    """Pure noise, every film thrice: only folds that split groups would tell the class."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 30)), rng.integers(2, size=60)
    tripled = [np.tile(a, (3, 1) if a.ndim > 1 else 3) for a in (features, labels)]
    features, labels = tripled
    apart, together = (
        predictability.scores({"noise": features}, labels, ("a", "b"), groups)["noise"]["value"]
        for groups in (np.tile(np.arange(60), 3), np.arange(180))
    )
    assert apart < 0.7 < together


def test_statistics_that_do_not_vary_tell_nothing():
    flat = {"flat": np.ones((50, 4))}
    score = predictability.scores(flat, np.arange(50) % 2, ("a", "b"), np.arange(50))
    assert score == {"flat": {"value": None, "low": None, "high": None, "n": 50}}


def test_borders_see_no_lungs():
    """The cells described are those that lungs hardly ever reach."""
    source = PhantomSource(60, 9)
    masks = np.stack([source.read_mask(i, 64) for i in range(60)]) > 0
    share = masks.reshape(60, 16, 4, 16, 4).mean((0, 2, 4))[statistics._rim()]
    assert share.mean() < 0.02 and share.max() < 0.2


def test_exposure_is_that_of_the_pixels():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 40, 40)).astype(np.uint8)
    images[0] = 7
    counts = np.stack([np.bincount(image.ravel(), minlength=256) for image in images])
    found = statistics.exposure(counts)
    for row, image in zip(found, images, strict=True):
        assert row[:2] == pytest.approx([image.mean(), image.std()], rel=1e-4, abs=1e-3)
        wanted = np.percentile(image, (1, 5, 25, 50, 75, 95, 99), method="inverted_cdf")
        assert row[2:9] == pytest.approx(wanted)
        assert row[9:] == pytest.approx(
            [(image == 0).mean(), (image == 255).mean(), len(np.unique(image))]
        )


def test_blank_masks_are_segmented_as_if_there_were_none(monkeypatch):
    own = np.zeros((3, 64, 64), np.uint8)
    own[0, 20:40, 20:40] = 255
    store = SimpleNamespace(has_mask=np.array([True, True, False]), masks=own)
    monkeypatch.setattr(doubts.lungs, "masks", lambda films: films > 100)
    films = np.full((3, 64, 64), 200, np.uint8)
    found = doubts._masks(films, SimpleNamespace(store=store), np.arange(3))
    np.testing.assert_array_equal(found[0], own[0] > 0)
    assert found[1].all() and found[2].all()


def test_wilson_is_the_published_interval():
    # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E, table I
    found = doubts.wilson(81, 263)
    assert (found["low"], found["high"]) == (
        pytest.approx(0.2553, abs=1e-4),
        pytest.approx(0.3662, abs=1e-4),
    )
    assert doubts.wilson(0, 20)["low"] == 0
