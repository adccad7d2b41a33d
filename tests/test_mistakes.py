"""Mistakes in a configuration: told in one sentence, and a corrected command then simply works."""

import errno
import io
import subprocess
import sys

import pytest
from film_files import lay_out, png
from test_loop import ROOT, arguments

from cxrjax import cli, config, log, main
from cxrjax.errors import UserError, writing
from cxrjax.run_folder import RunFolder, keep_places

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


def load(*overrides):
    return config.load(QUICKSTART, cli.parse_overrides([f"--config.{o}" for o in overrides]))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ({"model__name": "baselin"}, "did you mean baseline"),
        ({"model__trainable_layers": 99}, "trainable_layers"),
        ({"data__classes": "clear,nothing"}, "nothing"),
        ({"model__name": "densenet121", "data__image_size": 31}, "needs at least 32 pixels"),
    ],
)
def test_the_corrected_command_takes_the_same_folder(tmp_path, capsys, mistake, words):
    workdir = tmp_path / "run"
    assert main.main(arguments(workdir, **mistake)) == 2
    assert words in capsys.readouterr().err
    corrected = config.load(QUICKSTART, {"train.epochs": "1"})
    RunFolder(workdir, corrected).close()
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize("grey", [10, 11])  # whose deviation is 0, and 7e-18 by rounding
def test_images_of_one_grey_have_no_deviation_to_divide_by(tmp_path, capsys, grey):
    names = ("train/%s/1", "train/%s/2", "val/%s/3", "test/%s/4")
    places = [f"{name % label}.png" for name in names for label in "ab"]
    lay_out(tmp_path / "d", dict.fromkeys(places, png(grey)))
    settings = {"data__name": "folder", "data__dir": tmp_path / "d", "input__normalize": "dataset"}
    assert main.main(arguments(tmp_path / "run", **settings)) == 2
    assert "of one and the same grey" in capsys.readouterr().err


def test_a_folder_in_which_nothing_was_saved_can_be_taken_over(tmp_path):
    first = RunFolder(tmp_path, load())
    first.keep_config(load())
    first.close()
    # As a run killed while it wrote its first checkpoint leaves it.
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp-7").mkdir(parents=True)
    second = RunFolder(tmp_path, load("train.epochs=7"))
    second.keep_config(load("train.epochs=7"))
    second.close()
    assert config.load(str(tmp_path / "config.json")).train.epochs == 7
    (tmp_path / "checkpoints" / "12").mkdir()
    with pytest.raises(UserError, match=r"train.epochs was 7, now 30"):
        RunFolder(tmp_path, load())


def test_a_weight_file_may_be_named_from_anywhere(tmp_path, monkeypatch):
    """Also for the run of an older version, whose config.json has the path as it was given."""
    monkeypatch.chdir(tmp_path)
    given, kept = (load("model.weights=w.npz") for _ in range(2))
    keep_places(kept)
    assert kept.model.weights == str(tmp_path / "w.npz")
    for name, settings in (("old", given), ("new", kept)):
        folder = RunFolder(tmp_path / name, settings)
        folder.keep_config(settings)
        folder.close()
        (tmp_path / name / "checkpoints/12").mkdir(parents=True)
        for same in (given, kept, load("model.weights=/moved/to/w.npz")):
            RunFolder(tmp_path / name, same).close()
        with pytest.raises(UserError, match=r"model\.weights was 'w.npz', now 'none'"):
            RunFolder(tmp_path / name, load())
    for word in ("none", "imagenet"):
        settings = load(f"model.weights={word}")
        keep_places(settings)
        assert settings.model.weights == word


def test_a_named_cache_is_the_same_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named, unnamed = load("data.cache=cache"), load()
    for settings in (named, unnamed):
        keep_places(settings)
    assert named.data.cache == str(tmp_path / "cache")
    assert unnamed.data.cache == ""  # goes on following CXRJAX_CACHE


