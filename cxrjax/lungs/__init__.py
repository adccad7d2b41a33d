"""Where the lungs are on a film: a small segmentation network that comes with the package.

`weights.npz` was trained by `python -m cxrjax.lungs train --masks PATH` on 1,000 phantoms and on
150 films with lung masks published under CC BY 4.0; Dice on 150 others .939 [.934, .944], the
better of two trainings judged on these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cxrjax.data.store import Store

Segmentation = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W] -> bool [N, H, W]


def masks(images: np.ndarray) -> np.ndarray:
    """Lungs of frontal chest films, the part behind the heart included.

    Args:
      images: uint8 [N, H, W], grey, bone bright, any size.
    Returns:
      bool [N, H, W]; a film on which no lung is found gets an empty mask.
    Raises:
      UserError: when the network's weights are missing or damaged.
    """
    from cxrjax.lungs import segment  # JAX; --help of this package's command does without

    return segment.masks(images)


def of_store(
    store: Store, positions: np.ndarray, segment: Segmentation | None
) -> tuple[np.ndarray, np.ndarray]:
    """Lungs of stored images: the data set's own masks, else those of `segment`.

    Args:
      positions: int [N] into the store.
      segment: for images without a mask, or with a blank one, as no chest film lacks lungs; None
        leaves theirs blank.
    Returns:
      bool [N, S, S], and bool [N], whether the mask is the data set's.
    """
    known = np.array(store.has_mask[positions], bool)
    found = np.zeros((len(positions), *store.images.shape[1:]), bool)
    if store.masks is not None:
        found[known] = store.masks[positions[known]] > 0
    known &= found.any((1, 2))
    if segment is not None and not known.all():
        found[~known] = segment(np.asarray(store.images[positions[~known]]))
    return found, known
