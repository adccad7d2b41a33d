"""What one benchmarked process is told to do, in words that ours and the peers share."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

from cxrjax import config as config_lib
from cxrjax.config import Config
from cxrjax.data import phantom_lesions, radiography
from cxrjax.errors import UserError
from cxrjax.models import registry

ROWS = {
    "synthetic": "the train step on one batch that stays on the device",
    "cached": "the same on stored maps of the frozen layers, the peers on images",
    "resident": "the train step fed by the resident input path",
    "tfdata": "the train step fed by the tf.data path",
    "end_to_end": "training epochs of the real loop",
    "forward": "the evaluation step on one batch that stays on the device",
}
NEED_DATA = ("resident", "tfdata", "end_to_end")
COMPARABLE = ("synthetic", "cached", "forward")  # rows that the peers can run
PEERS = ("keras-tensorflow", "keras-jax", "torch")


def choose(text: str, known: Sequence[str], option: str) -> tuple[str, ...]:
    """The names of a comma-separated list, in its order.

    Raises:
      UserError: for an unknown name or an empty list; it names the nearest or all.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}."
            raise UserError(f"{option}: there is no {name!r}; {hint}")
    if not names:
        raise UserError(f"{option} names nothing; choose from {', '.join(known)}.")
    return names


def peer_python(text: str) -> tuple[str, str]:
    """(peer, interpreter) of PEER=PATH.

    Raises:
      UserError: when it is anything else.
    """
    peer, _, path = text.partition("=")
    if peer not in PEERS or not os.path.isfile(path):
        raise UserError(
            f"--peer-python {text!r} must be PEER=PATH, with a peer of {', '.join(PEERS)} and the "
            "path of a Python interpreter."
        )
    return peer, path


def class_names(config: Config) -> tuple[str, ...]:
    """The classes as far as the configuration tells them without data.

    Raises:
      UserError: for a folder of the user's own, whose classes are not named.
    """
    if config.data.classes:
        return tuple(config.data.classes)
    if config.data.name == "folder":
        raise UserError(
            "config field data.classes is empty, and the classes of a folder are not known without "
            "reading it; name them by --config.data.classes=A,B."
        )
    return {"phantom": phantom_lesions.CLASSES, "radiography": radiography.CLASSES}[
        config.data.name
    ]


def check_peers(config: Config) -> None:
    """Refuses what the peers do not do.

    Raises:
      UserError: for an option of the training recipe that is not at its default.
    """
    told, plain = config_lib.fields(config), config_lib.fields(config_lib.default())
    for field in config_lib.TRAIN_OPTIONS:
        if told[field] != plain[field]:
            raise UserError(
                f"config field {field} is {told[field]}, and the peers train without it; leave it "
                f"at {plain[field]}."
            )


def no_maps() -> UserError:
    """Of a configuration under which the row cached has nothing to start from."""
    return UserError(
        "the row cached needs stored maps of frozen layers; set --config.model.trainable_layers"
        " below the number of layers, leave cache.prefix on and augmentation off."
    )


def describe(
    config: Config, row: str, *, steps: int = 0, window_seconds: float = 2.0
) -> dict[str, Any]:
    """The job as strict JSON.

    Args:
      row: one of `ROWS`.
      steps: of a window; 0: as many as take `window_seconds`.
    """
    model, train = config.model, config.train
    n = len(class_names(config)) if row in COMPARABLE else None
    return {
        "row": row,
        "config": config_lib.to_json(config),
        "steps": steps,
        "window_seconds": window_seconds,
        # What follows repeats the configuration for the peers, who cannot read it.
        "network": model.name,
        "filters": model.filters,
        "channels": registry.spec(model.name).channels,
        "image_size": config.data.image_size,
        "batch_size": batch_size(config, row),
        "precision": train.precision,
        "trainable_layers": model.trainable_layers,
        "head": model.head.to_dict(),
        "logits": 1 if model.head.one_logit and n == 2 else n,
        "optimizer": train.optimizer,
        "learning_rate": train.learning_rate,
        "momentum": train.momentum,
        "threads": threads(),
    }


def batch_size(config: Config, row: str) -> int:
    """Images of one step of a row."""
    return config.eval.batch_size if row == "forward" else config.train.batch_size


def threads() -> int:
    """CPU cores this process and its children may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(n: int) -> None:
    """Holds this process and those it starts to `n` cores, which bounds the threads of all.

    Raises:
      UserError: when there are fewer, or the system has no such call.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("--threads works on Linux only; leave it out.")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= n <= len(cores):
        raise UserError(f"--threads is {n}; this process may use 1 to {len(cores)} cores.")
    os.sched_setaffinity(0, cores[:n])
