"""Exploration: numbers agree with the pixels, figures are drawn and readable."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cxrjax import config as configuration
from cxrjax.data import __main__ as command
from cxrjax.data import dataset, explore
from cxrjax.data.splits import SPLITS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = configuration.default()
    config.data.image_size = 48
    config.data.phantom.count = 80
    config.data.cache = str(tmp_path_factory.mktemp("explore"))
    return dataset.prepare(config)


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from cxrjax import config\n\n\ndef get_config():\n"
        "    c = config.default()\n    c.data.image_size = 48\n    c.data.phantom.count = 80\n"
        f"    c.data.cache = {str(tmp_path / 'cache')!r}\n    return c\n"
    )
    return str(path)


def test_statistics_are_those_of_the_pixels(data):
    report = explore.statistics(data)
    json.dumps(report, allow_nan=False)
    assert report["n"] == 80 and report["image_size"] == 48
    assert sum(report["splits"][split]["n"] for split in SPLITS) == 80
    for split in SPLITS:
        positions, part = data.splits[split], report["splits"][split]
        pixels = np.asarray(data.store.images[positions], float) / 255
        assert part["mean"] == pytest.approx(pixels.mean(), abs=1e-12)
        assert part["std"] == pytest.approx(pixels.std(), abs=1e-12)
        for label, name in enumerate(data.classes):
            ours = positions[data.store.labels[positions] == label]
            assert part["classes"][name] == len(ours)
            expected, _ = np.histogram(data.store.images[ours], bins=32, range=(0, 256))
            assert part["intensity"][name] == pytest.approx(expected / expected.sum(), abs=1e-6)


def test_tables_count_every_image_once(data):
    report = explore.statistics(data)
    for table in (report["sources"], report["given_parts"]):
        assert sum(sum(row.values()) for row in table.values()) == 80
    assert list(report["given_parts"]) == ["unknown"]


def test_figures_are_drawn(data, tmp_path):
    written = explore.write_figures(data, tmp_path / "figures")
    assert [path.name for path in written] == [
        "class_balance.png",
        "intensity.png",
        "samples.png",
        "mean_image.png",
    ]
    for path in written:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("L"))
        assert picture.shape[1] == pytest.approx(7.2 * 160, abs=2)
        assert picture.min() < 60 and picture.max() == 255 and picture.std() > 10, path.name


def test_the_mean_image_is_the_mean(data):
    where = data.splits["train"]
    expected = np.asarray(data.store.images)[where].mean(0) / 255
    assert explore._mean(data.store.images, where) == pytest.approx(expected)


def test_explore_writes_figures_and_numbers(config_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["explore", "--config", config_file, "--out", str(out)]) == 0
    report = json.loads((out / "explore.json").read_text())
    assert report["audit"]["duplicate_pairs"] == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(
        line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()
    )


def test_prepare_prints_one_json_line(config_file, capsys):
    assert command.main(["prepare", "--config", config_file, "--config.data.image_size=40"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n"] == 80 and sum(summary["splits"].values()) == 80
    assert len(summary["digest"]) == 64 and "leaks" in summary["audit"]


def test_phantoms_written_out_read_back_as_a_folder(tmp_path, capsys):
    out = tmp_path / "phantoms"
    arguments = ["phantom", "--out", str(out), "--count", "24", "--size", "64", "--seed", "3"]
    assert command.main(arguments) == 0
    config = configuration.default()
    config.data.cache = str(tmp_path / "cache")
    config.data.image_size = 64
    config.data.phantom.count, config.data.phantom.seed = 24, 3
    direct = dataset.prepare(config).store
    config.data.name, config.data.dir = "folder", str(out)
    folder = dataset.prepare(config).store
    assert sorted(folder.classes) == sorted(direct.classes)
    images = {name.split("/")[-1].split(".")[0]: i for i, name in enumerate(folder.names)}
    for i, name in enumerate(direct.names):
        j = images[name.split("/")[-1].split(".")[0]]
        assert (folder.images[j] == direct.images[i]).all()
        assert folder.classes[folder.labels[j]] == direct.classes[direct.labels[i]]
        assert (folder.masks[j] == direct.masks[i]).all()
    capsys.readouterr()
    assert command.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "--config", "nowhere.py"], "nowhere.py does not exist"),
        (["explore", "--config", "{config}", "--out", "{tmp}", "--x=1"], "unknown argument --x=1"),
        (["prepare", "--config", "{config}", "--config.data.name=folder"], "CXRJAX_DATA"),
        (["phantom", "--out", "{tmp}/x", "--count", "3"], "data.phantom.count is 3"),
        (["phantom", "--out", "{tmp}/x", "--config.data.phantom.count=8"], "unknown argument"),
        (["phantom", "--out", "{tmp}/x", "stray"], "unknown argument stray"),
        (
            ["explore", "--config", "{config}", "--out", "{config}"],
            "file exists; choose",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    arguments, message, config_file, tmp_path, capsys
):
    filled = [text.format(config=config_file, tmp=tmp_path) for text in arguments]
    assert command.main(filled) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("cxrjax: ") and message in error and "\n" not in error


def test_a_command_needs_a_name():
    done = subprocess.run([sys.executable, "-m", "cxrjax.data"], capture_output=True, text=True)
    assert done.returncode == 2 and "required: COMMAND" in done.stderr
