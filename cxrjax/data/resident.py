"""The resident input path: the decoded set lives on the device and batches are gathered there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.data.batches import Batch, Plan


def fits(images: np.ndarray) -> bool:
    """Whether the uint8 set takes no more than half of the device's (on CPU: the free) memory."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        # macOS does not tell how much is free; there the whole memory stands for it.
        pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
        available = os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    else:
        available = (device.memory_stats() or {}).get("bytes_limit", 0)
    return images.nbytes <= available // 2


class ResidentInput:
    """Batches from a set held in device memory."""

    name = "resident"

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Copies the set to the device: images uint8 [N, H, W], labels int32 [N]."""
        self._images = jax.device_put(np.asarray(images))
        self._labels = jax.device_put(np.asarray(labels, np.int32))

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """Yields the plan's batches from step `start` on."""
        for index, mask in zip(plan.index[start:], plan.mask[start:], strict=True):
            yield _take(self._images, self._labels, *jax.device_put((index, mask)))


@jax.jit
def _take(images: jax.Array, labels: jax.Array, index: jax.Array, mask: jax.Array) -> Batch:
    return {
        "image": jnp.take(images, index, axis=0)[..., None],
        "label": jnp.take(labels, index, axis=0),
        "index": index,
        "mask": mask,
    }
