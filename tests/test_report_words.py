"""What a run's page says is true of that run, wherever it lies and however it was trained."""

import finished_runs
import pytest
from PIL import Image
from test_report import Page, report

from cxrjax import config
from cxrjax.report import __main__ as command
from cxrjax.report import elements

NOT_TORN = "\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.0, "0"),
        (1.0, "1e2"),
        (0.005, "0.5"),
        (0.002, "0.2"),
        (0.0004, "0.04"),
        (0.996, "99.6"),
        (0.99996, "> 99.99"),
        (1e-12, "< 0.01"),
        (0.791, "79"),
        (0.5, "50"),
        (0.9949, "99"),
    ],
)
def test_no_share_between_them_is_0_or_100_percent(share, says):
    assert elements.percent(share) == says.replace("1e2", "100") + NOT_TORN


def test_not_all_of_a_row_is_not_100_percent():
    told = elements.matrix("counts", ("a", "b"), [[1199, 3], [0, 2038]])
    assert "99.8" in told and "0.2" in told and told.count(f"100{NOT_TORN}") == 1


@pytest.mark.parametrize(
    ("changes", "training", "validation"),
    [
        ({}, "while the weights change; ", "that of the weights at the end of an epoch."),
        (
            {"train.class_weights": "balanced"},
            "while the weights change, with class weights; ",
            "without them.",
        ),
        (
            {"augment.gamma": 0.5, "model.head.dropout": 0.2},
            "while the weights change, with augmentation and dropout; ",
            "without them.",
        ),
        (
            {
                "train.class_weights": "balanced",
                "augment.shift": 0.1,
                "train.label_smoothing": 0.1,
                "train.ema": 0.99,
            },
            "while the weights change, with class weights, augmentation and label smoothing; ",
            "that of the averaged weights at the end of an epoch, without them.",
        ),
    ],
)
def test_what_the_losses_hold_is_that_of_the_configuration(tmp_path, changes, training, validation):
    folder = finished_runs.make(tmp_path / "run")
    settings = config.load(str(folder / "config.json"))
    for field, value in changes.items():
        config.assign(settings, field, value, "here")
    (folder / "config.json").write_text(config.to_json(settings))
    (folder / "figures").mkdir()
    Image.new("L", (40, 30)).save(folder / "figures/curves.png")
    said = Page(report(folder)).text.partition("the weights of epoch 1 are kept. ")[2]
    said = said.partition("Test images")[0].strip()
    assert said.startswith(f"The training loss is taken {training}") and said.endswith(validation)
    (folder / "config.json").unlink()
    assert "The training loss" not in Page(report(folder)).text


def test_the_folder_it_is_called_from(tmp_path, monkeypatch, capsys):
    folder = finished_runs.make(tmp_path / "run")
    monkeypatch.chdir(folder)
    assert command.main(["--workdir", "."]) == 0, capsys.readouterr().err
    parsed = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert any(code.endswith(f"--workdir {tmp_path / 'run-again'}") for code in parsed.codes)
