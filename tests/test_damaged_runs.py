"""Files of a finished run that were damaged: one sentence from every command, never other figures.

Each entry changes one thing that a disk, an editor or a copy may change.
"""

import csv
import json
import shutil

import numpy as np
import pytest
from finished_runs import CLASSES, change, make, split
from test_trained import tiny

from cxrjax import compare, config, decide, loop, predict, predictions, trained
from cxrjax.audit import run as audit
from cxrjax.errors import UserError
from cxrjax.report import __main__ as report
from cxrjax.run_folder import RunFolder

DEEP = "[" * 200_000
COMMANDS = {
    "compare": lambda run, sound: compare.main([str(sound), str(run), "--resamples", "100"]),
    "decide": lambda run, sound: decide.main(["--workdir", str(run), "--resamples", "100"]),
    "report": lambda run, sound: report.main(["--workdir", str(run)]),
}


def rows(change_row):
    """A damage of each row of predictions.csv; the header too where it is not left alone."""

    def spoil(run):
        path = run / "predictions.csv"
        with open(path, newline="") as file:
            header, *lines = csv.reader(file)
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([header, *filter(None, map(change_row, lines))])

    return spoil


def put(name, text):
    return lambda run: (run / name).write_text(text)


def without(*path):
    """A damage of result.json: the entry of this path is gone."""

    def spoil(run):
        result = json.loads((run / "result.json").read_text())
        inner = result
        for name in path[:-1]:
            inner = inner[name]
        del inner[path[-1]]
        (run / "result.json").write_text(json.dumps(result))

    return spoil


def both(*spoils):
    return lambda run: [spoil(run) for spoil in spoils]


