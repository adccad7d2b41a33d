"""A finished run opened, for inference or as the start of another: best weights, input contract."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import config as config_lib
from cxrjax import log, optim, step
from cxrjax.checkpoint import Checkpoints, complete
from cxrjax.config import Config
from cxrjax.data import dataset, framing
from cxrjax.data.batches import filled
from cxrjax.errors import UserError
from cxrjax.models import classifier, registry
from cxrjax.models.registry import ModelSpec
from cxrjax.run_folder import follow_data

# What a run and the one it starts from must have in common, besides data and classes.
_SAME = (
    "model.name",
    "model.filters",
    "model.head.batch_norm",
    "model.head.dense",
    "model.head.one_logit",
    "data.image_size",
    "data.frame",
    "input.normalize",
)

# What a checkpoint's note holds, see `loop.Training`, as far as predicting or going on needs it.
NOTE = {
    "finished": bool,
    "history": list,
    "best_epoch": int,
    "best_loss": (int, float, type(None)),
    "epochs_since_best": int,
    "epoch_seconds": (int, float),
    "digest": str,
    "fingerprint": str,
    "input": {"classes": list, "image_size": int, "mean": list, "std": list},
}


def weights_digest(params: Any, batch_stats: Any) -> str:
    """SHA-256 of all arrays of a network and their names, as hex digits."""
    found = hashlib.sha256()
    for name, array in jax.tree.leaves_with_path((params, batch_stats)):
        found.update(jax.tree_util.keystr(name).encode())
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()


def check_same_input(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuses to go on behind another trunk or with other pixels than a run has begun with.

    Args:
      before, now: input contracts, see `loop.Training.contract`.
      folder: of the run.
    Raises:
      UserError: naming what changed.
    """
    old, new = _looks(before), _looks(now)
    for what, value in old.items():
        if value != new.get(what):
            raise UserError(
                f"{folder} was begun with another {what} than the one found now ({value}, now "
                f"{new.get(what)}); go on with the weight file and the version of cxrjax that it "
                "was begun with, or choose another --workdir."
            )


def check_same_start(config: Config, workdir: Path) -> None:
    """Refuses to take another run of the same name for the one that `workdir` was begun from.

    Nothing is asked where `train.start_from` is as it was. Where it is another place that holds no
    run, that is told: a run that holds a checkpoint needs the other no more.

    Raises:
      UserError: when the weights are others.
    """
    there = Path(config.train.start_from)
    if not complete(workdir / "checkpoints"):
        return
    if config_lib.load(str(workdir / "config.json")).train.start_from == config.train.start_from:
        return
    if not (there / "result.json").is_file():
        log.say(f"no finished run is in {there}: {workdir} goes on from the one it was begun from")
        return
    begun = _newest(workdir)[0]["input"].get("start_from") or {}
    if begun.get("sha256") != load(there).weights_digest:
        raise UserError(
            f"{workdir} was begun from another run than the one in {there} that train.start_from "
            "names; name the one it was begun from, or choose another --workdir."
        )


def _looks(contract: dict[str, Any]) -> dict[str, Any]:
    looks: dict[str, Any] = {}
    if "pretrained" in contract:  # not its path: files are moved
        looks["weight file (SHA-256)"] = (contract["pretrained"] or {}).get("sha256")
    if "segmentation" in contract:
        looks["lung segmentation"] = contract["segmentation"]
    for name in ("mean", "std"):  # sums may end in other digits on another machine
        looks[f"{name} of pixels"] = np.round(contract[name], 6).tolist()
    return looks


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
    best_epoch: int
    recipe: step.Recipe
    params: dict[str, Any]  # trainable and frozen, for `classifier.merge`
    batch_stats: dict[str, Any]

    @property
    def image_size(self) -> int:
        """Side of the square images it takes, pixels."""
        return int(self.contract["image_size"])

    @property
    def frame(self) -> str:
        """How its films were cut, see `data.framing`."""
        return self.contract.get("frame", framing.WHOLE)

    def see(self, films: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Decoded films as the network takes them.

        Args:
          films: uint8 [H, W] each, of any sizes.
        Returns:
          uint8 [N, S, S], and bool [N], False where lungs are to be cut out and none were found.
        """
        return framing.of_films(films, self.frame, self.image_size)

    @functools.cached_property
    def weights_digest(self) -> str:
        """SHA-256 of all its arrays, names included."""
        return weights_digest(self.params, self.batch_stats)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a run that starts from this one says of it in its result.json."""
        return {
            "run": str(self.folder),
            "sha256": self.weights_digest,
            "best_epoch": self.best_epoch,
            "trained_on": list(dataset.training_splits(self.config)),
            "start_from": self.contract.get("start_from"),
        }

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
                f"{self.config.data.dir or 'the place its config.json names'}; name the original "
                "data by data.dir in its config.json. Older versions of cxrjax divide some data "
                "otherwise: their runs need those."
            )
        return found


