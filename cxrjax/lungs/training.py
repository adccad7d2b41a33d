"""Trains the lung segmentation on phantoms, and on annotated films where there are some."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxrjax import bootstrap, log
from cxrjax.data import images as pictures
from cxrjax.data.augment import warp
from cxrjax.data.duplicates import find_duplicates, group
from cxrjax.data.phantom import PhantomSource
from cxrjax.data.sources import open_files
from cxrjax.errors import UserError
from cxrjax.lungs import network, segment
from cxrjax.threads import in_order

_BATCH = 32
_RATE = 3e-3
_BLOBS = 3  # opacities painted over each film at random


class Annotated(NamedTuple):
    """Films with their lungs."""

    names: tuple[str, ...]
    films: np.ndarray  # uint8 [N, SIDE, SIDE]
    masks: np.ndarray  # bool [N, SIDE, SIDE]


def phantoms(count: int, seed: int) -> Annotated:
    """Procedural films, whose lungs are known."""
    source, side = PhantomSource(count, seed), network.SIDE

    def draw(i: int) -> tuple[np.ndarray, np.ndarray]:
        return source.read(i, side), source.read_mask(i, side) > 0

    drawn = list(in_order(draw, count, what="drawing phantoms", unit="films"))
    films, masks = (np.array(part) for part in zip(*drawn, strict=True))
    return Annotated(tuple(record.name for record in source.records), films, masks)


def annotated_films(path: Path) -> Annotated:
    """Films in images/ with lung masks of the same stem in the masks/ beside it.

    Both may lie anywhere in a folder or zip, and more than once: a film is named by its stem after
    the folder that they lie in.

    Raises:
      UserError: when there are none, or one cannot be read.
    """
    files = open_files(path)
    found: dict[str, dict[tuple[str, str], str]] = {"images": {}, "masks": {}}
    for name in filter(pictures.is_image, files.names):
        where = PurePosixPath(name)
        if where.parent.name in found:
            found[where.parent.name][where.stem, str(where.parent.parent)] = name
    pairs = sorted(found["images"].keys() & found["masks"].keys())
    if not pairs:
        raise UserError(
            f"{path} holds no films with lung masks; it needs images/ and masks/ with files of the "
            "same stem."
        )

    def read(kind: str, pair: tuple[str, str]) -> np.ndarray:
        name = found[kind][pair]
        decode = pictures.decode_mask if kind == "masks" else pictures.decode
        try:
            return pictures.resize(decode(files.read(name), name), network.SIDE)
        except pictures.BrokenImage as broken:
            raise UserError(f"{path}: {broken}; mend or delete that file.") from broken

    films = np.array([read("images", pair) for pair in pairs])
    masks = np.array([read("masks", pair) > 127 for pair in pairs])
    return Annotated(tuple(str(PurePosixPath(of, stem)) for stem, of in pairs), films, masks)


def halves(films: Annotated, seed: int = 0) -> tuple[Annotated, Annotated]:
    """Two halves at random, near-duplicates on one side."""
    groups = group(len(films.names), find_duplicates(films.films).pairs, [None] * len(films.names))
    order = np.random.default_rng(seed).permutation(np.unique(groups))
    first = np.isin(groups, order[: len(order) // 2])
    parts = [
        Annotated(tuple(np.array(films.names)[side]), films.films[side], films.masks[side])
        for side in (first, ~first)
    ]
    return parts[0], parts[1]


def train(parts: list[Annotated], steps: int, seed: int = 0) -> network.Params:
    """Weights after `steps` batches of 32, drawn from all parts alike, augmented.

    Args:
      parts: sets of films; each fills an equal share of every batch.
    """
    params = network.init(seed)
    schedule = optax.cosine_decay_schedule(_RATE, steps)
    tx = optax.adam(schedule)
    state = tx.init(params)
    run = jax.jit(functools.partial(_step, tx), donate_argnums=(0, 1))
    key = jax.random.key(seed)
    with log.progress_bar(total=steps, what="training", unit="steps") as bar:
        for i, (films, masks) in enumerate(_batches(parts, steps, seed)):
            params, state, loss = run(params, state, films, masks, jax.random.fold_in(key, i))
            if i % 100 == 99:
                bar.set_postfix(loss=f"{float(loss):.3f}")
            bar.update()
    return params


def dice(films: Annotated, params: network.Params) -> np.ndarray:
    """Dice coefficient 2|A n B| / (|A| + |B|) of each film, float64 [N], at the network's size."""
    found = segment.masks(films.films, params)
    both = (found & films.masks).sum(axis=(1, 2))
    return 2 * both / np.maximum(found.sum(axis=(1, 2)) + films.masks.sum(axis=(1, 2)), 1)


