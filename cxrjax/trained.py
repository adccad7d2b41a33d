"""A finished run opened for inference: its best weights and the input they were trained on."""

from __future__ import annotations

import contextlib
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import config as config_lib
from cxrjax import optim, step
from cxrjax.checkpoint import Checkpoints
from cxrjax.config import Config
from cxrjax.data import dataset
from cxrjax.data.batches import filled
from cxrjax.errors import UserError
from cxrjax.models import classifier, registry
from cxrjax.models.registry import ModelSpec


@dataclass(frozen=True)
class Trained:
    """The best weights of a finished run, with what a prediction must repeat.

    `recipe` has the run's network, normalisation and classes; what only training needs of it is
    neutral (no augmentation).
    """

    folder: Path
    config: Config
    classes: tuple[str, ...]
    spec: ModelSpec  # with the input contract of its weights
    contract: dict[str, Any]  # see `loop.Training.contract`
    digest: str  # of the split it was trained on
    fingerprint: str  # of the images it was trained on
    recipe: step.Recipe
    params: dict[str, Any]  # trainable and frozen, for `classifier.merge`
    batch_stats: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square images it takes, pixels."""
        return int(self.contract["image_size"])

    @functools.cached_property
    def _eval_step(self) -> Any:
        none = {"backbone": {}}
        return jax.jit(
            lambda params, stats, batch: step.eval_step(self.recipe, params, none, stats, batch)[0]
        )

    def predict(self, images: np.ndarray, batch_size: int = 0) -> np.ndarray:
        """Class probabilities of images.

        Args:
          images: uint8 [N, S, S], S the run's image size.
          batch_size: 0 takes the run's `eval.batch_size`; smaller sets use smaller batches.
        Returns:
          float32 [N, K].
        """
        size = min(batch_size or self.config.eval.batch_size, max(len(images), 1))
        rows = []
        for start in range(0, len(images), size):
            part = np.asarray(images[start : start + size])[..., None]
            n = len(part)
            labels = jnp.zeros([size], jnp.int32)
            batch = {
                "image": filled(part, size),
                "label": labels,
                "index": labels,
                "mask": labels == 0,
            }
            rows.append(np.asarray(self._eval_step(self.params, self.batch_stats, batch))[:n])
        return np.concatenate(rows) if rows else np.zeros([0, len(self.classes)], np.float32)

    def data(self) -> dataset.Dataset:
        """The data set of the run, in the run's own split.

        Raises:
          UserError: when the images or the split found now are not those it was trained on.
        """
        found = dataset.prepare(self.config)
        if (found.digest, found.fingerprint) != (self.digest, self.fingerprint):
            raise UserError(
                f"{self.folder} was trained on other data or another split than the one found at "
                f"{self.config.data.dir or 'the place its config.json names'}; point CXRJAX_DATA "
                "or data.dir in its config.json at the original data."
            )
        return found


def load(workdir: Path | str) -> Trained:
    """Opens the finished run in `workdir`; nothing in it is changed.

    Raises:
      UserError: when there is no run, it is not finished, or its files are damaged.
    """
    folder = Path(workdir)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no run (config.json is missing); name the --workdir of a finished "
            "`python -m cxrjax.main`."
        )
    if not (folder / "result.json").is_file():
        raise UserError(
            f"the run in {folder} is not finished; finish it by python -m cxrjax.main "
            f"--workdir {folder}."
        )
    config = config_lib.load(str(folder / "config.json"))
    note, saved = _newest(folder)
    contract = note["input"]
    pretrained = contract.get("pretrained") or {}
    spec = registry.spec(config.model.name).with_contract(pretrained.get("contract"))
    classes = tuple(contract["classes"])
    model = classifier.build(
        config.model,
        len(classes),
        contract=pretrained.get("contract"),
        seed=config.seed,
        dtype=jnp.dtype(config.train.precision),
    )
    graphdef, params, batch_stats = classifier.split(model)
    state, (trainable, best_stats) = saved
    frozen = {"backbone": (state.get("frozen") or {}).get("backbone") or {}}
    trainable = {"backbone": trainable.get("backbone") or {}, "head": trainable["head"]}
    return Trained(
        folder=folder,
        config=config,
        classes=classes,
        spec=spec,
        contract=contract,
        digest=note["digest"],
        fingerprint=note["fingerprint"],
        recipe=_recipe(config, contract, graphdef, len(classes)),
        params=_fitted(params, optim.combine(trainable, frozen), folder),
        batch_stats=_fitted(batch_stats, best_stats, folder),
    )


def _newest(folder: Path) -> tuple[dict[str, Any], Any]:
    """Note and arrays of the newest checkpoint: (state, (best params, best batch statistics))."""
    if not any(folder.glob("checkpoints/[0-9]*")):
        raise UserError(
            f"{folder} has a result but no checkpoint; restore its checkpoints folder or train it "
            "anew."
        )
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        newest = checkpoints.latest()
        assert newest is not None
        return checkpoints.note(newest), checkpoints.all_arrays(newest)


def _recipe(config: Config, contract: dict[str, Any], graphdef: Any, n_classes: int) -> step.Recipe:
    return step.Recipe(
        graphdef=graphdef,
        n_classes=n_classes,
        mean=tuple(contract["mean"]),
        std=tuple(contract["std"]),
        train_layers=frozenset(),
        shift=0.0,
        rotation=0.0,
        zoom=0.0,
    )


def _fitted(like: Any, found: Any, folder: Path) -> Any:
    """`found` in the structure of `like`, whose arrays it must match."""
    shapes = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree.leaves_with_path(like)}
    arrays = {jax.tree_util.keystr(k): v for k, v in jax.tree.leaves_with_path(found)}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        odd = min(set(shapes.items()) ^ {(n, a.shape) for n, a in arrays.items()}, key=json.dumps)
        raise UserError(
            f"the checkpoint in {folder} is of another network than its config.json describes "
            f"({odd[0]}); restore the folder or train anew."
        )
    return jax.tree.map_with_path(lambda k, _: arrays[jax.tree_util.keystr(k)], like)
