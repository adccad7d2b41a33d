"""The settings of a run: the checks on them, and their way in from file and shell."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cxrjax.defaults import Config, default
from cxrjax.errors import MALFORMED, UserError

DATA_SETS = ("phantom", "radiography", "folder")
FRAMES = ("whole", "lungs_box", "lungs_only")
INPUT_PATHS = ("auto", "resident", "tfdata")
NORMALIZATIONS = ("backbone", "dataset")
OPTIMIZERS = ("adam", "adamax", "sgd")
CLASS_WEIGHTS = ("none", "balanced")
SCHEDULES = ("constant", "cosine")
# Off by default; the step is then compiled without them. No peer of the bench has them.
TRAIN_OPTIONS = (
    "train.schedule",
    "train.warmup",
    "train.backbone_rate",
    "train.label_smoothing",
    "train.ema",
)
PRECISIONS = ("float32", "bfloat16")


def load(path: str, overrides: dict[str, str] | None = None) -> Config:
    """Reads a config file, applies overrides such as {"train.epochs": "3"}, and validates.

    Args:
      path: a Python file defining `get_config()`, or a run's `config.json`.
      overrides: dotted field to text, as given on the command line.
    Raises:
      UserError: for a missing or failing file, an unknown field or an impossible value.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"config file {path} does not exist; see configs/ for those that do.")
    if file.suffix == ".json":
        config = from_json(file.read_text(encoding="utf-8", errors="replace"), path)
    else:
        config = config_of(run_file(file), file)
    for field, text in (overrides or {}).items():
        override(config, field, text)
    validate(config)
    return config


