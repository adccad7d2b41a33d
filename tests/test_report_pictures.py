"""Pictures of a run's HTML page, and what is told of its explanations."""

import io
import json

import finished_runs
import numpy as np
import pytest
from PIL import Image
from test_report import Page, report

from cxrjax import predictions
from cxrjax.report import __main__ as command
from cxrjax.report import elements, pictures


@pytest.fixture
def explained(tmp_path):
    """A run, and what cxrjax.explain writes of its test split, in short."""
    run, folder = finished_runs.make(tmp_path / "run"), tmp_path / "explained"
    test = predictions.read(run).splits["test"]
    (folder / "panels").mkdir(parents=True)
    lines = [
        {"name": name, "probabilities": dict(zip(finished_runs.CLASSES, row, strict=True))}
        for name, row in zip(test.names, test.probabilities.tolist(), strict=True)
    ]
    (folder / "explanations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    summary = {"split": "test", "only": "all", "method": "grad_cam", "stage": "s", "n": len(lines)}
    summary |= {"scores": {}, "sentences": ["More evidence lies <inside> the lungs."]}
    (folder / "summary.json").write_text(json.dumps(summary))
    for rank in range(14):
        Image.new("RGB", (60, 20), (rank, 0, 0)).save(folder / f"panels/{rank:03}-film.png")
    Image.new("RGB", (60, 20)).save(folder / "misclassified.png")
    return run, folder


def test_explanations_are_shown(explained):
    run, folder = explained
    parsed = Page(report(run, "--explained", folder))
    assert "More evidence lies <inside> the lungs." in parsed.text
    assert "12 of 14 panels" in parsed.text and parsed.tags.count("img") == 13
    assert "Explanations were not given" not in parsed.text


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda run, folder: finished_runs.make(run.with_name("x"), luck=1), "explains another"),
        (lambda run, folder: (folder / "summary.json").unlink(), "holds no explanations"),
        (lambda run, folder: (folder / "explanations.jsonl").write_text("{}"), "cannot be read"),
        (lambda run, folder: (folder / "panels/000-film.png").write_text("x"), "as a picture"),
    ],
)
def test_explanations_of_something_else_are_refused(explained, spoil, says, capsys):
    run, folder = explained
    other = spoil(run, folder)
    run = other if says == "explains another" else run
    assert command.main(["--workdir", str(run), "--explained", str(folder)]) == 2
    assert says in capsys.readouterr().err and not (run / "report.html").exists()


def test_only_the_panels_that_the_last_call_wrote_are_shown(explained):
    run, folder = explained
    finished_runs.change(folder / "summary.json", panels=["002-film.png", "005-film.png"])
    assert "2 of 2 panels" in Page(report(run, "--explained", folder)).text


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_weights_tell_whose_explanations_they_are(explained, split, capsys):
    run, folder = explained
    finished_runs.change(run / "result.json", weights_digest="a" * 64)
    finished_runs.change(folder / "summary.json", weights_digest="b" * 64, split=split)
    assert command.main(["--workdir", str(run), "--explained", str(folder)]) == 2
    told = capsys.readouterr().err
    assert f"{folder} explains another run than {run}" in told and told.count("\n") == 1
    finished_runs.change(folder / "summary.json", weights_digest="a" * 64)
    assert "12 of 14 panels" in Page(report(run, "--explained", folder)).text


def test_maps_at_the_input_name_no_stage(explained):
    run, folder = explained
    finished_runs.change(folder / "summary.json", method="smooth_grad", stage=None)
    assert (
        "method smooth_grad, maps at the input. A map"
        in Page(report(run, "--explained", folder)).text
    )


def noise(path, height, width):
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_large_pictures_shrink_and_small_ones_stay(tmp_path):
    small = noise(tmp_path / "small.png", 20, 20)
    paths = {"small": small, "large": noise(tmp_path / "large.png", 500, 900)}
    paths |= {"wide": noise(tmp_path / "wide.png", 300, 1400), "none": tmp_path / "none.png"}
    found = pictures.load(paths, room=300_000)
    assert sum(len(picture.data) for picture in found.values()) <= 300_000
    assert sorted(found) == ["large", "small", "wide"]
    assert found["small"].data == small.read_bytes()
    assert 200 < found["large"].width < 900 and found["wide"].width < 1400
    for picture in found.values():
        with Image.open(io.BytesIO(picture.data)) as image:
            assert image.size == (picture.width, picture.height)
    assert abs(found["large"].width / found["large"].height - 9 / 5) < 0.02


def test_a_page_of_large_pictures_stays_below_5_mb(tmp_path):
    folder = finished_runs.make(tmp_path / "run")
    (folder / "figures").mkdir()
    for name in ("curves", "calibration", "test_images"):
        noise(folder / f"figures/{name}.png", 900, 1000)
    text = report(folder)
    assert Page(text).tags.count("img") == 3 and 3e6 < len(text.encode()) < 5e6


def test_a_long_sheet_is_cut_below(tmp_path):
    pixels = np.zeros((900, 100), np.uint8)
    pixels[:250] = 200
    Image.fromarray(pixels).save(tmp_path / "sheet.png")
    (picture,) = pictures.load({"sheet": tmp_path / "sheet.png"}).values()
    assert picture.cut and (picture.width, picture.height) == (100, 250)
    with Image.open(io.BytesIO(picture.data)) as image:
        assert (np.asarray(image.convert("L")) == 200).all()
    assert "Only its upper part is shown." in elements.figure(picture, "a", "b")


@pytest.mark.parametrize(
    ("sizes", "room", "limit"),
    [([1, 2, 3], 6, np.inf), ([5, 5], 6, 3), ([1, 9, 9], 11, 5), ([], 5, np.inf)],
)
def test_the_largest_give_way(sizes, room, limit):
    assert pictures.fair_limit(sizes, room) == limit
