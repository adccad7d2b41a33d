"""Where evidence may lie: lungs of a data set or a segmentation, lesions that phantoms know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cxrjax.config import Config
from cxrjax.data.dataset import Dataset
from cxrjax.data.phantom import PhantomSource

Segmentation = Callable[[np.ndarray], np.ndarray]  # uint8 [N, S, S] -> bool [N, S, S]


def lungs(
    data: Dataset, positions: np.ndarray, segment: Segmentation | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Lung masks of examples: the data set's own, else those of `segment`.

    Args:
      positions: int [N] into the store.
      segment: for images without a mask; None leaves them unknown.
    Returns:
      bool [N, S, S], and bool [N], whether the mask is known.
    """
    store = data.store
    known = np.array(store.has_mask[positions], bool)
    masks = np.zeros((len(positions), *store.images.shape[1:]), bool)
    if store.masks is not None:
        masks[known] = store.masks[positions[known]] > 127
    if segment is not None and not known.all():
        masks[~known] = segment(store.images[positions[~known]])
        known[:] = True
    return masks, known & masks.any((1, 2))


def lesions(config: Config, data: Dataset, positions: np.ndarray) -> np.ndarray | None:
    """Lesion masks of phantoms, bool [N, S, S], blank without a lesion; None for other data."""
    if config.data.name != "phantom":
        return None
    p = config.data.phantom
    source = PhantomSource(p.count, p.seed, p.marker, p.duplicates, p.label_noise)
    of = {record.name: i for i, record in enumerate(source.records)}
    size = config.data.image_size
    found = [source.lesion_mask(of[data.store.names[i]], size) > 127 for i in positions]
    return np.array(found).reshape(-1, size, size)
