"""The streaming input path: a tf.data pipeline over the memory-mapped store."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cxrjax.data.batches import Batch, Plan, on_device


class TfDataInput:
    """Batches gathered and prefetched in threads while the device computes its step.

    The same batches as the resident path's. The gathering itself holds the interpreter's lock.
    """

    name = "tfdata"

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Keeps the memory map: images uint8 [N, H, W], labels int32 [N]."""
        self._images, self._labels = images, np.asarray(labels, np.int32)

    def batches(self, plan: Plan, start: int = 0) -> Iterator[Batch]:
        """Yields the plan's batches from step `start` on, one already on its way to the device."""
        yield from on_device(self._dataset(plan, start).as_numpy_iterator())

    def _dataset(self, plan: Plan, start: int):
        import tensorflow as tf  # 5 s to import: only who streams pays

        side = self._images.shape[1:]

        def read(index, mask):
            image = tf.numpy_function(
                lambda rows: self._images[rows][..., None], [index], tf.uint8, stateful=False
            )
            image.set_shape((index.shape[0], *side, 1))
            return {"image": image, "label": tf.gather(labels, index), "index": index, "mask": mask}

        with tf.device("/cpu:0"):
            labels = tf.constant(self._labels)
            dataset = tf.data.Dataset.from_tensor_slices((plan.index[start:], plan.mask[start:]))
            dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            return dataset.prefetch(tf.data.AUTOTUNE)
