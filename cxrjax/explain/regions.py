"""Where evidence may lie: lungs of a data set or a segmentation, lesions that phantoms know."""

from __future__ import annotations

import numpy as np

from cxrjax.config import Config
from cxrjax.data.dataset import Dataset
from cxrjax.data.framing import WHOLE
from cxrjax.data.phantom import PhantomSource
from cxrjax.lungs import Segmentation, of_store


def lungs(data: Dataset, positions: np.ndarray, segment: Segmentation | None = None) -> np.ndarray:
    """Lung masks of examples: the data set's own, else those of `segment`.

    Args:
      positions: int [N] into the store.
      segment: for images without a mask; None leaves theirs blank.
    Returns:
      bool [N, S, S], blank where the lungs are not known.
    """
    return of_store(data.store, positions, segment)[0]


def lesions(config: Config, data: Dataset, positions: np.ndarray) -> np.ndarray | None:
    """Lesion masks of phantoms, bool [N, S, S], blank without a lesion; None for other data.

    None for cut films as well: where lesions lie is known of the whole ones.
    """
    if config.data.name != "phantom" or config.data.frame != WHOLE:
        return None
    p = config.data.phantom
    source = PhantomSource(p.count, p.seed, p.marker, p.duplicates, p.label_noise)
    of = {record.name: i for i, record in enumerate(source.records)}
    size = config.data.image_size
    found = [source.lesion_mask(of[data.store.names[i]], size) > 127 for i in positions]
    return np.array(found).reshape(-1, size, size)