def test_a_config_json_of_something_else_makes_no_run_folder(tmp_path, capsys):
    """As every folder of a language model has one."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "metrics.jsonl").write_text("mine")
    assert main.main(arguments(tmp_path)) == 2
    assert "is not a run folder and holds other files (config.json)" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
    assert '"bert"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EACCES, "Permission denied", "/a/b"), "permission denied ('/a/b')"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device (standard"),
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory (Unable to allocate 9 TiB)"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_what_no_command_expects_of_the_machine_is_still_one_sentence(
    capsys, monkeypatch, error, words
):
    def run(argv):
        raise error

    monkeypatch.setattr(cli, "_close_output", lambda: None)  # it would be the test's own
    assert cli.guarded(run, []) == 2
    told = capsys.readouterr().err
    assert told.startswith("cxrjax: ") and words in told and told.count("\n") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux'")
def test_a_full_disk_behind_standard_output_is_one_sentence():
    command = [sys.executable, "-m", "cxrjax.convert", "--list"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("cxrjax: a file cannot be used: no space left")
    assert run.stderr.count("\n") == 1


def test_names_that_the_terminal_cannot_show_are_printed_all_the_same(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.guarded(lambda argv: print("run \udcff") or 0, []) == 0
    assert out.buffer.getvalue() == b"run \\udcff\n"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rate=1" + 400 * "0", "must be a number"),
        ("data.dir=~nobody-of-this-name/x.zip", "nobody-of-this-name"),
    ],
)
def test_numbers_beyond_all_and_homes_of_nobody(tmp_path, capsys, override, words):
    options = [f"--config.{override}", "--config.data.name=folder"]
    assert main.main(["--config", QUICKSTART, "--workdir", str(tmp_path / "run"), *options]) == 2
    assert words in capsys.readouterr().err


def test_lists_on_the_command_line():
    assert load("data.classes=0,1").data.classes == ("0", "1")
    assert load("data.classes=('Viral Pneumonia', 'COVID')").data.classes[0] == "Viral Pneumonia"
    assert load("data.classes=").data.classes == ()
    assert load("data.draw=").data.draw == ()
    assert load("data.draw=16,4,2").data.draw == (16, 4, 2)
    for bad in ("data.classes=(1,2)", "data.draw=a,b,c", "data.draw=(1,2,0)"):
        with pytest.raises(UserError, match="data"):
            load(bad)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.train.epochs = None", "whole number"),
        ("c.model.head.l2 = 0.1", "dense layer"),
        ("c.train.momentum = 0.9", "sgd"),
        ("raise SystemExit(0)", "SystemExit"),
        ("c = 3", "ConfigDict"),
    ],
)
def test_a_bad_config_file_is_one_sentence(tmp_path, line, words):
    file = tmp_path / "c.py"
    file.write_text(
        "from cxrjax import config\n"
        f"def get_config():\n    c = config.default()\n    {line}\n    return c\n"
    )
    with pytest.raises(UserError, match=words) as error:
        config.load(str(file))
    assert "\n" not in str(error.value)


def test_damaged_files_of_a_run_are_one_sentence(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid JSON"):
        config.load(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text('{"seed": ' + "7" * 5000 + "}")
    with pytest.raises(UserError, match="not valid JSON"):
        config.load(str(tmp_path / "config.json"))
    (tmp_path / "config.json").write_text(config.to_json(load()))
    (tmp_path / "result.json").write_text('{"task": ')
    folder = RunFolder(tmp_path, load())
    with pytest.raises(UserError, match="delete it"):
        folder.result()
    folder.close()


@pytest.mark.parametrize(("number", "words"), [(28, "free some room or"), (13, "denied; choose")])
def test_a_failed_write_says_how_to_mend_it(number, words):
    import os

    with pytest.raises(UserError, match=words), writing("/x", "choose another --workdir"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], "give --config FILE"),
        (["train", "--config"], "expected one argument"),
        (["data", "nonsense"], "invalid choice"),
        (["audit"], "give --config FILE"),
        (["convert"], "SOURCE and OUT are needed"),
        (["lungs", "train", "--steps", "x"], "invalid int value"),
        (["report"], "--workdir"),
        (["compare"], "required: RUN"),
    ],
)
def test_a_command_line_that_cannot_be_is_one_sentence(arguments, words, capsys):
    assert cli.main(arguments) == 2
    out, errors = capsys.readouterr()
    assert not out and errors.startswith("cxrjax: ") and errors.count("\n") == 1
    assert words.lower() in errors.lower() and "--help tells more." in errors


def test_writers_of_the_same_process_number_take_turns(tmp_path):
    """In containers every process may be number 1: here both writers are of one process."""
    path = tmp_path / "file"
    with log.replacing(path) as slow:
        slow.write("slow")
        log.write_text(path, "quick")
        assert path.read_text() == "quick"
    assert path.read_text() == "slow" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--config", "configs/densenet4.py"],
        ["sweep", "--config", "configs/sweeps/resnet2_head.py", "--dry-run"],
    ],
)
def test_missing_data_are_told_before_weights_are_asked_for(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("CXRJAX_OFFLINE", "1")
    monkeypatch.setenv("CXRJAX_CACHE", str(tmp_path))
    monkeypatch.delenv("CXRJAX_WEIGHTS", raising=False)
    monkeypatch.delenv("CXRJAX_DATA", raising=False)
    assert cli.main([*command, "--workdir", str(tmp_path / "run")]) == 2
    assert "no data folder or archive is named" in capsys.readouterr().err
