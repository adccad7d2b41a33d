"""A sweep file: a configuration and a grid of values for some of its fields."""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxrjax import config as config_lib
from cxrjax.config import Config
from cxrjax.errors import MALFORMED, UserError
from cxrjax.models import download
from cxrjax.run_folder import PLACES, keep_places

Grid = dict[str, tuple[Any, ...]]  # dotted field -> its values, in the order given
_MOST = 10_000  # trials
# What no trial reads: see `_key`.
_AFTERWARDS = (
    "eval.test",
    "eval.shortcuts",
    "eval.coverage",
    "eval.sensitivity",
    "eval.conformal_level",
)


@dataclass(frozen=True)
class Point:
    """One trial: a point of the grid with one seed."""

    key: str  # 16 hex digits of a hash of everything that decides its result but the data
    values: dict[str, Any]  # of the grid's fields alone
    seed: int
    config: Config  # complete, not to be changed

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """Every field of `config` by its dotted name."""
        return config_lib.fields(self.config)


@dataclass(frozen=True)
class Sweep:
    """A configuration, a grid and the trials that they make."""

    config: Config
    grid: Grid
    points: tuple[Point, ...]

    def own(self, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The records by key that are of this sweep's trials, named by its grid's fields.

        A folder may have seen another grid, which ran the same trial under fewer names or more.
        """
        values = {point.key: point.values for point in self.points}
        return [
            dict(record) | {"values": values[key]}
            for key, record in records.items()
            if key in values
        ]


def load(
    path: str,
    overrides: Mapping[str, str] | None = None,
    grid_overrides: Mapping[str, str] | None = None,
) -> Sweep:
    """Reads a sweep file, a Python file with `get_config()` and `get_grid()`.

    Args:
      overrides: dotted field to text, of the configuration.
      grid_overrides: dotted field to text such as "(1e-3, 1e-4)": these values instead of the
        file's; a single value takes the field out of the grid.
    Raises:
      UserError: for a missing or failing file, an unknown field, or a point that cannot be.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"sweep file {path} does not exist; see configs/sweeps/ for those that do.")
    module = config_lib.run_file(file)
    if not hasattr(module, "get_grid"):
        raise UserError(
            f"{path} has no get_grid(), so it is no sweep; a single run of it is "
            f"python -m cxrjax.main --config {path}."
        )
    config = config_lib.config_of(module, file)
    for field, text in (overrides or {}).items():
        config_lib.override(config, field, text)
    keep_places(config)
    with config_lib.reading(file):
        grid = module.get_grid()
    if not isinstance(grid, dict):
        raise UserError(f"{path}: get_grid() must return a dict of field to values, not {grid!r}.")
    for field, text in (grid_overrides or {}).items():
        grid = {**grid, field: _values(field, text)}
    clash = sorted(set(grid) & set(overrides or {}))
    if clash:
        raise UserError(
            f"{clash[0]} is a field of the grid; give its values by --grid.{clash[0]}=A,B instead "
            f"of --config.{clash[0]}."
        )
    return expand(config, grid, path)


def expand(config: Config, grid: Mapping[str, Sequence[Any]], where: str) -> Sweep:
    """All trials of a grid: its product, in the order of its fields, times the seeds.

    Raises:
      UserError: for an empty or repeated list of values, a field that no grid can vary, or a point
        whose configuration is impossible; it names the point.
    """
    config_lib.validate(config)
    known = config_lib.fields(config)
    if not config.eval.test and config.sweep.finish != "none":
        raise UserError(
            "config field eval.test is False, but what is made of a sweep's winner ends with a "
            "look at the test split; set sweep.finish to none as well, or leave eval.test True."
        )
    if "seed" in grid:
        raise UserError(f"{where}: seeds are not of the grid; set --config.sweep.seeds=N.")
    checked: Grid = {}
    for field, values in grid.items():
        if not isinstance(field, str):
            raise UserError(
                f"{where}: the grid's {field!r} names no config field; give a name such as "
                "'train.epochs'."
            )
        if field.startswith("sweep.") or field in (*PLACES, *_AFTERWARDS):
            raise UserError(f"{where}: {field} cannot be varied by a grid; take it out.")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(
                f"{where}: the grid's {field} is {values!r}; give a list of values such as (1, 2)."
            )
        checked[field] = tuple(_typed(config, known, field, value, where) for value in values)
        # Lists within a value have no hash; what they may hold is validated point by point.
        if len(set(map(repr, checked[field]))) < len(checked[field]):
            raise UserError(f"{where}: the grid's {field} names a value twice: {values!r}.")
    count = config.sweep.seeds
    for values in checked.values():
        count *= len(values)
    if count > _MOST:
        raise UserError(f"{where}: the grid has {count} trials; {_MOST} are the most.")
    points = []
    for combination in itertools.product(*checked.values()):
        chosen = dict(zip(checked, combination, strict=True))
        for seed in range(config.seed, config.seed + config.sweep.seeds):
            points.append(_point(config, chosen, seed))
    return Sweep(config, checked, tuple(points))


def _values(field: str, text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text)
    except (*MALFORMED, SyntaxError, MemoryError):
        value = tuple(part.strip() for part in text.split(",") if part.strip())
    if not isinstance(value, (tuple, list)):
        value = (value,)
    if not value:
        raise UserError(f"--grid.{field} needs values: --grid.{field}=A,B.")
    return tuple(value)


def _typed(config: Config, known: dict[str, Any], field: str, value: Any, where: str) -> Any:
    """The value as its field holds it, so that 1 and 1.0 are one point."""
    if field not in known:
        config_lib.assign(config, field, value, where)  # raises
    return config_lib.typed(field, value, type(known[field]), where)


def _point(config: Config, values: dict[str, Any], seed: int) -> Point:
    own = config.copy_and_resolve_references()
    for field, value in values.items():
        config_lib.assign(own, field, value, "grid")
    own.seed = seed
    keep_places(own)  # a value of the grid may be a path
    try:
        config_lib.validate(own)
    except UserError as error:
        told = ", ".join(f"{field}={value}" for field, value in values.items())
        raise UserError(f"the point {told} of the grid is impossible: {error}") from error
    if own.train.on_validation:
        raise UserError(
            "config field train.on_validation is for single runs: a sweep ranks its trials by "
            "validation images, so none may be trained on; leave it False (sweep.finish trains "
            "the winner on them)."
        )
    own.lock()
    return Point(_key(own), values, seed, own)


@functools.cache
def _content(weights: str) -> str:
    """Config field model.weights, a file by its SHA-256; a file that is missing is told later."""
    if weights in ("none", "imagenet"):
        return weights
    try:
        return f"sha256:{download.digest(Path(weights), 'sha256')}"
    except (OSError, ValueError):
        return weights


def _key(config: Config) -> str:
    """Of all that decides a trial's result. Options that are off do not: keys, and so unfinished
    sweeps, outlive the version that an option came with. What only the winner's runs are asked
    counts as it is by default."""
    defaults = config_lib.fields(config_lib.default())
    off = {field: defaults[field] for field in config_lib.TRAIN_OPTIONS}
    # A weight file is what it holds, wherever it lies.
    known = {field: defaults[field] for field in _AFTERWARDS}
    known["model.weights"] = _content(config.model.weights)
    told = {
        field: known.get(field, value)
        for field, value in config_lib.fields(config).items()
        if field not in PLACES and not field.startswith("sweep.") and off.get(field) != value
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
