"""Configuration: round trips, overrides, and one clear sentence for every mistake."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrjax import cli, config
from cxrjax.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_json_rebuilds_every_config(path, tmp_path):
    original = config.load(str(path))
    (tmp_path / "config.json").write_text(config.to_json(original))
    assert config.fields(config.load(str(tmp_path / "config.json"))) == config.fields(original)


def test_overrides_take_the_type_of_the_field():
    path = str(CONFIGS[0])
    overrides = cli.parse_overrides(
        [
            "--config.train.epochs=7",
            "--config.train.learning_rate",
            "1e-3",
            "--config.data.draw=(16,4,2)",
            "--config.data.classes=COVID,Normal",
            "--config.data.skip_broken=True",
            "--config.data.dir=7",
        ]
    )
    changed = config.load(path, overrides)
    assert changed.train.epochs == 7
    assert changed.train.learning_rate == pytest.approx(1e-3)
    assert changed.data.draw == (16, 4, 2)
    assert changed.data.classes == ("COVID", "Normal")
    assert changed.data.skip_broken is True
    assert changed.data.dir == "7"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=3", "did you mean train.epochs"),
        ("epochs=3", "did you mean train.epochs"),
        ("train.epochs=three", "whole number"),
        ("train.epochs=0", r"\[1,"),
        ("train.epochs={[]:1}", "whole number"),
        (f"train.epochs={'-' * 5000}1", "whole number"),
        ("train.epochs=True", "whole number"),
        ("augment.rotation=20", r"\[0, 15\]"),
        ("augment.border=0.3", r"augment\.border is 0\.3; it must lie in \[0, 0\.25\]"),
        ("augment.border=-0.1", r"augment\.border is -0\.1; it must lie in \[0, 0\.25\]"),
        ("augment.gamma=1.5", r"augment\.gamma is 1\.5; it must lie in \[0, 1\]"),
        ("train.optimizer=adams", "did you mean adam"),
        ("train.schedule=cosin", "did you mean cosine"),
        ("train.warmup=-1", r"train\.warmup is -1\.0; it must lie in \[0,"),
        ("train.warmup=1000", "full rate is never reached; lower it or raise train.epochs"),
        ("train.backbone_rate=0", r"train\.backbone_rate is 0\.0; it must lie in \[1e-06, 100\]"),
        (
            "train.label_smoothing=1",
            r"train\.label_smoothing is 1\.0; it must lie in \[0, 0\.999\]",
        ),
        ("train.ema=1", r"train\.ema is 1\.0; it must lie in \[0, 0\.99999\]"),
        ("data.draw=(1,2)", "three counts"),
        ("data.skip_broken=yes", "True or False"),
        ("data.classes=A,A", "twice"),
    ],
)
def test_a_bad_override_is_one_sentence(override, words):
    with pytest.raises(UserError, match=words) as error:
        config.load(str(CONFIGS[0]), cli.parse_overrides([f"--config.{override}"]))
    assert "\n" not in str(error.value)


def test_a_rate_for_a_backbone_that_is_not_trained_is_refused():
    changes = {"train.backbone_rate": "0.1", "model.trainable_layers": "0"}
    with pytest.raises(UserError, match=r"there are none; set model\.trainable_layers or leave"):
        config.load(str(CONFIGS[0]), changes)
    assert config.load(str(CONFIGS[0]), changes | {"model.trainable_layers": "4"})


def test_batch_norm_of_one_image_is_refused():
    changes = {"model.head.batch_norm": "True", "train.batch_size": "1"}
    with pytest.raises(UserError, match=r"nothing would be trained; raise train\.batch_size"):
        config.load(str(CONFIGS[0]), changes)
    assert config.load(str(CONFIGS[0]), changes | {"train.batch_size": "2"})


def test_a_misspelt_field_in_a_file_suggests_the_nearest(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "from cxrjax import config as c\n"
        "def get_config():\n    x = c.default()\n    x.train.epoch = 3\n    return x\n"
    )
    with pytest.raises(UserError, match="epochs") as error:
        config.load(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"train": {"epoch": 3}}', '{"seed": "x"}'])
def test_a_damaged_config_json_is_told(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError):
        config.load(str(tmp_path / "config.json"))


FIELDS = st.sampled_from(["seed", "train.epochs", "data.dir", "no.such.field"])
JOINED = st.tuples(FIELDS, st.text(max_size=8)).map(
    lambda pair: (*pair, [f"--config.{pair[0]}={pair[1]}"])
)
APART = st.tuples(FIELDS, st.text(max_size=8).filter(lambda text: not text.startswith("--"))).map(
    lambda pair: (*pair, [f"--config.{pair[0]}", pair[1]])
)
OVERRIDES = st.lists(JOINED | APART, max_size=4)
NO_OVERRIDE = st.sampled_from(
    ["--epochs=3", "train.epochs=3", "-x", "--", "", "--config", "--config.train.epochs"]
)


def arguments_of(pieces):
    return [argument for *_, arguments in pieces for argument in arguments]


@given(OVERRIDES)
def test_overrides_parse_to_what_was_given(pieces):
    wanted = {field: value for field, value, _ in pieces}  # the last of equal fields counts
    assert cli.parse_overrides(arguments_of(pieces)) == wanted


@given(OVERRIDES, NO_OVERRIDE, OVERRIDES)
def test_an_argument_that_is_no_override_is_refused_by_name(before, wrong, after):
    with pytest.raises(UserError, match=r"unknown argument|needs a value") as error:
        cli.parse_overrides([*arguments_of(before), wrong, *arguments_of(after)])
    assert wrong in str(error.value)


def test_to_json_is_strict_json():
    assert json.loads(config.to_json(config.default()))["train"]["epochs"] == 30
