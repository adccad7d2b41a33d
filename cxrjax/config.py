"""Every setting of a run with its default, the checks on it, and its way in from file and shell."""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from cxrjax.errors import UserError

# A ConfigDict; its fields are checked by `validate`, a type checker sees nothing of them.
if TYPE_CHECKING:
    Config = Any
else:
    Config = ConfigDict

DATA_SETS = ("phantom", "radiography", "folder")
FRAMES = ("whole", "lungs_box", "lungs_only")
INPUT_PATHS = ("auto", "resident", "tfdata")
NORMALIZATIONS = ("backbone", "dataset")
OPTIMIZERS = ("adam", "adamax", "sgd")
CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("float32", "bfloat16")


def default() -> Config:
    """The complete configuration with its defaults. Fields can be changed, never added."""
    config: Any = ConfigDict()
    config.seed = 0  # initial weights, shuffling, augmentation and dropout

    config.data = _default_data()

    config.input = ConfigDict()
    config.input.path = "auto"  # auto | resident (set lives on the device) | tfdata (streamed)
    config.input.normalize = "backbone"  # backbone (as in its pretraining) | dataset (mean, std)

    config.augment = ConfigDict()  # all three 0 switches augmentation off; there are no flips
    config.augment.shift = 0.0  # largest shift, fraction of the side, horizontal and vertical
    config.augment.rotation = 0.0  # largest rotation, degrees, at most 15
    config.augment.zoom = 0.0  # largest change of scale, at most 0.2

    config.model = ConfigDict()
    config.model.name = "baseline"  # a name of `python -m cxrjax.convert --list`
    config.model.weights = "none"  # none | imagenet | path of a Keras .h5 or cxrjax .npz file
    config.model.trainable_layers = -1  # last N layers in Keras' counting; 0: none, -1: all
    config.model.filters = 32  # base width, baseline CNN only

    config.model.head = ConfigDict()
    config.model.head.batch_norm = False
    config.model.head.dense = 0  # units of the ReLU layer; 0: none
    config.model.head.l2 = 0.0  # penalty on the dense kernel: l2 * sum of squares, as Keras'
    config.model.head.dropout = 0.0
    config.model.head.one_logit = True  # two classes: one sigmoid logit for the second class

    config.train = ConfigDict()
    config.train.epochs = 30
    config.train.batch_size = 32
    config.train.optimizer = "adam"  # adam | adamax | sgd
    config.train.learning_rate = 1e-3
    config.train.momentum = 0.0  # sgd only
    config.train.class_weights = "none"  # none | balanced (inverse frequency, mean 1)
    config.train.patience = 5  # epochs without a better validation loss before stopping; 0: never
    config.train.precision = "float32"  # float32 | bfloat16 (activations; parameters stay float32)
    config.train.accumulate = 1  # batches whose mean gradient makes one step of the optimizer
    config.train.remat = False  # True: less memory, more arithmetic, see step.keep_products
    config.train.on_validation = False  # True: validation images too; the last epoch is kept
    config.train.start_from = ""  # finished run whose weights are the start, not model.weights

    config.cache = ConfigDict()  # maps of frozen layers, computed once for each image
    config.cache.prefix = True  # where layers are frozen and nothing is augmented, or views is set
    config.cache.views = 0  # augmented views stored of each image; 0: augmented images run anew
    config.cache.dtype = "float32"  # float32 | bfloat16 (half the room)

    config.eval = ConfigDict()
    config.eval.test = True  # False: the test split is left alone, there are no figures of it
    config.eval.batch_size = 64
    config.eval.resamples = 10_000  # bootstrap resamples behind each 95 % interval
    config.eval.conformal_level = 0.9  # share of the prediction sets that hold the true class
    config.eval.coverage = 0.9  # share of images to be answered, the surest ones
    config.eval.sensitivity = 0.95  # required of the cut on each class's probability
    config.eval.shortcuts = True  # test images also with black lungs: what is known without them

    config.sweep = _default_sweep()

    config.lock()
    return config


def _default_sweep() -> Any:
    sweep: Any = ConfigDict()  # only for `python -m cxrjax.sweep`
    sweep.seeds = 1  # of each point of the grid, counted from `seed`
    sweep.finish = "both"  # what becomes of the winner: none | report | held_out | both
    sweep.fine_tune_layers = -1  # trained then, as model.trainable_layers; -1: all
    sweep.fine_tune_learning_rate = 0.0  # 0: the winner's own
    sweep.stack = "auto"  # trials side by side in one program: auto (measured) | always | never
    return sweep


def _default_data() -> Any:
    data: Any = ConfigDict()
    data.name = "phantom"  # phantom | radiography | folder
    data.dir = ""  # archive or folder with the images; empty: $CXRJAX_DATA
    data.classes = ()  # which classes and in which order; empty: all, sorted by name
    data.image_size = 224  # side of the square images in the store, pixels
    data.frame = "whole"  # whole | lungs_box (cut to the lungs) | lungs_only (the rest black too)
    data.test_fraction = 0.2  # of all images
    data.validation_fraction = 0.125  # of the images that are left for training
    data.draw = ()  # balanced (train, validation, test), e.g. (1600, 400, 200); empty: all
    data.group_duplicates = True  # keep near-duplicates on one side of the split
    data.split_seed = 0
    data.hold_out_source = ""  # a source whose images are the test split, and none else; "": none
    data.skip_broken = False  # True: name unreadable images and go on without them
    data.cache = ""  # folder of the decoded stores; empty: $CXRJAX_CACHE or ~/.cache/cxrjax

    data.phantom = ConfigDict()  # only for data.name = phantom
    data.phantom.count = 2000  # images, spread evenly over four classes
    data.phantom.seed = 0
    data.phantom.marker = 0.0  # planted fault: chance that a source marker follows the class
    data.phantom.duplicates = 0.0  # planted fault: fraction of near-copies of other images
    data.phantom.label_noise = 0.0  # planted fault: fraction of wrong labels
    return data


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
    except json.JSONDecodeError as error:
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
    module = importlib.util.module_from_spec(specification)
    with reading(file):
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
        with contextlib.suppress(ValueError, SyntaxError):
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
    "model.trainable_layers": (-1, _HUGE),
    "model.filters": (1, 1024),
    "model.head.dense": (0, 65536),
    "model.head.l2": (0, 10),
    "model.head.dropout": (0, 0.95),
    "train.epochs": (1, _HUGE),
    "train.batch_size": (1, 65536),
    "train.learning_rate": (0, 100),
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
    if config.train.momentum and config.train.optimizer != "sgd":
        raise UserError(
            f"config field train.momentum is for sgd, not {config.train.optimizer}; leave it at 0."
        )
    if config.train.on_validation and config.train.patience:
        raise UserError(
            "config field train.on_validation has the validation images trained on, so their loss "
            f"cannot tell when to stop; set train.patience to 0, not {config.train.patience}."
        )
    augmented = config.augment.shift or config.augment.rotation or config.augment.zoom
    if config.cache.views and not augmented:
        raise UserError(
            "config field cache.views stores augmented views and nothing is augmented; set "
            "augment.shift, rotation or zoom, or leave it at 0."
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