DAMAGE = {
    "no accuracy": (without("test", "accuracy"), "KeyError: 'accuracy'"),
    "no validation": (without("validation"), "KeyError: 'validation'"),
    "result.json is deep": (put("result.json", DEEP), "RecursionError"),
    "a long field": (rows(lambda row: [*row[:2], "x" * 200_000, *row[3:]]), "field larger than"),
    "a long number": (rows(lambda row: [*row[:4], "9" * 100_000 + "x", *row[5:]]), "to float: ..."),
    "a large index": (rows(lambda row: [row[0], 10**30, *row[2:]]), "OverflowError"),
    "groups of nothing": (put("groups.json", "[]"), "TypeError"),
    "groups of no split": (put("groups.json", "{}"), "KeyError: 'validation'"),
    "a large group": (
        lambda run: change(run / "groups.json", test=[10**30] * 160),
        "OverflowError",
    ),
    "nested groups": (
        lambda run: change(run / "groups.json", test=[[0]] * 160),
        "160 predictions for 160 of 160",
    ),
    "a column is gone": (rows(lambda row: row[:-1]), "does not have 3 probabilities"),
    "a column more": (rows(lambda row: [*row, 0]), "does not have 3 probabilities"),
    "no probabilities": (rows(lambda row: [*row[:4], -7, 900, 2]), "do not lie in [0, 1]"),
    "they sum to 2": (rows(lambda row: [*row[:4], 1, 0.5, 0.5]), "do not sum to 1"),
    "not a number": (rows(lambda row: [*row[:4], "nan", 0.5, 0.5]), "do not lie in [0, 1]"),
    "other probabilities": (rows(lambda row: [*row[:4], 1, 0, 0]), "result.json one of"),
    "a class is gone": (
        both(
            rows(lambda row: None if row[0] == "test" and row[3] == CLASSES[1] else row),
            lambda run: (run / "groups.json").unlink(),
        ),
        "of 160 images",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return make(tmp_path_factory.mktemp("runs") / "sound", 0.95)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_result_is_one_sentence(sound, tmp_path, capsys, damage, command):
    run = make(tmp_path / "run")
    spoil, words = DAMAGE[damage]
    spoil(run)
    assert COMMANDS[command](run, sound) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"cxrjax: the results in {run} cannot be read (") and words in told
    assert told.count("\n") == 1 and len(told) < 500


@pytest.mark.parametrize("spoil", [without("test", "per_class"), without("test", "macro_f1")])
def test_figures_that_only_a_comparison_prints(sound, tmp_path, capsys, spoil):
    run = make(tmp_path / "run")
    spoil(run)
    assert COMMANDS["compare"](run, sound) == 2
    assert f"the results in {run} cannot be read (KeyError" in capsys.readouterr().err


def test_a_run_whose_verdict_cannot_be_told_is_not_looked_at(tmp_path):
    run = make(tmp_path / "run")
    without("audit")(run)
    with pytest.raises(UserError, match=r"cannot be read \(KeyError: 'audit'\)"):
        audit.result_of(run)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("looks", ["many", -3, None, [2], 1.5])
def test_a_damaged_count_of_looks_is_at_least_the_one(tmp_path, capsys, looks, command):
    run, other = (make(tmp_path / name, test_looks=looks) for name in ("run", "other"))
    assert COMMANDS[command](run, other) == 0
    assert predictions.looks(run, predictions.read(run).result) == (1, 0)


def test_what_rounding_made_even_is_no_damage(tmp_path):
    """Seven digits make even what float32 tells apart: such an image may have been told right."""
    run = make(tmp_path / "run")
    of = split(90, 0.9, 1)
    of.probabilities[:5] = np.nextafter(np.float32(0.5), np.float32(0)), 0.5, 0
    of.labels[:5] = 1
    result = json.loads((run / "result.json").read_text())
    hits = float((of.probabilities.argmax(axis=1) == of.labels).mean())
    result["test"]["accuracy"] = {"value": hits, "low": 0, "high": 1, "n": 90}
    (run / "result.json").write_text(json.dumps(result))
    predictions.write(run, {"validation": split(90, 0.9, 1), "test": of}, CLASSES)
    found = predictions.read(run).splits["test"].probabilities
    assert (found[:5, 0] == found[:5, 1]).all() and found[:5].argmax() == 0


def test_probabilities_of_any_number_of_classes_sum_to_1_as_written():
    logits = 5 * np.random.default_rng(0).normal(size=(500, 100)).astype(np.float32)
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    texts = [["", "", "", "", *(f"{p:.7g}" for p in row)] for row in found]
    np.testing.assert_allclose(predictions._probabilities(texts, 100), found, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("calibration.json", DEEP, "it belongs to the run's results: train it again"),
        ("calibration.json", "{}", "it belongs to the run's results: train it again"),
        ("decision.json", "{}", "make it anew by python -m cxrjax.decide --workdir {}"),
        ("decision.json", DEEP, "make it anew by python -m cxrjax.decide --workdir {}"),
        ("audit/audit.json", "{}", "make it anew by python -m cxrjax.audit --workdir {}"),
    ],
)
def test_a_page_names_the_file_at_fault_and_how_to_mend_it(tmp_path, capsys, name, content, remedy):
    run = make(tmp_path / "run")
    (run / "audit").mkdir()
    (run / name).write_text(content)
    assert COMMANDS["report"](run, run) == 2
    told = capsys.readouterr().err
    assert f"{run / name} cannot be read (" in told and told.count("\n") == 1
    assert told.endswith(f"{remedy.format(run)}.\n")


@pytest.mark.parametrize(
    "content",
    [DEEP, "{}", "[]", '{"temperature": {"value": -1}}', '{"temperature": {"value": 1e999}}'],
)
def test_a_decision_needs_a_calibration(tmp_path, capsys, content):
    run = make(tmp_path / "run")
    (run / "calibration.json").write_text(content)
    assert COMMANDS["decide"](run, run) == 2
    told = capsys.readouterr().err
    assert "calibration.json cannot be read" in told and "train it again" in told


