"""Pretrained weights: find or download the file, read it, and assign it strictly, name by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import log
from cxrjax.errors import UserError, writing
from cxrjax.models import keras_h5
from cxrjax.models.registry import ModelSpec

Tensors = dict[str, np.ndarray]  # "layer/tensor" -> float32
Tree = dict[str, Any]

STATISTICS = ("mean", "var")  # tensor names that are batch statistics; all others are parameters
TOP_LAYERS = ("fc1000", "predictions")  # Keras' names of the ImageNet classifier
_METADATA = "__metadata__"
_CHUNK = 1 << 20
_TIMEOUT_S = 30


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
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(
                f"config field model.weights: {weights} does not exist; give none, imagenet or the "
                "path of a Keras .h5 or cxrjax .npz file."
            )
        return path
    if spec.weights_file is None:
        raise UserError(
            f"config field model.weights: {spec.name} has no imagenet weights; use none."
        )
    folder = os.environ.get("CXRJAX_WEIGHTS", "")
    if folder and (found := _in_folder(Path(folder).expanduser(), spec.weights_file)):
        return found
    cached = cache / spec.weights_file
    return cached if cached.is_file() else _download(spec, cached)


def load_tensors(path: Path | str) -> tuple[Tensors, dict[str, Any]]:
    """Reads a Keras .h5 or cxrjax .npz file.

    Returns:
      ({"layer/tensor": float32 array}, metadata): path, sha256 and size of the file, and what the
      .npz file itself says of its origin under "source".
    Raises:
      UserError: when the file is missing, damaged or of another kind.
    """
    path = Path(path)
    try:
        digest = _digest(path, "sha256")
    except OSError as error:
        raise UserError(f"weight file {path} cannot be read: {error.strerror}.") from error
    metadata: dict[str, Any] = {"path": str(path), "sha256": digest, "bytes": path.stat().st_size}
    if path.suffix.lower() == ".npz":
        tensors, metadata["source"] = _read_npz(path)
    elif path.suffix.lower() in (".h5", ".hdf5"):
        tensors, metadata["source"] = keras_h5.read(path), {"file": path.name, "sha256": digest}
    else:
        raise UserError(f"weight file {path} has an unknown ending; it must be .h5 or .npz.")
    for name, value in tensors.items():
        if not np.isfinite(value).all():
            raise UserError(f"weight file {path}: {name} holds NaN or infinity; get it again.")
    return tensors, metadata


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
    """Writes tensors and JSON metadata as one uncompressed .npz, in one step.

    Raises:
      UserError: when the folder cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Any] = {_METADATA: np.array(json.dumps(dict(metadata))), **tensors}
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


def _read_npz(path: Path) -> tuple[Tensors, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > keras_h5.MAX_BYTES for entry in archive.infolist()):
                raise UserError(f"{path} claims a tensor too large to be one; convert it anew.")
        with np.load(path, allow_pickle=False) as archive:
            if _METADATA not in archive:
                raise UserError(
                    f"{path} was not written by cxrjax.convert; convert its source anew."
                )
            tensors = {name: archive[name] for name in archive.files if name != _METADATA}
            metadata = json.loads(str(archive[_METADATA]))
    except UserError:
        raise
    except Exception as error:  # damaged archives make zipfile and numpy raise almost anything
        raise UserError(
            f"{path} is damaged, cut short or not a weight file; convert it anew."
        ) from error
    for name, value in tensors.items():
        if value.dtype != np.float32 or "/" not in name:
            raise UserError(f"{path}: {name} is not a float32 tensor of a layer; convert it anew.")
    return tensors, metadata


def _in_folder(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, or the first one of the same stem, e.g. NAME.float16.h5."""
    if not folder.is_dir():
        raise UserError(
            f"$CXRJAX_WEIGHTS is {folder}, which is not a folder; set it to one or unset it."
        )
    stem, _, suffix = name.rpartition(".")
    others = sorted(folder.glob(f"{stem}.*{suffix}")) + sorted(folder.glob(f"{stem}*.npz"))
    return next((path for path in (folder / name, *others) if path.is_file()), None)


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _download(spec: ModelSpec, target: Path) -> Path:
    """Fetches the Keras release to `target`, which appears only once its MD5 is right."""
    assert spec.weights_url
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with writing(target.parent, "set CXRJAX_CACHE to another folder"):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(spec.weights_url, part, spec)
            if _digest(part, "md5") != spec.weights_md5:
                raise UserError(
                    f"{spec.weights_url} did not arrive as Keras publishes it (its MD5 is not "
                    f"{spec.weights_md5}); try again, or fetch it another way and set "
                    "CXRJAX_WEIGHTS to its folder."
                )
            os.replace(part, target)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
    return target


def _fetch(url: str, part: Path, spec: ModelSpec) -> None:
    log.say(f"downloading {url}")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            size = int(response.headers.get("Content-Length") or 0) or None
            bar = log.progress_bar(total=size, what="weights", unit="B")
            with open(part, "wb") as file, bar:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"cannot download the weights of {spec.name} ({reason}): fetch {url} elsewhere and set "
            "CXRJAX_WEIGHTS to its folder, or run configs/quickstart.py, which needs none."
        ) from error
