"""Maps of the frozen layers, computed once for each image and kept: an input path of its own.

With the first layers frozen their output is a pure function of the image, so training can start
behind them. In float32 that is exact without augmentation. With it, K views of each image are
stored and taken in turn, epoch by epoch; with K at least the number of epochs that is exact too.
In bfloat16 it is where all layers are frozen; cut in the middle, probabilities move by some 1e-4.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import config as config_lib
from cxrjax import log, runtime, step
from cxrjax.config import Config
from cxrjax.data import augment
from cxrjax.data.batches import Batch, Plan, evaluation_plan, on_device
from cxrjax.data.dataset import Dataset
from cxrjax.data.resident import ResidentInput, fits
from cxrjax.errors import UserError, writing
from cxrjax.models import classifier, lowering

FORMAT = 1  # of the files; also counts changes of what is in them
_REMEDY = "choose another CXRJAX_CACHE or set --config.cache.prefix=False"
VIEWS_UNUSED = "cache.views is not used: nothing is frozen, or cache.prefix is off"
_SAVE_EVERY = 16  # batches between two notes of what is done

Images = Callable[[Plan], Iterator[Batch]]
Run = Callable[[Batch, int], jax.Array]  # images, view -> maps


class MapsFile:
    """[views * N, h, w, C] on disk, filled row by row, and a note of which rows are."""

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...], dtype: Any):
        """Opens or creates `path`.maps and `path`.done.npy.

        Raises:
          UserError: when the folder cannot be written.
        """
        self.rows, self.shape, self.dtype = rows, shape, np.dtype(dtype)
        self._maps, self._done = path.with_suffix(".maps"), path.with_suffix(".done.npy")
        self._row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        with writing(path.parent, _REMEDY):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Open as long as this lives: users may delete the files whenever they need room, and
            # another run then puts an empty one in their place.
            opened = os.open(self._maps, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = open(opened, "r+b", buffering=0)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(opened).st_size != rows * self._row_bytes:
                # New, or deleted or cut short since: what a note says of it no longer holds.
                self._done.unlink(missing_ok=True)
                # Sparse: what is not computed takes no room.
                self._file.truncate(rows * self._row_bytes)
            self.done = self._noted()
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def write(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Writes `values` [n, h, w, C] to `rows` int [n]; `save` then notes them.

        Not through the memory map: on a full disk a map kills the process.
        """
        with writing(self._maps, _REMEDY):
            for row, value in zip(rows, np.ascontiguousarray(values, self.dtype), strict=True):
                at, left = int(row) * self._row_bytes, value.tobytes()
                while left:  # a disk that fills up takes a part first
                    count = os.pwrite(self._file.fileno(), left, at)
                    at, left = at + count, left[count:]
        self.done[rows] = True

    def save(self) -> None:
        """Notes on disk which rows are written, those of other processes included.

        Nothing where the file was deleted since: it is this process's alone then.
        """
        with (
            writing(self._done, _REMEDY),
            contextlib.suppress(FileNotFoundError),
            open(self._maps, "r+b") as file,
        ):
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.sameopenfile(file.fileno(), self._file.fileno()):
                return
            os.fsync(self._file.fileno())
            self.done |= self._noted()
            with log.replacing(self._done, "wb") as note:
                np.save(note, self.done)

    def check_room(self, rows: int) -> None:
        """Tells of a disk without room for that many rows before any is computed.

        Raises:
          UserError: when there is too little.
        """
        needed, disk = rows * self._row_bytes, os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize < needed:
            raise UserError(
                f"the disk of {self._maps.parent} has no room for {needed / 1e9:.2g} GB of stored "
                f"maps; free some, {_REMEDY}."
            )

    def map(self) -> np.ndarray:
        """The rows, memory-mapped for reading."""
        return np.memmap(self._file, self.dtype, "r", shape=(self.rows, *self.shape))

    def _noted(self) -> np.ndarray:
        try:
            done = np.load(self._done, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            done = np.zeros(0, bool)  # absent or damaged: computed again
        fitting = done.shape == (self.rows,) and done.dtype == bool
        return done if fitting else np.zeros(self.rows, bool)


class FrozenMaps:
    """An input path whose batches hold stored maps instead of images."""

    name = "frozen maps"

    def __init__(self, images: Images, labels: np.ndarray, run: Run, file: MapsFile, batch: int):
        """Keeps what is needed to compute maps; nothing is computed yet.

        Args:
          images: plan -> batches with images.
          labels: int [N].
          run: compiled prefix.
          batch: images to compute at once.
        """
        self._images, self._labels, self._run, self._file = images, labels, run, file
        self._batch = batch
        self.shape, self.dtype = file.shape, file.dtype  # of the maps of one image
        self._resident: ResidentInput | None = None

    def prepare(
        self, wanted: Sequence[tuple[np.ndarray, int]], should_stop: Callable[[], bool]
    ) -> None:
        """Computes and stores the maps that are not there yet, each of (positions, view).

        Returns early, with what is done kept, when `should_stop()`.

        Raises:
          UserError: when the disk has no room for all of them.
        """
        self._file.check_room(sum(len(self._missing(*maps)) for maps in wanted))
        for positions, view in wanted:
            # Looked up anew: another process may have computed them meanwhile.
            missing = self._missing(positions, view)
            if len(missing) and not should_stop():
                self._compute(missing, view, should_stop)

    def _missing(self, positions: np.ndarray, view: int) -> np.ndarray:
        positions = np.asarray(positions)
        return positions[~self._file.done[view * len(self._labels) + positions]]

    def _compute(self, missing: np.ndarray, view: int, should_stop: Callable[[], bool]) -> None:
        self._resident = None
        plan = evaluation_plan(missing, min(self._batch, len(missing)))
        what = f"frozen layers, view {view}" if view else "frozen layers"
        waiting: list[tuple[np.ndarray, jax.Array]] = []
        with log.progress_bar(total=len(missing), what=what, unit="images") as bar:

            def store() -> None:
                index, maps = waiting.pop(0)
                self._file.write(
                    view * len(self._labels) + index, jax.device_get(maps)[: len(index)]
                )
                bar.update(len(index))

            for at, batch in enumerate(self._images(plan)):
                waiting.append((plan.index[at][plan.mask[at]], self._run(batch, view)))
                if len(waiting) > 1:  # the device computes the next batch meanwhile
                    store()
                if at % _SAVE_EVERY == _SAVE_EVERY - 1:
                    self._file.save()
                if should_stop():
                    break
            while waiting:
                store()
        self._file.save()

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """Yields the plan's batches from step `start` on; computes what is missing first.

        Raises:
          UserError: as `prepare`.
        """
        self.prepare([(np.unique(plan.index), plan.view)], lambda: False)
        if (resident := self.resident()) is not None:
            yield from resident.batches(plan, start)
            return
        yield from on_device(self._gathered(plan, start))

    def fresh(self, plan: Plan, epoch: int) -> Iterator[Batch]:
        """Yields the plan's batches with maps of images augmented as in `epoch`; stores none."""
        return self._passed(self._images, plan, epoch + 1)

    def behind(self, images: Images) -> Images:
        """plan -> batches with maps of other images than the run's; stores none."""
        return lambda plan: self._passed(images, plan, 0)

    def _passed(self, images: Images, plan: Plan, view: int) -> Iterator[Batch]:
        for batch in images(plan):
            maps = self._run(batch, view)
            yield {name: batch[name] for name in ("label", "index", "mask")} | {"maps": maps}  # type: ignore[misc]

    def _gathered(self, plan: Plan, start: int) -> Iterator[dict[str, np.ndarray]]:
        maps, labels = self._file.map(), self._labels.astype(np.int32)
        for index, mask in zip(plan.index[start:], plan.mask[start:], strict=True):
            rows = maps[plan.view * len(labels) + index]
            yield {"maps": rows, "label": labels[index], "index": index, "mask": mask}

    def resident(self) -> ResidentInput | None:
        """All maps as a set on the device, where it is an accelerator with room for them."""
        if lowering.is_cpu() or not fits(self._file.map().nbytes):
            return None
        if self._resident is None:
            self._resident = ResidentInput(self._file.map(), self._labels, "maps")
        return self._resident


def applies(config: Config, recipe: step.Recipe) -> bool:
    """Whether a run trains on stored maps: there is a frozen stage, and views are well defined."""
    return bool(config.cache.prefix) and recipe.stage is not None and storable(config)


def storable(config: Config) -> bool:
    """Whether an image's looks are few enough to store: it is not augmented anew each epoch."""
    return not augment.active(config) or config.cache.views > 0


def is_frozen(config: Config) -> bool:
    """Whether there is a frozen stage to store maps of, told without the data.

    Raises:
      UserError: for more trained layers than the network has.
    """
    layers = config.model.trainable_layers
    if layers < 0 or not config.cache.prefix:
        return False
    return _has_frozen_stage(config.model.name, layers, config.model.filters)


@functools.cache
def _has_frozen_stage(name: str, layers: int, filters: int) -> bool:
    model = config_lib.default().model
    model.name, model.filters = name, filters
    network = classifier.build(model, 2)
    names = classifier.trainable_layer_names(network, layers)
    return classifier.last_frozen_stage(network, names) is not None


def views(config: Config, epochs: int) -> Sequence[int]:
    """Numbers of the stored views that so many epochs take in turn: 0 is the image as it is."""
    return range(1, min(config.cache.views, epochs) + 1) if config.cache.views else (0,)


def frozen_maps(
    config: Config, recipe: step.Recipe, data: Dataset, images: Images, variables: Any
) -> FrozenMaps:
    """The input path of stored maps for a run.

    They are kept under a key of everything they depend on: pixels, the frozen arrays themselves,
    the input contract, the stage, the augmentation of stored views and the storage type.

    Args:
      variables: `build.Variables` of the run.
    """
    # Weights read from a file are not on the device yet.
    whole = jax.device_put((variables.trainable, variables.frozen, variables.batch_stats))
    augmented = augment.active(config)
    dtype = config.cache.dtype
    compiled = {
        kind: jax.jit(functools.partial(step.prefix_step, recipe, dtype, kind))
        for kind in (False, True)
    }

    def run(batch: Batch, view: int) -> jax.Array:
        look = jax.device_put((np.int32(config.seed), np.int32(max(view - 1, 0))))
        return compiled[view > 0](*whole, batch, *look)

    side = config.data.image_size
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.uint8)
    index = jax.ShapeDtypeStruct((1,), jnp.int32)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    batch = {"image": image, "index": index}
    shape = jax.eval_shape(compiled[False], *whole, batch, number, number).shape
    rows = len(data.store.labels) * (1 + config.cache.views * augmented)
    key = _key(config, recipe, data, variables, augmented, rows)
    path = runtime.cache_root(config.data.cache) / "maps" / key
    file = MapsFile(path, rows, shape[1:], jnp.dtype(dtype))
    return FrozenMaps(images, data.store.labels, run, file, config.eval.batch_size)


def _key(
    config: Config, recipe: step.Recipe, data: Dataset, variables: Any, augmented: bool, rows: int
) -> str:
    digest, dtype = hashlib.sha256(), config.cache.dtype
    looks = (recipe.shift, recipe.rotation, recipe.zoom, recipe.border, recipe.gamma)
    stored = (*looks, config.seed) if augmented else ()
    contract = (variables.source or {}).get("contract")
    described = [FORMAT, data.store.key, rows, recipe.stage, recipe.mean, recipe.std, dtype]
    described += [stored, config.model.name, config.train.precision, contract]
    digest.update(json.dumps(described).encode())
    statistics = variables.batch_stats.get("backbone", {})
    # Those of trained layers move, and no stored map depends on them.
    still = {name: of for name, of in statistics.items() if name not in recipe.train_layers}
    frozen = (variables.frozen["backbone"], still)
    for tree in frozen:
        for layer in sorted(tree):
            for name, array in sorted(tree[layer].items()):
                digest.update(f"{layer}/{name}".encode())
                digest.update(np.ascontiguousarray(jax.device_get(array)).data)
    return digest.hexdigest()[:20]
