"""The commands explain and predict on a finished run, and what they say of bad input."""

import errno
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from cxrjax import config as config_lib
from cxrjax import loop, predict, trained
from cxrjax.data import ledger
from cxrjax.errors import UserError
from cxrjax.explain import __main__ as explain
from cxrjax.explain import maps, pictures, report
from cxrjax.models import registry
from cxrjax.models.grid import pixels

FEW = ("--panels", "0", "--faithfulness", "0", "--sanity", "0", "--agreement", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = config_lib.default()
    config.data.image_size = 32
    config.data.phantom.count = 80
    config.model.filters = 4
    config.train.epochs = 1
    config.eval.resamples = 100
    folder = tmp_path_factory.mktemp("explained") / "run"
    loop.train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def films(run, tmp_path_factory):
    """Ten images of the test split as files, and what the run wrote of them."""
    found = trained.load(run)
    data = found.data()
    folder = tmp_path_factory.mktemp("films")
    positions = data.splits["test"][:10]
    for i in positions:
        Image.fromarray(data.store.images[i]).save(folder / f"{i:03}.png")
    return folder, found.predict(data.store.images[positions]), found.classes


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def flat(found, data, raw, names):
    """Images of the test split under maps float [N, K, 32, 32], all classes as probable."""
    positions = data.splits["test"][: len(names)]
    return maps.Explained(
        positions,
        data.store.images[positions],
        data.store.labels[positions],
        data.groups[positions],
        np.full(raw.shape[:2], 1 / len(found.classes), np.float32),
        raw,
        pixels(32),
        names,
    )


def test_explain_writes_what_the_interface_says(run, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--workdir", str(run), "--out", str(out), "--panels", "2"]
    data = trained.load(run).data()
    ledger.record(data.store.root.parent, data.fingerprint, "another split", "a run")
    assert explain.main(arguments) == 0
    told = capsys.readouterr().out
    assert "16 images explained" in told
    summary = json.loads((out / "summary.json").read_text())
    looks = ledger.Looks(summary["test_looks"], summary["test_looks_elsewhere"])
    assert looks.here > 1 and looks.elsewhere and told.endswith(f"; {looks}\n")
    lines = lines_of((out / "explanations.jsonl").read_text())
    assert len(lines) == 16
    for line in lines:
        share = line["share"]
        assert all(0 <= v <= 1 for v in share.values() if v is not None)
        assert (share["lesion"] is None) == (line["label"] == "clear" or share["lungs"] is None)
    assert len(list((out / "panels").glob("*.png"))) == 2
    assert (out / "lung_share.png").stat().st_size > 1000
    known = [line["share"]["lungs"] for line in lines if line["share"]["lungs"] is not None]
    assert summary["scores"]["lungs"]["all"]["n"] == len(known)
    assert summary["scores"]["lungs"]["all"]["value"] == pytest.approx(np.mean(known))


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_second_call_leaves_nothing_of_the_first_and_all_else(run, tmp_path, monkeypatch):
    arguments = ["--workdir", str(run), "--out", str(tmp_path), "--sanity", "0", "--agreement", "0"]
    assert explain.main([*arguments, "--panels", "3", "--faithfulness", "2"]) == 0
    others = {"panels/mine.png", "panels/7.png", "panels/000-note.txt", "panels/123-note.png"}
    others.add("mine.png")
    for name in others:
        (tmp_path / name).write_text("mine")
    first = files_in(tmp_path)
    listed = json.loads((tmp_path / "summary.json").read_text())["panels"]
    assert {f"panels/{name}" for name in listed} | {"checks.png"} < first and len(listed) == 3
    assert explain.main([*arguments, "--method", "gradcam"]) == 2
    assert files_in(tmp_path) == first
    assert explain.main([*arguments, "--panels", "1", "--faithfulness", "0"]) == 0
    gone = {f"panels/{name}" for name in listed[1:]} | {"checks.png"}
    assert files_in(tmp_path) == first - gone
    assert json.loads((tmp_path / "summary.json").read_text())["panels"] == listed[:1]
    monkeypatch.setattr(maps.Explained, "right", property(lambda found: found.labels >= 0))
    assert explain.main([*arguments, "--only", "misclassified"]) == 0
    assert files_in(tmp_path) == others | {"explanations.jsonl", "summary.json"}
    assert json.loads((tmp_path / "summary.json").read_text())["panels"] == []


def test_explanations_and_results_name_the_weights(run, tmp_path):
    assert explain.main(["--workdir", str(run), "--out", str(tmp_path), *FEW]) == 0
    own = trained.load(run).weights_digest
    for file in (tmp_path / "summary.json", run / "result.json"):
        assert json.loads(file.read_text())["weights_digest"] == own


def test_methods_at_the_input_have_no_stage(run, tmp_path, capsys):
    arguments = ["--workdir", str(run), "--out", str(tmp_path / "out"), *FEW]
    arguments += ["--only", "misclassified"]
    at_input = ["--method", "smooth_grad"]
    assert explain.main([*arguments, *at_input, "--stage", "relu4"]) == 2
    told = capsys.readouterr().err
    assert "--stage is relu4, but smooth_grad looks at the input" in told and told.count("\n") == 1
    assert not files_in(tmp_path)
    for method, stage in (
        ([], ["relu3"]),
        (at_input, []),
        (["--method", "smooth_grad,grad_cam"], ["relu3"]),
    ):
        chosen = [*method, *(["--stage", *stage] if stage else [])]
        assert explain.main([*arguments, *chosen]) == 0
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        assert summary["stage"] == (None if method else "relu3")


def test_a_share_and_that_of_an_even_map_are_of_the_same_films(run):
    """Flat maps, every other one negative: no share is more than an even map's."""
    found = trained.load(run)
    data = found.data()
    positions = data.splits["test"]
    raw = np.ones((len(positions), len(found.classes), 32, 32), np.float32)
    raw[::2] = -1
    explained = flat(found, data, raw, ("",) * len(positions))
    shares = report._shares(found, data, explained, None)
    for name in ("lungs", "border", "lesion"):
        np.testing.assert_allclose(shares[f"{name}_even"], shares[name], rtol=1e-6)
        assert 0 < np.isfinite(shares[name]).sum() <= len(positions) / 2


def test_shares_are_those_of_all_images_whatever_is_enlarged_together(run, monkeypatch):
    found = trained.load(run)
    data = found.data()
    positions = data.splits["test"]
    raw = np.random.default_rng(0).normal(size=(16, len(found.classes), 32, 32))
    explained = flat(found, data, raw, ("",) * len(positions))
    whole, sizes, enlarged = report._shares(found, data, explained, None), [], maps.enlarge
    monkeypatch.setattr(maps, "enlarge", lambda m, grid: sizes.append(len(m)) or enlarged(m, grid))
    monkeypatch.setattr(report, "_AT_ONCE", 5)
    parts = report._shares(found, data, explained, None)
    assert sizes == [5, 5, 5, 1] and list(parts) == list(whole)
    for name, values in whole.items():
        np.testing.assert_allclose(parts[name], values, rtol=1e-6)


def test_films_of_any_name_are_drawn(run, tmp_path):
    found = trained.load(run)
    names = ("\u80f8" * 77 + ".png", "radiograf\udceda-013.png")
    explained = flat(found, found.data(), np.ones((2, len(found.classes), 32, 32)), names)
    shares = {"lungs": np.full(2, np.nan)}
    (tmp_path / "panels").mkdir()
    report._draw(tmp_path, found, explained, explained, shares, 2)
    drawn = sorted(path.name for path in (tmp_path / "panels").iterdir())
    assert drawn == [f"000-{names[0][:26]}.png", "001-radiografa-013.png"]
    assert (tmp_path / "misclassified.png").exists()


def test_only_misclassified(run, tmp_path):
    arguments = ["--workdir", str(run), "--out", str(tmp_path), "--only", "misclassified"]
    assert explain.main([*arguments, "--panels", "0", "--method", "layer_cam"]) == 0
    lines = lines_of((tmp_path / "explanations.jsonl").read_text())
    assert lines and all(line["class"] != line["label"] for line in lines)
    assert (tmp_path / "misclassified.png").exists()


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [(["--method", "gradcam"], "no method"), (["--stage", "relu9"], "relu4")],
)
def test_bad_choices_are_one_sentence(run, tmp_path, capsys, extra, sentence):
    assert explain.main(["--workdir", str(run), "--out", str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_predict_gives_the_probabilities_of_the_run(run, films, capsys, tmp_path):
    folder, expected, classes = films
    extra = ["--overlay", str(tmp_path / "overlays")]
    assert predict.main(["--workdir", str(run), str(folder), *extra]) == 0
    lines = lines_of(capsys.readouterr().out)
    ours = np.array([[line["probabilities"][c] for c in classes] for line in lines])
    fitted = json.loads(
        (run / "calibration.json").read_text()
    )  # by the run, on its validation split
    scaled = expected ** (1 / fitted["temperature"]["value"])
    scaled /= scaled.sum(1, keepdims=True)
    np.testing.assert_allclose(ours, scaled, atol=1e-6)
    unsure = scaled.max(1) < fitted["abstention"]["threshold"]
    chosen = [None if no else classes[k] for no, k in zip(unsure, expected.argmax(1), strict=True)]
    assert [line["abstained"] for line in lines] == unsure.tolist()
    assert [line["class"] for line in lines] == chosen
    assert not any(line["warnings"] for line in lines)
    assert Image.open(lines[0]["overlay"]).size == (32, 32)
    assert len(list((tmp_path / "overlays").iterdir())) == 10


def test_on_a_terminal_no_prediction_stands_behind_the_bar(run, films, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert predict.main(["--workdir", str(run), str(films[0])]) == 0
    text = terminal.getvalue()
    assert "predicting: " in text
    seen = [line.rpartition("\r")[2] for line in text.split("\n") if "{" in line]
    assert [json.loads(line)["file"] for line in seen] == sorted(map(str, films[0].iterdir()))


def test_unreadable_and_odd_files_are_told_line_by_line(run, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((40, 90), np.uint8)).save(tmp_path / "b.webp", lossless=True)
    assert predict.main(["--workdir", str(run), str(tmp_path)]) == 1
    broken, odd = lines_of(capsys.readouterr().out)
    assert broken["class"] is None and "not PNG" in broken["error"]
    assert odd["class"] is not None
    assert any("stretched" in w for w in odd["warnings"])
    assert any("blank" in w for w in odd["warnings"])


def test_an_answer_that_is_no_number_names_no_class(run, films, monkeypatch):
    found = trained.load(run)
    nothing = np.full((10, len(found.classes)), np.nan, np.float32)
    monkeypatch.setattr(trained.Trained, "predict", lambda *_: nothing)
    for line in predict.predictions(found, sorted(films[0].iterdir()), None):
        assert line["class"] is None and line["abstained"] and "no number" in line["error"]


def test_folders_are_searched_as_for_training(tmp_path, monkeypatch):
    folder, deep = tmp_path / "films", "films" + "/d" * 1500
    (tmp_path / "linked").mkdir()
    for i in range(0, len(deep), 500):
        (tmp_path / deep[: i + 500].rstrip("/")).mkdir(parents=True)
    names = ["b.png", "a/1.dcm", "a-1.JPG", ".hidden.png", "note.txt", "../linked/1.png"]
    (folder / "a").mkdir()
    (folder / "link").symlink_to(tmp_path / "linked")
    film = tmp_path / deep / "1.png"
    for path in (*map(folder.joinpath, names), film):
        path.touch()
    try:
        wanted = ["a/1.dcm", "a-1.JPG", "b.png", str(film.relative_to(folder)), "link/1.png"]
        assert list(predict.find([str(folder)])) == [folder / name for name in wanted]
    finally:  # else pytest fails where it clears its folders
        film.unlink()
        os.removedirs(film.parent)
    scandir = os.scandir

    def refuse(folder):  # as for those who are not root
        if os.path.basename(folder) == "a":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=f"^{folder}/a cannot be read"):
        list(predict.find([str(folder)]))


def test_masks_beside_films_are_not_predicted(tmp_path, capsys):
    """Wherever in a data set the folder named lies."""
    films = [f"set/{of}/images/{i}.png" for of in ("COVID", "Normal") for i in (1, 2)]
    films += ["set/Normal/3.png"]
    masks = [film.replace("images", kind) for film in films[:4] for kind in ("Masks", "lesions")]
    for name in (*films, *masks, "parts/train/A/1.png", "parts/test/B/masks/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for top in ("set", "set/COVID", "set/Normal", "set/COVID/images", "parts", "."):
        inside = [name for name in (*films, "parts/train/A/1.png") if f"{top}/" in f"./{name}"]
        found = list(predict.find([str(tmp_path / top)]))
        assert found == sorted(tmp_path / name for name in inside), top
    assert "set/COVID: passed over 4 files" in capsys.readouterr().err
    # Named themselves they are taken, as are those of a class called so.
    assert len(list(predict.find([str(tmp_path / "set/COVID/Masks")]))) == 2
    for name in ("kinds/lesions/1.png", "kinds/clear/1.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert len(list(predict.find([str(tmp_path / "kinds")]))) == 2
    with pytest.raises(UserError, match="holds no PNG, JPEG, WebP or DICOM film"):
        (tmp_path / "none/masks").mkdir(parents=True)
        (tmp_path / "none/masks/1.png").touch()
        list(predict.find([str(tmp_path / "none")]))


def test_overlays_of_long_names_fit_and_a_full_disk_is_a_sentence(
    run, films, tmp_path, monkeypatch, capsys
):
    film = tmp_path / ("\N{X-RAY}" * 60 + ".png")
    film.write_bytes(min(films[0].iterdir()).read_bytes())
    out = tmp_path / "overlays"
    arguments = ["--workdir", str(run), str(film), "--overlay", str(out)]
    assert predict.main(arguments) == 0
    (line,) = lines_of(capsys.readouterr().out)
    assert line["overlay"] == str(out / ("00000-" + "\N{X-RAY}" * 20 + ".png"))
    assert Image.open(line["overlay"]).size == (32, 32)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert predict.main(arguments) == 2
    said = capsys.readouterr().err
    assert f"cannot write to {out}: no space left on device; free some room or choose" in said


def test_a_file_larger_than_any_radiograph_is_a_line(run, films, tmp_path, capsys):
    huge, good = tmp_path / "huge.png", min(films[0].iterdir())
    with open(huge, "wb") as file:
        file.truncate(2**42)
    assert predict.main(["--workdir", str(run), str(huge), str(good)]) == 1
    lost, seen = lines_of(capsys.readouterr().out)
    assert lost["error"] == "larger than 64 MiB" and "error" not in seen


def test_calibration_scales_and_abstains(run, films, capsys):
    folder, expected, classes = films
    path = run / "calibration.json"
    fitted = path.read_bytes()
    path.write_text(json.dumps({"temperature": {"value": 0.5}, "abstention": {"threshold": 0.999}}))
    try:
        assert predict.main(["--workdir", str(run), str(folder)]) == 0
    finally:
        path.write_bytes(fitted)
    lines = lines_of(capsys.readouterr().out)
    scaled = expected**2 / (expected**2).sum(1, keepdims=True)
    ours = np.array([[line["probabilities"][c] for c in classes] for line in lines])
    np.testing.assert_allclose(ours, scaled, atol=1e-6)
    assert all(line["abstained"] and line["class"] is None for line in lines)


@pytest.mark.parametrize("content", ["{", "[]", '{"temperature": {"value": -1}}'])
def test_a_damaged_calibration_is_one_sentence(run, films, capsys, content):
    path = run / "calibration.json"
    fitted = path.read_bytes()
    path.write_text(content)
    try:
        assert predict.main(["--workdir", str(run), str(films[0])]) == 2
    finally:
        path.write_bytes(fitted)
    assert "calibration.json cannot be used" in capsys.readouterr().err


def test_missing_paths_are_one_sentence(run, tmp_path, capsys):
    assert predict.main(["--workdir", str(run), str(tmp_path / "none.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert predict.main(["--workdir", str(run), str(tmp_path)]) == 2
    assert "holds no PNG" in capsys.readouterr().err


def test_an_image_without_evidence_looks_empty():
    image = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    for evidence, top in ((np.full((16, 16), -1.0), 1.0), (np.zeros((16, 16)), 0.0)):
        shown = pictures.overlay(image, evidence, top)
        np.testing.assert_array_equal(shown, np.repeat(image[..., None], 3, axis=-1))
    faint, strong = (pictures.overlay(image, np.full((16, 16), v), 1.0) for v in (0.1, 1.0))
    grey = image[..., None].astype(int)
    assert np.abs(faint - grey).sum() < np.abs(strong - grey).sum()


def test_the_default_stage_is_the_registrys(run):
    found = trained.load(run)
    assert found.spec.cam_layer == registry.spec("baseline").cam_layer
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    by_default, by_name = (
        maps.Explainer(found, "grad_cam", stage)(images, batch_size=2)
        for stage in (None, found.spec.cam_layer)
    )
    for a, b in zip(by_default, by_name, strict=True):
        np.testing.assert_array_equal(a, b)
