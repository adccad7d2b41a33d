"""What is made of a sweep's winner: the runs of each protocol, see `finish`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from cxrjax import config as config_lib
from cxrjax import prefix
from cxrjax.config import Config
from cxrjax.errors import UserError
from cxrjax.sweep import plan as planning
from cxrjax.sweep.grid import Sweep


def names(finish: str) -> tuple[str, ...]:
    """Names of the protocols that `sweep.finish` asks for."""
    return {"none": (), "both": ("report", "held_out")}.get(finish, (finish,))


def phases(name: str, config: Config, epochs: int, sweep: Config) -> list[dict[str, Any]]:
    """Changes of the winner's configuration, run after run; "folder" names each.

    Args:
      name: "report" or "held_out".
      config: of the winner.
      epochs: the winner's best epoch.
      sweep: the section of that name of the sweep's configuration.
    """
    whole = config.model.trainable_layers < 0  # nothing is left to unfreeze
    report = name == "report"
    # A schedule keeps its shape: the warm-up, its share of the epochs.
    warmup = config.train.warmup * epochs / config.train.epochs
    length = {"train.epochs": epochs, "train.warmup": warmup}
    first: dict[str, Any] = {"folder": f"{name}_first", "eval.test": whole}
    if report:
        first |= length | {"train.on_validation": True, "train.patience": 0}
    if whole:
        return [first]
    second = first | {
        **length,
        "folder": f"{name}_fine_tuned",
        "eval.test": True,
        "model.trainable_layers": sweep.fine_tune_layers,
    }
    if sweep.fine_tune_learning_rate:
        second["train.learning_rate"] = sweep.fine_tune_learning_rate
    return [first, second]


def settings(name: str, config: Config, changes: Mapping[str, Any]) -> Config:
    """Configuration of one run of protocol `name`; `changes` are of `phases`.

    Raises:
      UserError: when it is impossible.
    """
    own = config.copy_and_resolve_references()
    own.sweep = config_lib.default().sweep  # no part of the run: a grid may grow around it
    for field, value in changes.items():
        if field != "folder":
            config_lib.assign(own, field, value, name)
    config_lib.validate(own)
    return own


def check(sweep: Sweep) -> None:
    """Finds out before the search whether any point, should it win, could be finished as asked.

    Raises:
      UserError: naming `sweep.fine_tune_layers`, which alone can make it impossible.
    """
    asked = sweep.config.sweep
    free = planning.NUMBERS | {"seed"}  # they change nothing of it, and a grid may be long
    configs = {planning.signature(point, free): point.config for point in sweep.points}.values()
    for name, config in itertools.product(names(asked.finish), configs):
        for changes in phases(name, config, config.train.epochs, asked):
            try:
                own = settings(name, config, changes)
                own.cache.prefix = True  # or the layers would not be counted
                prefix.is_frozen(own)
            except UserError as error:
                raise UserError(
                    f"config field sweep.fine_tune_layers is {asked.fine_tune_layers}, with which "
                    f"the winner cannot be fine-tuned ({str(error).rstrip('.')}); choose another "
                    "number, -1 for all layers, or set sweep.finish to none."
                ) from error
