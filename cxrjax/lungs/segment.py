"""Films to lung masks with the trained network, and its weight file."""

from __future__ import annotations

import functools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy import ndimage

from cxrjax import log
from cxrjax.errors import MALFORMED, UserError, reason, writing
from cxrjax.lungs import network
from cxrjax.threads import in_order

WEIGHTS = Path(__file__).with_name("weights.npz")
_BATCH = 64
_SMALLEST = 0.02  # of the film: smaller pieces are no lung
_FLAT = 2.0  # grey levels; films that vary less show nothing
_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_run = jax.jit(network.apply)


def masks(images: np.ndarray, params: network.Params | None = None) -> np.ndarray:
    """See `cxrjax.lungs.masks`; other weights than those of the package can be given."""
    n, height, width = images.shape
    params = params or _own_weights()
    found = np.zeros((n, height, width), bool)

    def inside(k: int) -> np.ndarray:
        part = images[k * _BATCH : (k + 1) * _BATCH]
        films = np.zeros((_BATCH, network.SIDE, network.SIDE), np.float32)
        films[: len(part)] = small(part)
        logits = np.asarray(_run(params, jnp.asarray(films)))[: len(part)]
        shown = films[: len(part)].std(axis=(1, 2)) >= _FLAT
        masks = np.zeros((len(part), height, width), bool)
        for i in np.flatnonzero(shown):
            masks[i] = _enlarged(_largest_two(logits[i]), height, width)
        return masks

    # In threads: one batch goes through the network while another's pieces are counted.
    for k, part in enumerate(in_order(inside, -(-n // _BATCH))):
        found[k * _BATCH : (k + 1) * _BATCH] = part
    return found


def small(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W] to float32 [N, SIDE, SIDE], bilinear with antialiasing."""
    side = (network.SIDE, network.SIDE)
    resized = [Image.fromarray(i).resize(side, Image.Resampling.BILINEAR) for i in images]
    return np.array(resized, np.float32).reshape(-1, *side)


def _largest_two(logits: np.ndarray) -> np.ndarray:
    """Logits with everything outside the two largest pieces negative, and their holes filled."""
    labelled: Any = ndimage.label(logits > 0)
    pieces, count = labelled
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    kept = 1 + np.argsort(-sizes, kind="stable")[:2]
    kept = kept[sizes[kept - 1] >= _SMALLEST * logits.size]
    inside = np.isin(pieces, kept)
    filled = np.asarray(ndimage.binary_fill_holes(inside))
    return np.where(filled & ~inside, 1, np.where((pieces == 0) | inside, logits, -1))


def _enlarged(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    bounded = Image.fromarray(np.clip(logits, -4, 4).astype(np.float32))
    return np.asarray(bounded.resize((width, height), Image.Resampling.BILINEAR)) > 0


def save(path: Path, params: network.Params, **notes: str) -> None:
    """Writes weights as float16 with notes on where they are from, in one step.

    Raises:
      UserError: when it cannot be written.
    """
    arrays: dict[str, Any] = {name: np.asarray(p, np.float16) for name, p in params.items()}
    arrays |= {f"note/{name}": np.array(text) for name, text in notes.items()}
    with writing(path, "choose another --out"), log.replacing(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def load(path: Path) -> network.Params:
    """The weights in a file that `save` wrote.

    Raises:
      UserError: when it is missing, damaged or of another network.
    """
    wanted = network.init(0)
    try:
        with np.load(path, allow_pickle=False) as kept:
            params = {name: jnp.asarray(kept[name], jnp.float32) for name in wanted}
    except (*_UNREADABLE, *MALFORMED) as error:
        raise UserError(
            f"the lung segmentation's weights {path} cannot be read ({reason(error)}); make them "
            "anew by python -m cxrjax.lungs train."
        ) from error
    for name, array in params.items():
        if array.shape != wanted[name].shape:
            raise UserError(
                f"{path}: {name} has the shape {array.shape}, not that of this network."
            )
    return params


@functools.cache
def _own_weights() -> network.Params:
    return load(WEIGHTS)
