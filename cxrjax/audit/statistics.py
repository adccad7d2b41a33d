"""Numbers of each film and its file from which a class might be told without looking at the lungs.

Two kinds. What no disease can change (how the file is stored, its size, the film's corners and rim)
must not tell the class: where it does, the classes come from different places. What disease does
change (exposure, 8x8 thumbnails) may tell the class on sound data too, so it is reported only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cxrjax.data import images as pictures
from cxrjax.data.duplicates import THUMBNAIL
from cxrjax.data.images import BrokenImage, Header
from cxrjax.data.sources import FileSource, Source
from cxrjax.data.store import Store
from cxrjax.threads import in_order

_CELLS = 16  # a side, of the grid on which borders are described
_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)


def films(store: Store) -> np.ndarray:
    """uint8 [N, 64, 64]: the store's images at the size at which all are compared."""
    if store.images.shape[1] == THUMBNAIL:
        return np.asarray(store.images)
    resized = in_order(
        lambda i: pictures.resize(np.asarray(store.images[i]), THUMBNAIL),
        len(store.labels),
    )
    return np.array(list(resized)).reshape(-1, THUMBNAIL, THUMBNAIL)


def borders(films: np.ndarray) -> np.ndarray:
    """Mean and deviation of the cells along the rim and in the corners: float32 [N, F].

    The rim is a sixteenth of the side wide; the upper corners reach down to a third, an eighth
    wide, where films carry letters and no lung lies; the lower ones are squares of an eighth.

    Args:
      films: uint8 [N, 64, 64].
    """
    n, side = len(films), THUMBNAIL // _CELLS
    cells = films.reshape(n, _CELLS, side, _CELLS, side).astype(np.float32)
    outer = _rim()
    return np.concatenate([cells.mean((2, 4))[:, outer], cells.std((2, 4))[:, outer]], axis=1)


def _rim() -> np.ndarray:
    """bool [16, 16]."""
    outer = np.ones((_CELLS, _CELLS), bool)
    outer[1:-1, 1:-1] = False
    for column in (slice(0, 2), slice(-2, None)):
        outer[:5, column] = outer[-2:, column] = True
    return outer


def thumbnails(films: np.ndarray) -> np.ndarray:
    """Means over an 8x8 grid: float32 [N, 64] of uint8 [N, 64, 64]."""
    side = THUMBNAIL // 8
    cells = films.reshape(len(films), 8, side, 8, side)
    return cells.mean((2, 4), dtype=np.float32).reshape(len(films), 64)


def exposure(histograms: np.ndarray) -> np.ndarray:
    """Mean, deviation, percentiles, share of black and white, grey levels in use: float32 [N, 12].

    Args:
      histograms: int [N, 256], pixels of each grey level.
    """
    total = np.maximum(histograms.sum(1, keepdims=True), 1)
    share = histograms / total
    levels = np.arange(256)
    mean = share @ levels
    deviation = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0))
    below = histograms.cumsum(axis=1)
    percentiles = [(below * 100 < p * total).sum(axis=1) for p in _PERCENTILES]
    used = (histograms > 0).sum(axis=1)
    columns = [mean, deviation, *percentiles, share[:, 0], share[:, 255], used]
    return np.stack(columns, axis=1).astype(np.float32)


def headers(source: Source, store: Store) -> list[Header | None]:
    """How the files of the store's images are stored; None where unknown, as of drawn phantoms."""
    if not isinstance(source, FileSource):
        return [None] * len(store.names)
    position = {record.name: i for i, record in enumerate(source.records)}

    def read(k: int) -> Header | None:
        try:
            return source.header(position[store.names[k]])
        except (BrokenImage, KeyError):  # it has changed since it was decoded
            return None

    n = len(store.names)
    return list(in_order(read, n, what="reading file headers", unit="files"))


def resolution(headers: Sequence[Header | None]) -> np.ndarray:
    """Width, height and their ratio: float32 [N, 3], 0 where unknown."""
    rows = [(h.width, h.height, h.width / h.height) if h else (0, 0, 0) for h in headers]
    return np.array(rows, np.float32).reshape(-1, 3)


def encoding(headers: Sequence[Header | None]) -> np.ndarray:
    """Format, mode and JPEG coarseness: float32 [N, F].

    Not the file's size: it grows with what is on the film.
    """
    kinds = [(h.kind, h.mode) if h else ("", "") for h in headers]
    which = sorted(set(kinds))
    one_hot = np.array([[kind == other for other in which] for kind in kinds], np.float32)
    coarse = np.array([h.quantisation if h else 0.0 for h in headers], np.float32)
    return np.concatenate([one_hot.reshape(len(headers), -1), coarse[:, None]], axis=1)
