"""Arrays in the cache: computed once, read back afterwards."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cxrjax import log
from cxrjax.errors import writing

REMEDY = "choose another --config.data.cache or CXRJAX_CACHE"


def kept(
    path: Path, keys: Sequence[str], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays in a file of the cache; computed and written when it is absent or damaged.

    Raises:
      UserError: when the file cannot be written.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            return {key: found[key] for key in keys}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent or damaged: computed again
    arrays = compute()
    with writing(path, REMEDY), log.replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return arrays
