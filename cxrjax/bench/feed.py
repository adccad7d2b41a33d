"""What a row is fed: random images or maps made from the configuration alone, or the real input."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.bench.job import class_names, no_maps
from cxrjax.config import Config

_IMAGES = 4  # per class: enough to draw batches and class weights from


def data_set(config: Config) -> Any:
    """A `Dataset` of random images, made from the configuration alone."""
    from cxrjax.data.dataset import Dataset
    from cxrjax.data.duplicates import Duplicates
    from cxrjax.data.store import Store

    classes = class_names(config)
    n, side = _IMAGES * len(classes), config.data.image_size
    nothing = (None,) * n
    images: Any = np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8)
    store = Store(
        root=Path(),
        key="",
        classes=classes,
        names=tuple(map(str, range(n))),
        labels=np.arange(n, dtype=np.int32) % len(classes),
        given_split=nothing,
        patients=nothing,
        sources=nothing,
        images=images,
        masks=None,
        has_mask=np.zeros(n, bool),
        skipped=(),
    )
    positions = np.arange(n, dtype=np.int32)
    return Dataset(
        store=store,
        splits=dict.fromkeys(("train", "validation", "test"), positions),
        copies=Duplicates(np.zeros((0, 2), np.int32), np.zeros(0, np.float32), np.zeros(0, bool)),
        groups=positions,
        mean=0.5,
        std=0.25,
        audit={},
        digest="",
        fingerprint="",
    )


def one_batch(config: Config, data: Any, batch_size: int | None = None) -> Iterator[Any]:
    """The same batch of random images for ever, on the device."""
    from cxrjax.data.batches import evaluation_plan
    from cxrjax.data.resident import ResidentInput

    n = batch_size or config.train.batch_size
    positions = np.resize(data.splits["train"], n)
    source = ResidentInput(data.store.images, data.store.labels)
    return itertools.repeat(next(source.batches(evaluation_plan(positions, n))))


def one_cached_batch(config: Config, recipe: Any, variables: Any) -> Iterator[Any]:
    """The same batch of random maps behind the frozen layers for ever, on the device.

    Raises:
      UserError: when a run of this configuration would not store any.
    """
    import jax
    import jax.numpy as jnp

    from cxrjax import prefix
    from cxrjax import step as step_lib

    if not prefix.applies(config, recipe):
        raise no_maps()
    n, side = config.train.batch_size, config.data.image_size
    images = {
        "image": jax.ShapeDtypeStruct((n, side, side, 1), jnp.uint8),
        "index": jax.ShapeDtypeStruct((n,), jnp.int32),
    }
    number = jax.ShapeDtypeStruct((), jnp.int32)
    run = functools.partial(step_lib.prefix_step, recipe, config.cache.dtype, False)
    arrays = (variables.trainable, variables.frozen, variables.batch_stats)
    maps = jax.eval_shape(run, *arrays, images, number, number)
    rng = np.random.default_rng(0)
    batch = {
        "maps": jnp.asarray(rng.random(maps.shape, np.float32), maps.dtype),
        "label": jnp.arange(n, dtype=jnp.int32) % recipe.n_classes,
        "index": jnp.arange(n, dtype=jnp.int32),
        "mask": jnp.ones(n, bool),
    }
    return itertools.repeat(batch)


def input_batches(config: Config, data: Any) -> Iterator[Any]:
    """The batches of one training epoch after another, as the loop draws them."""
    from cxrjax import build

    source = build.make_input(config, data)
    for plan in plans(config, data):
        yield from source.batches(plan)


def plans(config: Config, data: Any) -> Iterator[Any]:
    """The plan of one training epoch after another, as the loop makes them."""
    from cxrjax.data.batches import training_plan
    from cxrjax.data.dataset import training_positions

    positions = training_positions(data, config)
    for epoch in itertools.count():
        yield training_plan(positions, config.train.batch_size, config.seed, epoch)