def mean_interval(values: np.ndarray) -> dict[str, Any]:
    """Mean with its 95 % interval by a bootstrap over films."""
    return bootstrap.mean(values, np.arange(len(values)), 10_000, seed=0)


def _batches(parts: list[Annotated], steps: int, seed: int) -> Iterator[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    sizes = np.diff(np.linspace(0, _BATCH, len(parts) + 1).astype(int))
    for _ in range(steps):
        chosen = [rng.integers(len(p.films), size=n) for p, n in zip(parts, sizes, strict=True)]
        yield (
            np.concatenate([p.films[c] for p, c in zip(parts, chosen, strict=True)]),
            np.concatenate([p.masks[c] for p, c in zip(parts, chosen, strict=True)]),
        )


def _step(tx, params, state, films, masks, key):
    films, masks = _augmented(films, masks, key)

    def loss_of(params):
        logits = network.apply(params, films)
        # Cross-entropy for gradients everywhere, soft Dice for what is judged.
        entropy = optax.sigmoid_binary_cross_entropy(logits, masks).mean()
        lung = jax.nn.sigmoid(logits)
        overlap = (lung * masks).sum(axis=(1, 2)) * 2 + 1
        return entropy + (1 - overlap / (lung.sum((1, 2)) + masks.sum((1, 2)) + 1)).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, state = tx.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss


def _augmented(films: jax.Array, masks: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Other poses, exposures, opacities, blur and noise: uint8 and bool to float32 of one shape.

    Phantoms are far cleaner than films, so the changes are large.
    """
    n, side = films.shape[:2]
    keys = jax.random.split(key, 8)

    def uniform(k: int, low: float, high: float, *shape: int) -> jax.Array:
        return jax.random.uniform(keys[k], shape or (n,), jnp.float32, low, high)

    pose = {
        "shift": uniform(0, -0.08 * side, 0.08 * side, n, 2),
        "radians": uniform(1, -0.15, 0.15),
        "scale": uniform(2, 0.8, 1.2),
    }
    flip = (uniform(3, 0, 1) < 0.2)[:, None, None]
    x, y = (
        warp(jnp.where(flip, a[:, :, ::-1], a)[..., None].astype(jnp.float32), **pose)[..., 0]
        for a in (films, masks.astype(jnp.float32))
    )
    draw = uniform(4, 0, 1, n, 8 + 5 * _BLOBS)
    x = x / 255
    across = jnp.linspace(-1, 1, side)
    for b in range(_BLOBS):  # consolidations and hidden bases: the mask stays
        cx, cy, rx, ry, strength = draw[:, 8 + 5 * b : 13 + 5 * b].T[:, :, None]
        horizontal = jnp.square((across[None] - 1.6 * cx + 0.8) / (0.1 + 0.4 * rx))
        vertical = jnp.square((across[None] - 1.6 * cy + 0.8) / (0.1 + 0.4 * ry))
        blob = jnp.exp(-horizontal[:, None, :] - vertical[:, :, None])
        amount = jnp.clip(strength - 0.4, 0)[:, :, None]
        x = x + amount * blob * (0.9 - x)
    gamma = jnp.exp(draw[:, 0] * 1.6 - 0.8)[:, None, None]
    x = jnp.clip(x, 0, 1) ** gamma
    blurred = (x + jnp.roll(x, 1, 1) + jnp.roll(x, -1, 1)) / 3
    blurred = (blurred + jnp.roll(blurred, 1, 2) + jnp.roll(blurred, -1, 2)) / 3
    amount = (2.5 * draw[:, 1] - 1.2)[:, None, None]  # from sharpened to blurred
    x = x + jnp.clip(amount, -0.8, 1) * (blurred - x)
    tilt = (draw[:, 2, None] - 0.5) * across[None]
    x = x + 0.3 * tilt[:, :, None] + 0.3 * ((draw[:, 3, None] - 0.5) * across[None])[:, None, :]
    noise = jax.random.normal(keys[5], x.shape)
    x = x + noise * (0.06 * draw[:, 4])[:, None, None]
    edges = jnp.floor(jnp.clip(draw[:, 5:8] - 0.6, 0) * 0.3 * side).astype(jnp.int32)
    rows = jnp.arange(side)[None]
    inside = (rows >= edges[:, :1]) & (rows < side - edges[:, 1:2])
    columns = (rows >= edges[:, 2:]) & (rows < side - edges[:, 2:])
    return jnp.where(inside[:, :, None] & columns[:, None], x, 0), y
