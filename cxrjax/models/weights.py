"""Pretrained weights: find or download the file, read it, and assign it strictly, name by name."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import log
from cxrjax.errors import MALFORMED, UserError, writing
from cxrjax.models import download, file_kind, keras_h5, registry, torch_file, torch_names
from cxrjax.models.registry import ModelSpec

Tensors = dict[str, np.ndarray]  # "layer/tensor" -> float32
Tree = dict[str, Any]

STATISTICS = ("mean", "var")  # tensor names that are batch statistics; all others are parameters
TOP_LAYERS = ("fc1000", "predictions")  # Keras' names of the ImageNet classifier
_METADATA, _DIGESTS = "__metadata__", "__sha256__"  # members of a .npz, JSON


def find(spec: ModelSpec, weights: str, cache: Path) -> Path | None:
    """The file that config field model.weights means, downloaded if need be.

    Args:
      weights: "none"; "imagenet" (looked for in the folder $CXRJAX_WEIGHTS, then in `cache`, then
        downloaded from Keras into it); or a path.
      cache: folder of downloaded weights.
    Returns:
      the path; None for "none".
    Raises:
      UserError: when there is no such file, no release for this network, or no network.
    """
    if weights == "none":
        return None
    if weights != "imagenet":
        path = Path(os.path.expanduser(weights))
        if not path.is_file():
            raise UserError(
                f"config field model.weights: {weights} does not exist; give none, imagenet or the "
                f"path of a weight file ({', '.join(file_kind.SUFFIXES)}); python -m "
                f"cxrjax.convert --list says where there are some, {download.NEEDS_NONE}."
            )
        return path
    if spec.weights_url is None or spec.weights_file is None:
        raise UserError(
            f"config field model.weights: {spec.name} has no imagenet weights; use none."
        )
    folder = os.environ.get("CXRJAX_WEIGHTS", "")
    if folder and (found := _in_folder(Path(os.path.expanduser(folder)), spec.weights_file)):
        return found
    cached = cache / spec.weights_file
    if cached.is_file():
        return cached
    return download.fetch(spec.weights_url, cached, published=spec.weights_md5, check=keras_h5.read)


def load_tensors(path: Path | str, model: str | None = None) -> tuple[Tensors, dict[str, Any]]:
    """Reads a file of Keras (.h5, .weights.h5, .keras), PyTorch (.pth, .pt) or cxrjax (.npz).

    Args:
      model: the network the weights are wanted for, where a file that says it is of another one
        shall be refused.
    Returns:
      ({"layer/tensor": float32 array}, metadata): path, sha256 and size of the file, under "source"
      what is known of its origin, and under "contract" the network and input the weights were
      trained for (see `torch_names.converted`), or None where the registry's entry says it.
    Raises:
      UserError: when the file is missing, damaged, of another kind or of another network.
    """
    path = Path(path)
    try:
        digest = download.digest(path, "sha256")
        kind = file_kind.of(path)
    except OSError as error:
        raise UserError(f"weight file {path} cannot be read: {error.strerror}.") from error
    metadata: dict[str, Any] = {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}
    source, contract = {"file": path.name, "sha256": digest}, None
    if kind == "npz":
        tensors, source = _read_npz(path)
        contract = _contract(path, source)
    elif kind == "torch":
        state = torch_file.read(path)
        try:
            tensors, contract = torch_names.converted(state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    else:
        tensors = keras_h5.read(path)
    if contract and model not in (None, contract["model"]):
        raise UserError(
            f"{path} holds weights of {contract['model']}, not of {model}; name that network or "
            "give another file."
        )
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f"weight file {path}: {name} holds NaN or infinity; get it again.")
    return tensors, {**metadata, "source": source, "contract": contract}


def recognised(tensors: Mapping[str, Any]) -> str | None:
    """The registered network that has all the layers of `tensors`; None when not exactly one has.

    The layers of an ImageNet top do not count.
    """
    layers = {name.split("/", 1)[0] for name in tensors} - set(TOP_LAYERS)
    fitting = [
        name for name in registry.names() if layers <= set(registry.spec(name).load().layers)
    ]
    return fitting[0] if layers and len(fitting) == 1 else None


def assign(params: Tree, batch_stats: Tree, tensors: Tensors) -> tuple[Tree, Tree]:
    """New (params, batch_stats) whose backbone is `tensors`; the head stays as it is.

    Only the layers of an ImageNet top (`TOP_LAYERS`) are left out, by name.

    Args:
      params, batch_stats: as `classifier.split` gives them; left unchanged.
      tensors: {"layer/tensor": float32 array}.
    Raises:
      UserError: for a tensor that is missing, that the network does not have, or whose shape
        differs; it names the first.
    """
    left = {k: v for k, v in tensors.items() if k.split("/", 1)[0] not in TOP_LAYERS}
    trees = []
    for tree in (params, batch_stats):
        backbone = {
            layer: {tensor: _take(left, f"{layer}/{tensor}", old) for tensor, old in group.items()}
            for layer, group in tree.get("backbone", {}).items()
        }
        trees.append({**tree, "backbone": backbone} if backbone else dict(tree))
    if left:
        raise UserError(
            f"the weights hold {next(iter(left))} (and {len(left) - 1} more tensors) that this "
            "network does not have; choose the file of this network."
        )
    return trees[0], trees[1]


def backbone_tensors(params: Tree, batch_stats: Tree) -> Tensors:
    """The inverse of `assign`: the backbone as {"layer/tensor": float32 array}."""
    return {
        f"{layer}/{tensor}": np.asarray(value, np.float32)
        for tree in (params, batch_stats)
        for layer, group in tree.get("backbone", {}).items()
        for tensor, value in group.items()
    }


def save_npz(
    path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    """Writes tensors, the SHA-256 of each, and JSON metadata as one uncompressed .npz, in one step.

    Raises:
      UserError: when the folder cannot be written.
    """
    path = Path(path)
    about = {_METADATA: dict(metadata), _DIGESTS: {k: _sha256(v) for k, v in tensors.items()}}
    arrays: dict[str, Any] = {k: np.array(json.dumps(v)) for k, v in about.items()} | dict(tensors)
    with writing(path, "choose another output file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with log.replacing(path, "wb") as file:
            np.savez(file, **arrays)


def _take(left: Tensors, name: str, old: Any) -> np.ndarray:
    if name not in left:
        raise UserError(
            f"the weights lack {name}, which this network needs; choose the file of this network."
        )
    value = left.pop(name)
    if value.shape != old.shape:
        raise UserError(
            f"the weights hold {name} with shape {value.shape} where this network has "
            f"{tuple(old.shape)}; choose the file of this network."
        )
    return value


def _read_npz(path: Path) -> tuple[Tensors, dict[str, Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > file_kind.MAX_BYTES:
                raise UserError(f"{path} claims more data than weights have; convert it anew.")
        with np.load(path, allow_pickle=False) as archive:
            if _METADATA not in archive:
                raise UserError(
                    f"{path} was not written by cxrjax.convert; convert its source anew."
                )
            about = {
                name: dict(json.loads(str(archive[name])))
                for name in (_METADATA, _DIGESTS)
                if name in archive
            }
            tensors = {name: archive[name] for name in archive.files if name not in about}
    except UserError:
        raise
    except Exception as error:  # damaged archives make zipfile and numpy raise almost anything
        raise file_kind.damaged(path, "a cxrjax weight file") from error
    for name, value in tensors.items():
        if value.dtype != np.float32 or "/" not in name:
            raise UserError(f"{path}: {name} is not a float32 tensor of a layer; convert it anew.")
        if _DIGESTS in about and about[_DIGESTS].get(name) != _sha256(value):
            raise UserError(f"{path}: {name} is not as it was written (SHA-256); convert it anew.")
    return tensors, about[_METADATA]


def _contract(path: Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The contract a .npz file states, or None; it is the file's claim and checked as such."""
    contract = source.get("contract")
    if contract is None:
        return None
    try:
        texts = [contract[key] for key in ("model", "convention", "preprocessing")]
        fits = (
            all(isinstance(text, str) for text in texts)
            and contract["convention"] in ("keras", "torch")
            and type(contract["channels"]) is int
            and contract["channels"] in (1, 3)
            and type(contract["input_size"]) is int
            and contract["input_size"] > 0
            and len(contract["mean"]) == len(contract["std"]) == contract["channels"]
            and all(map(math.isfinite, (*contract["mean"], *contract["std"])))
            and min(contract["std"]) > 0
        )
    except MALFORMED:
        fits = False
    if not fits:
        raise UserError(f"{path} states an input contract that is none; convert its source anew.")
    return contract


def _sha256(value: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()


def _in_folder(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, or the first one of the same stem, e.g. NAME.float16.h5."""
    if not folder.is_dir():
        raise UserError(
            f"$CXRJAX_WEIGHTS is {folder}, which is not a folder; set it to one, or unset it to "
            f"have the weights downloaded; {download.NEEDS_NONE}."
        )
    stem, _, suffix = name.rpartition(".")
    others = sorted(folder.glob(f"{stem}.*{suffix}")) + sorted(folder.glob(f"{stem}*.npz"))
    return next((path for path in (folder / name, *others) if path.is_file()), None)
