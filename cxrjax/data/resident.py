"""The resident input path: the decoded set lives on the device and batches are gathered there."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.data.batches import Batch, Plan


def fits(n_bytes: int) -> bool:
    """Whether an array takes no more than half of the device's (on CPU: the free) memory."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        # macOS does not tell how much is free; there the whole memory stands for it.
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        available = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    else:
        available = (device.memory_stats() or {}).get("bytes_limit", 0)
    return n_bytes <= available // 2


class ResidentInput:
    """Batches from a set held in device memory."""

    name = "resident"

    def __init__(self, rows: np.ndarray, labels: np.ndarray, field: str = "image"):
        """Copies the set to the device.

        Args:
          rows: uint8 images [N, H, W], or stored maps [views * N, h, w, C].
          labels: int [N].
          field: of the batch that the rows fill, "image" or "maps".
        """
        self.rows = jax.device_put(np.asarray(rows))
        self.labels = jax.device_put(np.asarray(labels, np.int32))
        self.field = field

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """Yields the plan's batches from step `start` on."""
        view = jax.device_put(np.int32(plan.view))
        for index, mask in zip(plan.index[start:], plan.mask[start:], strict=True):
            yield _take(self.field, self.rows, self.labels, *jax.device_put((index, mask)), view)


def take(
    field: str,
    rows: jax.Array,
    labels: jax.Array,
    index: jax.Array,
    mask: jax.Array,
    view: jax.Array,
) -> Batch:
    """Gathers a batch: the arrays of `ResidentInput`, index int32 [B], mask bool [B], view []."""
    if field == "image":
        taken = jnp.take(rows, index, axis=0)[..., None]
    else:  # the views lie one after the other
        taken = jnp.take(rows, view * labels.shape[0] + index, axis=0)
    batch: Batch = {"label": jnp.take(labels, index, axis=0), "index": index, "mask": mask}
    return batch | {field: taken}  # type: ignore[return-value]


_take = functools.partial(jax.jit, static_argnums=0)(take)