def load(workdir: Path | str) -> Trained:
    """Opens the finished run in `workdir`; nothing in it is changed.

    Raises:
      UserError: when there is no run, it is not finished, or its files are damaged.
    """
    folder = Path(workdir)
    return _opened(folder, _finished(folder))


def check_start(config: Config, workdir: Path | None = None) -> None:
    """Checks what can be told of `train.start_from` without data.

    Args:
      workdir: of the run that starts; nothing is asked once it holds a checkpoint.
    Raises:
      UserError: when that run is missing, not finished or of another network or input, or when it
        was trained on the validation images that this one would choose its epoch by.
    """
    if workdir is not None and complete(workdir / "checkpoints"):
        return
    folder = Path(config.train.start_from)
    try:
        theirs = _finished(folder)
    except UserError as error:
        raise UserError(f"config field train.start_from: {error}") from error
    old, new = config_lib.fields(theirs), config_lib.fields(config)
    for field in _SAME:
        if field == "model.filters" and config.model.name != "baseline":
            continue
        if old[field] != new[field]:
            raise UserError(
                f"config field {field} is {new[field]!r}, but the run in {folder} that "
                f"train.start_from names has {old[field]!r}; give both the same."
            )
    if theirs.train.on_validation and not config.train.on_validation:
        raise UserError(
            f"the run in {folder} that train.start_from names was trained on the validation images "
            "too, so they cannot choose an epoch any more; set train.on_validation=True and "
            "train.patience=0."
        )


def start(config: Config, data: dataset.Dataset, workdir: Path | None = None) -> Trained | None:
    """The run that `train.start_from` names; None where it names none.

    Args:
      data: of the run that starts. Both must have the same split: the other one may have been
        trained on what are test images here.
      workdir: of the run that starts. Once it holds a checkpoint, that is opened in the other's
        place: it has the frozen weights, and replaces all others.
    Raises:
      UserError: see `check_start`; or when the data or their split are others.
    """
    if not config.train.start_from:
        return None
    if workdir is not None and complete(workdir / "checkpoints"):
        return _opened(workdir, config)
    check_start(config)
    run = load(config.train.start_from)
    if run.classes != data.classes:
        raise UserError(
            f"the run in {run.folder} that train.start_from names tells other classes apart "
            f"({', '.join(run.classes)}) than this one ({', '.join(data.classes)}); give both the "
            "same data.classes."
        )
    if (run.digest, run.fingerprint) != (data.digest, data.fingerprint):
        raise UserError(
            f"the run in {run.folder} that train.start_from names was trained on other data or "
            "another split, so it may know test images of this one; give both the same data "
            "fields."
        )
    return run


def _finished(folder: Path) -> Config:
    """The configuration of the finished run in `folder`."""
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
    follow_data(config)
    return config


def _opened(folder: Path, config: Config) -> Trained:
    note, saved = _newest(folder)
    contract = note["input"]
    if "segmentation" in contract and contract["segmentation"] != framing.segmentation():
        raise UserError(
            f"the films of the run in {folder} were cut to lungs that another version of cxrjax "
            "found; use that version, or train it anew."
        )
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
        best_epoch=note["best_epoch"],
        recipe=_recipe(config, contract, graphdef, len(classes)),
        params=_fitted(params, optim.combine(trainable, frozen), folder),
        batch_stats=_fitted(batch_stats, best_stats, folder),
    )


def _newest(folder: Path) -> tuple[dict[str, Any], Any]:
    """Note and arrays of the newest checkpoint: (state, (best params, best batch statistics))."""
    if not complete(folder / "checkpoints"):
        raise UserError(
            f"{folder} has a result but no checkpoint; restore its checkpoints folder or train it "
            "anew."
        )
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        newest = checkpoints.latest()
        assert newest is not None
        return checkpoints.note(newest, NOTE), checkpoints.all_arrays(newest)


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
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"the checkpoint in {folder} holds weights that are no numbers ({name}); restore "
                "the folder or train anew."
            )
    return jax.tree.map_with_path(lambda k, _: arrays[jax.tree_util.keystr(k)], like)
