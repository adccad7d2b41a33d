"""Reads the weight files of Keras 2 (.h5, as keras.applications releases them); alone uses h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.errors import UserError

# Keras' name of a tensor -> ours. The first four are batch norm's.
TENSORS = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "kernel": "kernel",
    "bias": "bias",
}
MAX_BYTES = 1 << 30  # of one tensor
_REMEDY = "get the file again, or set --config.model.weights=none"


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a Keras weight file as {"layer/tensor": float32 array}, under our names.

    Raises:
      UserError: when it is no such file (a saved web page, say), is cut short, or holds a tensor
        that no layer of ours has.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            # A whole saved model keeps its weights in a group of that name.
            root: Any = file.get("model_weights", file)
            if "layer_names" not in root.attrs:
                raise UserError(
                    f"{path} is an HDF5 file but not one of Keras weights (it has no layer_names); "
                    f"{_REMEDY}."
                )
            return _tensors(root, path)
    except UserError:
        raise
    except Exception as error:  # damaged files make h5py raise almost anything
        with open(path, "rb") as head:
            text = head.read(512).lstrip().lower()
        web = text.startswith((b"<!doctype", b"<html", b"<?xml"))
        reason = "is a web page, not a weight file" if web else "is damaged, cut short or not HDF5"
        raise UserError(f"{path} {reason}; {_REMEDY}.") from error


def _tensors(root: Any, path: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for layer in map(_text, root.attrs["layer_names"]):
        for weight in map(_text, root[layer].attrs["weight_names"]):
            # "conv1_bn/gamma:0" in old files, "conv1_bn/gamma" in new ones.
            kind = weight.rsplit("/", 1)[-1].split(":")[0]
            if kind not in TENSORS:
                raise UserError(
                    f"{path} holds a tensor {weight!r} of a kind unknown here; "
                    f"only {', '.join(TENSORS)} can be read."
                )
            data = root[layer][weight]
            # The shape is the file's claim: memory is asked for only within reason.
            if data.dtype.kind != "f" or data.nbytes > MAX_BYTES:
                raise UserError(
                    f"{path} holds {weight!r} as {data.dtype} {data.shape}, which is no weight; "
                    f"{_REMEDY}."
                )
            with np.errstate(over="ignore"):  # the infinity it becomes is reported by the caller
                value = np.asarray(data[()], np.float32)
            # DenseNet's release still says "conv1/conv"; Keras has since renamed it "conv1_conv".
            tensors[f"{layer.replace('/', '_')}/{TENSORS[kind]}"] = value
    return tensors


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