@pytest.mark.parametrize(
    "content",
    [
        DEEP,
        "[]",
        '{"temperature": {"value": 0}}',
        '{"temperature": {"value": -1}}',
        '{"temperature": {"value": NaN}}',
        '{"temperature": {"value": Infinity}}',
        '{"temperature": {"value": 1%s}}' % ("0" * 400),
        '{"abstention": {"threshold": 1%s}}' % ("0" * 400),
        '{"abstention": {"threshold": [1]}}',
    ],
)
def test_a_prediction_takes_no_damaged_calibration(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json cannot be used \(.*\); delete it or"):
        predict.calibration(tmp_path)


def test_a_calibration_without_an_entry_leaves_answers_as_they_are(tmp_path):
    assert predict.calibration(tmp_path) == (1, 0)
    (tmp_path / "calibration.json").write_text('{"temperature": {"value": null}}')
    assert predict.calibration(tmp_path) == (1, 0)
    (tmp_path / "calibration.json").write_text(
        '{"temperature": {"value": 2}, "abstention": {"threshold": 0.7}}'
    )
    assert predict.calibration(tmp_path) == (2, 0.7)


@pytest.mark.parametrize("content", ["null", "5", "[]", "{}", '{"test": {}}', DEEP])
@pytest.mark.parametrize("tested", [True, False])
def test_what_is_no_result_is_never_taken_for_an_untested_one(tmp_path, content, tested):
    settings = config.default()
    settings.eval.test = tested
    (tmp_path / "config.json").write_text(config.to_json(settings))
    (tmp_path / "result.json").write_text(content)
    folder = RunFolder(tmp_path, settings)
    with pytest.raises(UserError, match=r"result\.json cannot be read .* delete it and run"):
        folder.result()
    folder.close()


@pytest.mark.parametrize("command", ["compare", "decide"])
def test_a_seed_below_nought_is_a_sentence(sound, capsys, command):
    runs = [str(sound)] * 2 if command == "compare" else ["--workdir", str(sound)]
    main = {"compare": compare, "decide": decide}[command].main
    assert main([*runs, "--resamples", "100", "--seed", "-1"]) == 2
    assert "--seed is -1; give 0 or more." in capsys.readouterr().err


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    loop.train_and_evaluate(tiny(), folder)
    return folder


@pytest.fixture
def copied(trained_run, tmp_path):
    """A copy of a finished run, and its newest checkpoint."""
    run = shutil.copytree(trained_run, tmp_path / "run")
    return run, max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


NOTES = {
    "{}": "its note lacks a sound entry finished",
    "[]": "its note lacks a sound entry finished",
    "{": "",
    "no best_epoch": "its note lacks a sound entry best_epoch",
    "no classes": "its note lacks a sound entry input.classes",
}


def spoil_note(checkpoint, content):
    path = checkpoint / "note" / "metadata"
    note = json.loads(path.read_text())
    {"no best_epoch": note, "no classes": note["input"]}.get(content, {}).pop(
        content.removeprefix("no "), None
    )
    path.write_text(json.dumps(note) if content.startswith("no ") else content)


@pytest.mark.parametrize("content", NOTES)
def test_a_damaged_note_names_its_checkpoint(copied, content):
    run, checkpoint = copied
    spoil_note(checkpoint, content)
    with pytest.raises(UserError) as told:
        trained.load(run)
    assert str(told.value).startswith(f"checkpoint {checkpoint} cannot be read (")
    assert NOTES[content] in str(told.value)
    assert str(told.value).endswith("; restore that folder or train anew.")


@pytest.mark.parametrize("content", ["{}", "no best_epoch"])
def test_a_run_does_not_go_on_from_a_damaged_note(copied, content):
    run, checkpoint = copied
    spoil_note(checkpoint, content)
    (run / "result.json").unlink()
    with pytest.raises(UserError, match=r"checkpoint .* cannot be read \(its note"):
        loop.train_and_evaluate(config.load(str(run / "config.json")), run)


@pytest.mark.parametrize("content", ["[]", '{"init_timestamp_nsecs": "x"}'])
def test_a_checkpoint_that_cannot_even_be_listed(copied, content):
    run, checkpoint = copied
    (checkpoint / "_CHECKPOINT_METADATA").write_text(content)
    with pytest.raises(UserError, match=r"a checkpoint in .* is damaged .*; restore that folder"):
        trained.load(run)


@pytest.mark.parametrize("left", ["a file", "an empty folder"])
def test_what_only_has_the_name_of_a_checkpoint(copied, left):
    run, checkpoint = copied
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    checkpoint.write_text("x") if left == "a file" else checkpoint.mkdir()
    with pytest.raises(UserError, match=r"has a result but no checkpoint|cannot be read"):
        trained.load(run)
