"""A finished run, loaded for prediction from its folder alone: neither data nor weight file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cxrjax import build, evaluation, optim, step
from cxrjax import config as config_lib
from cxrjax.checkpoint import Checkpoints
from cxrjax.config import Config
from cxrjax.errors import UserError
from cxrjax.models import classifier


class Trained(NamedTuple):
    """The best weights of a run and all that a prediction must repeat."""

    model: classifier.Classifier  # with these weights
    recipe: step.Recipe
    params: optim.Params  # the whole network's
    batch_stats: dict[str, Any]
    config: Config
    classes: tuple[str, ...]


def load(workdir: Path) -> Trained:
    """The classifier of a finished run.

    Raises:
      UserError: when there is no such run, it is not finished or its checkpoint is damaged.
    """
    folder = workdir / "checkpoints"
    if not (workdir / "config.json").is_file() or not folder.is_dir():
        raise UserError(
            f"{workdir} holds no run; name the --workdir of one that python -m cxrjax.main wrote."
        )
    config = config_lib.load(str(workdir / "config.json"))
    with contextlib.closing(Checkpoints(folder)) as checkpoints:
        newest = checkpoints.latest()
        note: Any = checkpoints.note(newest) if newest is not None else {"finished": False}
        if newest is None or not note["finished"]:
            raise UserError(
                f"the run in {workdir} is not finished; finish it by python -m cxrjax.main "
                f"--workdir {workdir}."
            )
        contract = note["input"]
        model, recipe, state = _skeleton(config, contract)
        best = build.copy_arrays((state.params, state.batch_stats))
        state, (params, batch_stats) = checkpoints.arrays(newest, (state, best))
    params = optim.combine(params, state.frozen)
    model = classifier.merge(recipe.graphdef, params, batch_stats)
    return Trained(model, recipe, params, batch_stats, config, tuple(contract["classes"]))


def predictor(run: Trained) -> Callable[[np.ndarray], np.ndarray]:
    """A function of images uint8 [N, S, S] to probabilities float32 [N, K]."""
    nothing: optim.Params = {"backbone": {}}
    evaluate = jax.jit(functools.partial(step.eval_step, run.recipe))
    one = functools.partial(evaluate, run.params, nothing, run.batch_stats)

    return lambda images: evaluation.predict_images(
        one, images, run.config.eval.batch_size, "predicting"
    )


def _skeleton(
    config: Config, contract: dict[str, Any]
) -> tuple[classifier.Classifier, step.Recipe, step.TrainState]:
    """The network and a state of the right shapes, by the contract kept with the checkpoint."""
    n_classes = len(contract["classes"])
    model = classifier.build(
        config.model,
        n_classes,
        contract=(contract["pretrained"] or {}).get("contract"),
        seed=config.seed,
        dtype=config.train.precision,
    )
    graphdef, params, batch_stats = classifier.split(model)
    layers = classifier.trainable_layer_names(model, config.model.trainable_layers)
    recipe = step.Recipe(
        graphdef=graphdef,
        n_classes=n_classes,
        mean=tuple(contract["mean"]),
        std=tuple(contract["std"]),
        train_layers=frozenset(),
        class_weights=(1.0,) * n_classes,
        l2=0.0,
        shift=0.0,
        rotation=0.0,
        zoom=0.0,
        seed=config.seed,
        steps_per_epoch=1,
    )
    tx, _ = build.train_program(config, recipe)
    variables = build.Variables(*optim.partition(params, layers), batch_stats, None)
    return model, recipe, build.init_state(variables, recipe, tx)
