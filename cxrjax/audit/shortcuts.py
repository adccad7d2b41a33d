"""What a trained classifier still knows when the lungs, or everything else, are taken away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from cxrjax import bootstrap, log, lungs, metrics
from cxrjax.data import framing
from cxrjax.data.dataset import Dataset
from cxrjax.data.store import Store

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W] to probabilities [N, K]
_BORDER = 1 / 8  # of the side
_CHANCE = 0.5  # of the AUROC
_ABOVE_CHANCE = 0.55  # lower end of the AUROC of a network that has something to lose
_KEPT = ("accuracy", "balanced_accuracy", "auroc")
_UNKNOWN: dict[str, Any] = {"value": None, "low": None, "high": None}


def lungs_of(store: Store, positions: np.ndarray) -> tuple[np.ndarray, str]:
    """Lung masks bool [n, S, S] of some of the store's images, and where they are from."""
    masks, known = lungs.of_store(store, positions, lungs.masks)
    if known.all():
        return masks, "the data set"
    return masks, "segmentation" if not known.any() else "the data set and segmentation"


def lungs_only(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """All outside the lungs black."""
    return np.where(framing.grown(lung), image, np.uint8(0))


def without_lungs(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """The lungs and a narrow margin black: edges tell of opacities."""
    return np.where(framing.grown(lung), np.uint8(0), image)


def flat_lungs(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """The lungs and a narrow margin of one grey, their mean: only their outline is left."""
    level = image[lung].mean() if lung.any() else 0
    return np.where(framing.grown(lung), np.uint8(level), image)


def borders_only(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """The inner three quarters of each side black."""
    return np.where(_inner(len(image)), np.uint8(0), image)


def centre_only(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """The outer eighth on every side black."""
    return np.where(_inner(len(image)), image, np.uint8(0))


def blurred(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """No more detail than 8x8 pixels hold."""
    small = Image.fromarray(image).resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small.resize(image.shape[::-1], Image.Resampling.BICUBIC))


def markers_inpainted(image: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Letters and tags outside the lungs replaced by their surroundings.

    What stands out from the median over a fifth of the side by more than 40 grey levels counts as
    such, with a margin. That takes some bone too, which is as it should be: it must not matter.
    """
    side = len(image)
    small = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX))
    around = Image.fromarray(ndimage.median_filter(small, 13, mode="nearest"))
    around = np.asarray(around.resize((side, side), Image.Resampling.BILINEAR))
    strange = np.abs(image.astype(np.int16) - around) > 40
    strange = ndimage.uniform_filter(strange.astype(np.float32), max(3, side // 24)) > 0.1
    return np.where(strange & ~framing.grown(lung), around, image)


VIEWS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "lungs_only": lungs_only,
    "without_lungs": without_lungs,
    "flat_lungs": flat_lungs,
    "borders_only": borders_only,
    "centre_only": centre_only,
    "blurred_8x8": blurred,
    "markers_inpainted": markers_inpainted,
}
# Views that take lungs away or spare them: of a film on which none are found they would show the
# film as it is, or nothing, and what the network knows of it would count as known without lungs.
_OF_LUNGS = frozenset(("lungs_only", "without_lungs", "flat_lungs", "markers_inpainted"))


def deprived(frame: str) -> str:
    """The view that takes from a network what it should go by, by `data.frame`.

    Where all but the lungs is black already, black lungs would leave a black film, and a score of
    0 whatever the network goes by; their outline is what is left there to go by wrongly.
    """
    return "flat_lungs" if frame == framing.LUNGS else "without_lungs"


def of_split(
    predict: Predict,
    data: Dataset,
    positions: np.ndarray,
    *,
    views: tuple[str, ...] = tuple(VIEWS),
    without: str = "without_lungs",
    intact: np.ndarray | None = None,
    resamples: int = 2000,
) -> dict[str, Any]:
    """`measure` of some of a data set's images; `lungs` tells where the masks are from.

    Args:
      positions: int [n] into the store.
      intact: probabilities [n, K] of the images as they are, where they are known.
    """
    masks, origin = lungs_of(data.store, positions)
    found = measure(
        predict,
        np.asarray(data.store.images[positions]),
        masks,
        data.store.labels[positions],
        data.classes,
        data.groups[positions],
        views=views,
        without=without,
        intact=intact,
        resamples=resamples,
    )
    return found | {"lungs": origin}


def example(data: Dataset, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One image with its lungs, for a figure: uint8 [S, S] and bool [S, S]."""
    masks, _ = lungs_of(data.store, positions[:1])
    return np.asarray(data.store.images[positions[0]]), masks[0]


def measure(
    predict: Predict,
    images: np.ndarray,
    masks: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    groups: np.ndarray,
    *,
    views: tuple[str, ...] = tuple(VIEWS),
    without: str = "without_lungs",
    intact: np.ndarray | None = None,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Accuracy and AUROC of each view of the images, and the shortcut score.

    Args:
      predict: the classifier.
      images: uint8 [N, H, W].
      masks: bool [N, H, W], the lungs; films with a blank mask count for the views alone that do
        not depend on it.
      labels: int [N]; groups: int [N], drawn whole by the bootstrap.
      views: names of `VIEWS`.
      without: that one of them which the score rests on, see `deprived`.
      intact: probabilities [N, K] of the images as they are, where they are known.
    Returns:
      `views`: by name accuracy, balanced_accuracy and auroc, each {value, low, high, n}, None where
        no film is left; `score`;
      `without`; `scores`: the same by view for all that it can rest on, `without` and, where it is
      among the views, flat_lungs, which networks of any `data.frame` can be compared by.
    """
    probabilities = {"intact": predict(images) if intact is None else intact}
    for name in log.progress(views, total=len(views), what="shortcuts", unit="views"):
        changed = [VIEWS[name](i, m) for i, m in zip(images, masks, strict=True)]
        probabilities[name] = predict(np.stack(changed))
    seen = masks.any((1, 2))

    def evaluated(name: str) -> dict[str, Any]:
        counted = seen | (name not in _OF_LUNGS)
        if not counted.any():
            return dict.fromkeys(_KEPT, _UNKNOWN | {"n": 0})
        of = labels[counted], probabilities[name][counted], classes, groups[counted]
        found = metrics.evaluate(*of, resamples=resamples)
        return {key: found[key] for key in _KEPT}

    resting_on = {
        name: shortcut_score(
            labels[seen], probabilities["intact"][seen], p[seen], groups[seen], resamples
        )
        for name, p in probabilities.items()
        if name in (without, "flat_lungs")
    }
    return {
        "views": {name: evaluated(name) for name in probabilities},
        "score": resting_on[without],
        "without": without,
        "scores": resting_on,
    }


def shortcut_score(
    labels: np.ndarray,
    intact: np.ndarray,
    without: np.ndarray,
    groups: np.ndarray,
    resamples: int = 2000,
) -> dict[str, Any]:
    """What remains above chance without the lungs, over what there was: 0 nothing, 1 everything.

    In terms of the AUROC, (A_without - 1/2) / (A_intact - 1/2): images with black lungs are unlike
    any that were trained on and may all be given one class, which ruins accuracy and leaves the
    order of the probabilities. The interval is a paired bootstrap over groups. The value is not
    cut off at 0, lest chance always count against the network.

    Returns:
      {value, low, high, n}; None for the first three when the network itself is not above chance,
      the images are of one class, or there are none.
    """
    unknown = _UNKNOWN | {"n": len(labels)}
    if not len(labels):
        return unknown
    found = [
        [metrics.auroc(labels, p, weights) for p in (intact, without)]
        for weights in bootstrap.weights(groups, resamples, seed=0)
    ]
    before, after = np.concatenate(found, axis=1)
    once = np.ones((1, len(labels)))
    value = [float(metrics.auroc(labels, p, once)[0]) for p in (intact, without)]
    if np.isnan(before).all():  # one class alone, as some sources hold, has no AUROC
        return unknown
    if not np.nanpercentile(before, 2.5) > _ABOVE_CHANCE:
        return unknown
    low, high = np.nanpercentile((after - _CHANCE) / (before - _CHANCE), [2.5, 97.5])
    score = (value[1] - _CHANCE) / (value[0] - _CHANCE)
    return {"value": score, "low": float(low), "high": float(high), "n": len(labels)}


def _inner(side: int) -> np.ndarray:
    inside = np.zeros((side, side), bool)
    edge = round(_BORDER * side)
    inside[edge : side - edge, edge : side - edge] = True
    return inside
