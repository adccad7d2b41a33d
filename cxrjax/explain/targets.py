"""What is explained: a linear form of the logits, given by one coefficient for each logit.

Apart from the method, which says how the target's gradient becomes a map. One logit is the evidence
for the second class against the first, so it is itself a difference.
"""

from __future__ import annotations

import numpy as np


def class_logit(k: int, n_logits: int) -> np.ndarray:
    """The logit of class `k`; with one logit, it for class 1 and its negative for class 0.

    Returns:
      float32 [n_logits].
    """
    if n_logits == 1:
        return difference(k, 1 - k, 1)
    return np.eye(n_logits, dtype=np.float32)[k]


def difference(k: int, other: int, n_logits: int) -> np.ndarray:
    """Log-odds of class `k` against `other`: the difference of their logits.

    A one-logit head and every two-logit head of the same probabilities give the same.

    Returns:
      float32 [n_logits].
    """
    if k == other or not min(k, other) >= 0 or max(k, other) >= max(2, n_logits):
        raise ValueError(f"classes {k} and {other} of {max(2, n_logits)} have no difference")
    if n_logits == 1:
        return np.asarray([1 if k == 1 else -1], np.float32)
    eye = np.eye(n_logits, dtype=np.float32)
    return eye[k] - eye[other]


def default(n_logits: int) -> np.ndarray:
    """A target for every class: its log-odds with two classes, else its logit.

    Returns:
      float32 [K, n_logits].
    """
    if n_logits <= 2:
        return np.stack([difference(k, 1 - k, n_logits) for k in range(2)])
    return np.stack([class_logit(k, n_logits) for k in range(n_logits)])
