"""The line that says accuracy and doubt together."""

import pytest

from cxrjax import verdict

ACCURACY = {"value": 0.9312, "low": 0.9149, "high": 0.9451, "n": 1365}


def result(pairs=(0, 0, 0), patients=(0, 0, 0), **audit):
    sides = ("train-validation", "train-test", "validation-test")
    leaks = {
        "pairs": dict(zip(sides, pairs, strict=True)),
        "exact_pairs": dict(zip(sides, pairs, strict=True)),
        "patients": dict(zip(sides, patients, strict=True)),
    }
    return {"test": {"accuracy": ACCURACY}, "audit": {"leaks": leaks} | audit}


def test_a_clean_run():
    assert verdict.line(result(pairs=(5, 0, 0))) == (
        "accuracy .93 [.91, .95] n=1365; leaks 0; shortcut score not measured: UNCERTAIN"
    )


def test_leaks_into_the_test_split_are_counted_whatever_their_kind():
    assert "; leaks 6; shortcut score not measured: LEAKING" in verdict.line(
        result((9, 1, 2), (9, 3, 0))
    )


def test_the_shortcut_audit_fills_its_place():
    score = {"value": 0.42, "low": 0.3, "high": 0.5, "n": 1365}
    line = "accuracy .93 [.91, .95] n=1365; leaks 0; shortcut score .42: CONFOUNDED"
    assert verdict.line(result(shortcuts={"score": score})) == line
    fewer = {"score": score | {"n": 9}}  # films on which lungs are found
    assert verdict.line(result(shortcuts=fewer)) == line.replace(".42", ".42 n=9")


def test_images_trained_on_are_told():
    trained_on = {"trained_on": ["train", "validation"]}
    assert verdict.line(result() | trained_on).startswith(
        "accuracy .93 [.91, .95] n=1365; trained on validation images too; leaks 0; "
    )
    untested = {"validation": {"accuracy": ACCURACY}, "audit": result()["audit"]}
    assert verdict.line(untested | {"trained_on": ["train"]}) == (
        "accuracy on validation .93 [.91, .95] n=1365; test split not read (eval.test is False): "
        "NOT TESTED"
    )
    assert "n=1365, images trained on; test split not read" in verdict.line(untested | trained_on)


def interval(value, low, high):
    return {"value": value, "low": low, "high": high, "n": 1365}


@pytest.mark.parametrize(
    ("leaking", "score", "word"),
    [
        (0, interval(0.02, -0.03, 0.07), "SOUND"),
        (0, interval(-0.2, -0.3, -0.1), "SOUND"),
        (0, interval(-0.3, -0.36, -0.28), "UNCERTAIN"),
        (0, interval(0.08, 0.02, 0.19), "UNCERTAIN"),
        (0, interval(None, None, None), "UNCERTAIN"),
        (0, None, "UNCERTAIN"),
        (2, interval(0.02, -0.03, 0.07), "LEAKING"),
        (2, interval(0.5, 0.4, 0.6), "LEAKING and CONFOUNDED"),
        (0, interval(0.5, 0.4, 0.6), "CONFOUNDED"),
    ],
)
def test_the_word(leaking, score, word):
    assert verdict.word(leaking, score) == word


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.934, ".93"),
        (1.0, "1.00"),
        (0.999, "1.00"),
        (0.0, ".00"),
        (-0.05, "-.05"),
        (-0.001, ".00"),
        (10.5, "10.50"),
    ],
)
def test_numbers_are_short(value, text):
    assert verdict.short(value) == text


def test_what_is_undefined_is_said():
    assert verdict.interval({"value": None, "low": None, "high": None, "n": 3}) == "undefined"