def from_json(text: str, where: str = "config.json") -> Config:
    """Rebuilds a configuration from the text of a run's `config.json`.

    Raises:
      UserError: when it is not JSON or names a field this version does not have.
    """
    config = default()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise UserError(
            f"{where} is not valid JSON ({error}); restore it or start anew."
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold a JSON object of settings; restore it or start anew.")
    for field, value in _flatten(values).items():
        assign(config, field, tuple(value) if isinstance(value, list) else value, where)
    return config


def to_json(config: Config) -> str:
    """The whole configuration as JSON text; `from_json` reads it back unchanged."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def fields(config: Config) -> dict[str, Any]:
    """Every field as dotted name to value, e.g. {"train.epochs": 30}."""
    return _flatten(config.to_dict())


def run_file(file: Path) -> ModuleType:
    """Executes a config file.

    Raises:
      UserError: when it fails, whatever the reason.
    """
    specification = importlib.util.spec_from_file_location("cxrjax_config_file", file)
    if specification is None or specification.loader is None:
        raise UserError(f"{file} is not a Python file; a config file defines get_config().")
    with reading(file):
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
    return module


@contextlib.contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever a config file of the user's raises into a UserError: it is theirs to mend."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).replace('\\"', '"').split())
        raise UserError(f"{file} cannot be read: {type(error).__name__}: {reason}") from error


def config_of(module: ModuleType, file: Path) -> Config:
    """What `get_config()` of an executed config file returns, not yet validated.

    Raises:
      UserError: when it fails or returns something else.
    """
    with reading(file):
        config = module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{file}: get_config() must return a ConfigDict, start from config.default()."
        )
    return config


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def override(config: Config, field: str, text: str) -> None:
    """Sets one field to the value that a text of the command line stands for.

    Raises:
      UserError: for an unknown field or text of another type.
    """
    known = fields(config)
    if field not in known:
        assign(config, field, text, f"--config.{field}")
    value: Any = text
    plain_list = field == "data.classes" and not text.startswith(("(", "["))
    if isinstance(known[field], tuple) and (plain_list or not text):
        value = tuple(name.strip() for name in text.split(",") if name.strip())
    elif not isinstance(known[field], str):
        with contextlib.suppress(*MALFORMED, SyntaxError, MemoryError):
            value = ast.literal_eval(text)
    assign(config, field, value, f"--config.{field}={text}")


def assign(config: Config, field: str, value: Any, where: str) -> None:
    """Sets one field, known by its dotted name, to a value of its type.

    Args:
      where: names the place of the setting in a message.
    Raises:
      UserError: for an unknown field or a value of another type.
    """
    known = fields(default())
    if field not in known:
        leaf = {name.rsplit(".", 1)[-1]: name for name in known}
        near = difflib.get_close_matches(field, known, 1) or [
            leaf[name] for name in difflib.get_close_matches(field.rsplit(".", 1)[-1], leaf, 1)
        ]
        hint = f"; did you mean {near[0]}?" if near else f"; the fields are {', '.join(known)}."
        raise UserError(f"{where}: there is no config field {field}{hint}")
    section: Any = config
    *path, last = field.split(".")
    for name in path:
        section = section[name]
    section[last] = typed(field, value, type(known[field]), where)


def typed(field: str, value: Any, expected: type, where: str) -> Any:
    """The value as a field of that type holds it: 1 for a number becomes 1.0.

    Raises:
      UserError: for a value of another type.
    """
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if expected is tuple and isinstance(value, list):
        value = tuple(value)
    if type(value) is not expected:
        kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
        wanted = kinds.get(expected, "a list such as (1,2,3)")
        raise UserError(f"{where}: {field} must be {wanted}, not {value!r}.")
    return value


def validate(config: Config) -> None:
    """Checks every field once, at the start.

    Raises:
      UserError: naming the first field whose value is impossible, and what it may be.
    """
    unknown = set(fields(config)) ^ set(fields(default()))
    if unknown:
        raise UserError(f"config field {min(unknown)} is unknown or missing; use config.default().")
    for field, value in fields(default()).items():
        typed(field, fields(config)[field], type(value), "config")
    for field, choices in {
        "data.name": DATA_SETS,
        "data.frame": FRAMES,
        "input.path": INPUT_PATHS,
        "input.normalize": NORMALIZATIONS,
        "train.optimizer": OPTIMIZERS,
        "train.schedule": SCHEDULES,
        "train.class_weights": CLASS_WEIGHTS,
        "train.precision": PRECISIONS,
        "cache.dtype": PRECISIONS,
        "sweep.finish": ("none", "report", "held_out", "both"),
        "sweep.stack": ("auto", "always", "never"),
    }.items():
        value = fields(config)[field]
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, 1)
            hint = f"did you mean {near[0]}" if near else f"choose one of {', '.join(choices)}"
            raise UserError(f"config field {field} is {value!r}; {hint}.")
    for field, (low, high) in _RANGES.items():
        value = fields(config)[field]
        if not low <= value <= high:
            raise UserError(f"config field {field} is {value}; it must lie in [{low:g}, {high:g}].")
    _validate_lists(config)
    _validate_effect(config)


_HUGE = 1e9
_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**31 - 1),
    "data.image_size": (16, 1024),
    "data.test_fraction": (0.01, 0.9),
    "data.validation_fraction": (0.01, 0.9),
    "data.split_seed": (0, 2**31 - 1),
    "data.phantom.count": (8, _HUGE),
    "data.phantom.seed": (0, 2**31 - 1),
    "data.phantom.marker": (0, 1),
    "data.phantom.duplicates": (0, 0.5),
    "data.phantom.label_noise": (0, 0.5),
    "augment.shift": (0, 0.5),
    "augment.rotation": (0, 15),
    "augment.zoom": (0, 0.2),
    "augment.border": (0, 0.25),
    "augment.gamma": (0, 1),
    "model.trainable_layers": (-1, _HUGE),
    "model.filters": (1, 1024),
    "model.head.dense": (0, 65536),
    "model.head.l2": (0, 10),
    "model.head.dropout": (0, 0.95),
    "train.epochs": (1, _HUGE),
    "train.batch_size": (1, 65536),
    "train.learning_rate": (0, 100),
    "train.warmup": (0, _HUGE),
    "train.backbone_rate": (1e-6, 100),
    "train.label_smoothing": (0, 0.999),
    "train.ema": (0, 0.99999),
    "train.momentum": (0, 1),
    "train.patience": (0, _HUGE),
    "train.accumulate": (1, 65536),
    "cache.views": (0, 1000),
    "eval.batch_size": (1, 65536),
    "eval.resamples": (100, 1_000_000),
    "eval.conformal_level": (0.5, 0.999),
    "eval.coverage": (0.01, 1),
    "eval.sensitivity": (0.5, 0.999),
    "sweep.seeds": (1, 10_000),
    "sweep.fine_tune_layers": (-1, _HUGE),
    "sweep.fine_tune_learning_rate": (0, 100),
}


def _validate_effect(config: Config) -> None:
    """A setting that would silently do nothing is a mistake."""
    if config.model.head.l2 and not config.model.head.dense:
        raise UserError(
            "config field model.head.l2 acts on the head's dense layer and there is none; set "
            "model.head.dense or leave l2 at 0."
        )
    if config.train.batch_size == 1 and config.model.head.batch_norm:
        raise UserError(
            "config field model.head.batch_norm turns every batch of one image into the same, so "
            "nothing would be trained; raise train.batch_size or set model.head.batch_norm=False."
        )
    if config.train.momentum and config.train.optimizer != "sgd":
        raise UserError(
            f"config field train.momentum is for sgd, not {config.train.optimizer}; leave it at 0."
        )
    if config.train.warmup >= config.train.epochs:
        raise UserError(
            f"config field train.warmup is {config.train.warmup:g} epochs, and training has "
            f"{config.train.epochs}, so the full rate is never reached; lower it or raise "
            "train.epochs."
        )
    if config.train.backbone_rate != 1 and config.model.trainable_layers == 0:
        raise UserError(
            "config field train.backbone_rate acts on the trained layers of the backbone and there "
            "are none; set model.trainable_layers or leave it at 1."
        )
    if config.train.on_validation and config.train.patience:
        raise UserError(
            "config field train.on_validation has the validation images trained on, so their loss "
            f"cannot tell when to stop; set train.patience to 0, not {config.train.patience}."
        )
    if config.cache.views and not any(config.augment.values()):
        raise UserError(
            "config field cache.views stores augmented views and nothing is augmented; set "
            "augment.shift, rotation, zoom, border or gamma, or leave it at 0."
        )


def _validate_lists(config: Config) -> None:
    draw = config.data.draw
    if draw and (len(draw) != 3 or not all(isinstance(n, int) and n > 0 for n in draw)):
        raise UserError(
            f"config field data.draw is {draw!r}; it must be empty or three counts "
            "(train, validation, test) such as (1600, 400, 200)."
        )
    if not all(isinstance(name, str) for name in config.data.classes):
        raise UserError(f"config field data.classes must hold names, not {config.data.classes!r}.")
    if len(set(config.data.classes)) != len(config.data.classes):
        raise UserError(f"config field data.classes names a class twice: {config.data.classes!r}.")
