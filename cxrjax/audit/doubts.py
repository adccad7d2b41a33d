"""Labels that the film itself contradicts, found without a trained classifier.

Confident learning (Northcutt et al. 2021, arXiv 1911.00068) in its simplest form: a small
classifier of the lungs, cross-validated, gives each film probabilities that were not fitted to its
label. Among the films it is surest of, labels of a sound set agree as far as it can tell the
classes; a label drawn at random contradicts, however good it is. So the share of contradictions
there is near the share of wrong labels, and far below the classifier's own error. Where classes
look alike to so small a classifier it is above: the films named are to be looked at, not removed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrjax import lungs
from cxrjax.audit import predictability
from cxrjax.data import images as pictures
from cxrjax.data.dataset import Dataset
from cxrjax.data.duplicates import THUMBNAIL

CONTRADICTED_ALARM = 0.04  # lower end of the interval of the share of contradicted labels
_CLEAREST = 0.15  # share of the films that is looked at
_SIDE = 20  # pixels, of a pair of lungs brought to one frame
_COMPONENTS = 40
_FEWEST = 40  # films looked at below which nothing is said
_MOST = 3000  # films, drawn at random from larger sets


def find(films: np.ndarray, data: Dataset) -> dict[str, Any]:
    """Share of contradicted labels among the clearest films, with its interval.

    Args:
      films: uint8 [N, 64, 64].
    Returns:
      `contradicted` {value, low, high, n} (by Wilson), `alarm`, and `examples`: name, label and
      what the film looks like, most certain first.
    """
    store = data.store
    chosen = np.sort(np.random.default_rng(0).permutation(len(films))[:_MOST])
    masks = _masks(films, data, chosen)
    features = components(lung_frames(films[chosen], masks))
    labels, groups = store.labels[chosen], data.groups[chosen]
    folds = predictability.divide(labels, len(data.classes), groups)
    looked_at = int(_CLEAREST * len(chosen))
    if not folds or looked_at < _FEWEST:
        nothing = {"value": None, "low": None, "high": None, "n": 0}
        return {"contradicted": nothing, "alarm": False, "examples": []}
    probabilities = predictability.held_out(features, labels, len(data.classes), folds)
    seen = probabilities.argmax(axis=1)
    clearest = np.argsort(-probabilities.max(axis=1), kind="stable")[:looked_at]
    wrong = clearest[seen[clearest] != labels[clearest]]
    share = wilson(len(wrong), looked_at)
    return {
        "contradicted": share,
        "alarm": share["low"] > CONTRADICTED_ALARM,
        "examples": [
            {
                "name": store.names[chosen[i]],
                "label": data.classes[labels[i]],
                "looks_like": data.classes[seen[i]],
                "probability": round(float(probabilities[i].max()), 3),
            }
            for i in wrong[:20]
        ],
    }


def lung_frames(films: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Each film cut to the box around its lungs, at one size and exposure: float32 [N, 20, 20].

    Standardised by the pixels in the lungs; an empty mask takes the whole film.
    """
    out = np.zeros((len(films), _SIDE, _SIDE), np.float32)
    for k, (film, mask) in enumerate(zip(films, masks, strict=True)):
        mask = mask if mask.any() else np.ones_like(mask)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = film[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        inside = film[mask].astype(np.float32)
        frame = pictures.resize(np.ascontiguousarray(box), _SIDE).astype(np.float32)
        out[k] = (frame - inside.mean()) / (inside.std() + 1)
    return out


def components(frames: np.ndarray) -> np.ndarray:
    """Principal components of the frames and of their left-right differences: float32 [N, F].

    No label takes part, so they may be fitted to all films at once.
    """
    n = len(frames)
    both = np.concatenate([frames, np.abs(frames - frames[:, :, ::-1])], axis=2).reshape(n, -1)
    both = both - both.mean(axis=0)
    _, vectors = np.linalg.eigh(both.T @ both)
    return both @ vectors[:, ::-1][:, :_COMPONENTS]


def wilson(hits: int, n: int) -> dict[str, Any]:
    """A share with Wilson's 95 % score interval (1927)."""
    z, share = 1.959964, hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {
        "value": share,
        "low": max(0.0, float(centre - half)),
        "high": min(1.0, float(centre + half)),
        "n": n,
    }


def _masks(films: np.ndarray, data: Dataset, chosen: np.ndarray) -> np.ndarray:
    """bool [n, 64, 64]: the data set's own masks where there are some, else the segmentation's."""
    store = data.store
    masks = np.zeros((len(chosen), THUMBNAIL, THUMBNAIL), bool)
    known = store.has_mask[chosen]
    for k in np.flatnonzero(known):
        masks[k] = pictures.resize(np.asarray(store.masks[chosen[k]]), THUMBNAIL) > 127  # type: ignore[index]
    known = known & masks.any((1, 2))  # a blank one is none: no chest film lacks lungs
    if not known.all():
        masks[~known] = lungs.masks(films[chosen[~known]])
    return masks
