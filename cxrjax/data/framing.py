"""Films cut to the lungs before a network sees them: what lies beside them cannot be learnt.

Letters, tags, the collimator's edge and much of what tells hospitals apart lie outside the lungs.
The lungs are those that the package's own segmentation finds, even where a data set brings masks of
its own: of a film to be predicted there is none, and both must be cut alike.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from cxrjax.config import FRAMES
from cxrjax.data import images
from cxrjax.data.images import BrokenImage
from cxrjax.data.kept import kept
from cxrjax.data.sources import Source
from cxrjax.data.store import FORMAT
from cxrjax.lungs import segment
from cxrjax.lungs.network import SIDE
from cxrjax.threads import in_order

WHOLE, BOX, LUNGS = FRAMES
MARGIN = 0.03  # of the side, that is kept around lungs: their outline is not exact
_FORMAT = 1  # raise it when the same film is cut another way
_FINER = 2  # times the final side: at which a film is cut, so that cutting costs no sharpness


def of_films(films: Sequence[np.ndarray], how: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Films as a network takes them, cut as those of its training were.

    Args:
      films: uint8 [H, W] each, of any sizes.
      how: one of `FRAMES`.
      size: pixels.
    Returns:
      uint8 [N, size, size], and bool [N], whether lungs were found; without, a film stays whole.
    """
    if how == WHOLE:
        return _stacked([images.resize(film, size) for film in films], size), np.ones(
            len(films), bool
        )
    lungs = segment.masks(_stacked([images.resize(film, SIDE) for film in films], SIDE))
    finer = [images.resize(film, _FINER * size) for film in films]
    cut = [frame(film, lung, how, size)[0] for film, lung in zip(finer, lungs, strict=True)]
    return _stacked(cut, size), np.asarray(lungs.any(axis=(1, 2)))


def frame(
    film: np.ndarray, lung: np.ndarray, how: str, size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """One film cut to the square around its lungs, and where the lungs are in it.

    Args:
      film: uint8 [S, S].
      lung: bool [s, s] of any size, the lungs.
      how: "lungs_box", or "lungs_only": all but the lungs and a margin black as well.
    Returns:
      uint8 [size, size], and of the same shape the mask, 0 or 255. Where `lung` is empty the whole
      film, and None.
    """
    if not lung.any():
        return images.resize(film, size), None
    mask = _lungs_within(lung, size)
    cut = _cut(film, _square(lung), size)
    if how == LUNGS:
        cut = np.where(grown(mask > 0), cut, np.uint8(0))
    return cut, mask


def _lungs_within(lung: np.ndarray, size: int) -> np.ndarray:
    """Where the lungs are in a film cut to them: uint8 [size, size], 0 or 255."""
    share = _cut(np.where(lung, np.uint8(255), np.uint8(0)), _square(lung), size)
    # Narrow lungs do not vanish at a small size.
    return np.where(share > min(127, int(share.max()) - 1), np.uint8(255), np.uint8(0))


def grown(lung: np.ndarray) -> np.ndarray:
    """A mask bool [S, S] with a margin of 3 % of the side."""
    reach = max(1, round(MARGIN * len(lung)))
    return np.asarray(ndimage.maximum_filter(lung, 2 * reach + 1))


def _square(lung: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest square within the film around the lungs and a margin, in shares of the side.

    Left, top, right, bottom. A square, lest wide and narrow chests look alike.
    """
    n = len(lung)
    spans = [np.flatnonzero(lung.any(axis=axis)) for axis in (0, 1)]
    ends = [(along[0] / n - MARGIN, (along[-1] + 1) / n + MARGIN) for along in spans]
    side = min(1.0, max(high - low for low, high in ends))
    left, top = (min(max((low + high - side) / 2, 0.0), 1.0 - side) for low, high in ends)
    return left, top, left + side, top + side


def _cut(image: np.ndarray, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    left, top, right, bottom = (len(image) * share for share in box)
    resized = Image.fromarray(image).resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
    )
    return np.asarray(resized)


def _stacked(films: Sequence[np.ndarray], size: int) -> np.ndarray:
    return np.array(films, np.uint8).reshape(-1, size, size)


class Framed:
    """A source whose films are cut to their lungs, and which knows where these are."""

    def __init__(self, source: Source, how: str, cache: Path):
        """
        Args:
          source: of whole films.
          how: "lungs_box" or "lungs_only".
          cache: folder in which the lungs of all films are kept; segmenting takes a while.
        """
        self.classes, self.records = source.classes, source.records
        self._source, self._how, self._cache = source, how, cache
        self._lock, self._found = threading.Lock(), None

    def __str__(self) -> str:
        return str(self._source)

    def fingerprint(self) -> str:
        """Of the whole films, how they are cut and by which segmentation."""
        described = f"{self._source.fingerprint()}-{self._how}-{_FORMAT}-{segmentation()}"
        return hashlib.sha256(described.encode()).hexdigest()

    def read(self, i: int, size: int) -> np.ndarray:
        """Image `i`, cut: grey uint8 [size, size]. Raises BrokenImage."""
        film = self._source.read(i, _FINER * size)
        return frame(film, self._lungs[i], self._how, size)[0]

    def read_mask(self, i: int, size: int) -> np.ndarray | None:
        """Lungs in the cut image, uint8 [size, size] of 0 and 255; None where none were found."""
        lung = self._lungs[i]
        return _lungs_within(lung, size) if lung.any() else None

    @property
    def _lungs(self) -> np.ndarray:
        """bool [N, SIDE, SIDE] of all films; blank for those that cannot be read.

        Sought when first asked for, by one of the threads that read films.
        """
        with self._lock:
            if self._found is None:
                self._found = self._search()
            return self._found

    def _search(self) -> np.ndarray:

        def compute() -> dict[str, np.ndarray]:
            return {"lungs": np.packbits(segment.masks(self._small()), axis=-1)}

        described = f"{self._source.fingerprint()}-{FORMAT}-{segmentation()}"
        key = hashlib.sha256(described.encode()).hexdigest()[:20]
        bits = kept(self._cache / f"lungs-{key}.npz", ("lungs",), compute)["lungs"]
        return np.unpackbits(bits, axis=-1).astype(bool)

    def _small(self) -> np.ndarray:
        def read(i: int) -> np.ndarray:
            try:
                return self._source.read(i, SIDE)
            except BrokenImage:  # told when it is decoded
                return np.zeros((SIDE, SIDE), np.uint8)

        n = len(self.records)
        return _stacked(list(in_order(read, n, what="looking for lungs", unit="images")), SIDE)


@functools.cache
def segmentation() -> str:
    """Which weights segment: the start of the SHA-256 of their file."""
    return hashlib.sha256(segment.WEIGHTS.read_bytes()).hexdigest()[:16]
