"""Where the lungs are on a film: a small segmentation network that comes with the package.

`weights.npz` was trained by `python -m cxrjax.lungs train --masks PATH` on 1,000 phantoms and on
150 films with lung masks published under CC BY 4.0; Dice on 150 others .939 [.934, .944], the
better of two trainings judged on these.
"""

from __future__ import annotations

import numpy as np


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
