"""Which examples make up each batch: a pure function of (seed, epoch), for both input paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NotRequired, TypedDict

import jax
import numpy as np


class Batch(TypedDict):
    """What a step receives; images stay uint8 until they are inside the jitted step."""

    image: NotRequired[jax.Array]  # uint8 [B, H, W, 1]
    maps: NotRequired[jax.Array]  # [B, h, w, C], in the place of images: see `cxrjax.prefix`
    label: jax.Array  # int32 [B]
    index: jax.Array  # int32 [B], position in the store
    mask: jax.Array  # bool [B], False where the row only fills up the last batch


class Plan(NamedTuple):
    """The batches of one pass over a split."""

    index: np.ndarray  # int32 [steps, B]
    mask: np.ndarray  # bool [steps, B]
    view: int = 0  # which stored view of the images, where maps are stored; 0: not augmented

    @property
    def steps(self) -> int:
        return len(self.index)


def training_plan(
    positions: np.ndarray, batch_size: int, seed: int, epoch: int, views: int = 0
) -> Plan:
    """A shuffled pass; the order is a function of (seed, epoch) alone.

    The last batch is filled up with further examples of the same permutation, masked out of loss
    and metrics: batch norm then never averages over blank images.

    Args:
      positions: int [N], the split's positions in the store.
      views: number of augmented views that are stored; epochs take them in turn.
    """
    order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(positions)
    return _fold(order, batch_size, 1 + epoch % views if views else 0)


def evaluation_plan(positions: np.ndarray, batch_size: int) -> Plan:
    """A pass in the given order in which every example counts exactly once."""
    return _fold(np.asarray(positions), batch_size)


def _fold(order: np.ndarray, batch_size: int, view: int = 0) -> Plan:
    steps = -(-len(order) // batch_size)
    total = steps * batch_size
    index = np.resize(order, total).astype(np.int32).reshape(steps, batch_size)
    mask = (np.arange(total) < len(order)).reshape(steps, batch_size)
    return Plan(index, mask, view)


def filled(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, ...] with the last one repeated up to `size`, so that one program serves all."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


def on_device(host_batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of arrays on the device, one already on its way there while another is used."""
    previous = None
    for batch in host_batches:
        following = jax.device_put(batch)
        if previous is not None:
            yield previous
        previous = following
    if previous is not None:
        yield previous
