"""Reads the weight files of Keras, old .h5, .weights.h5 and .keras alike; alone uses h5py."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.errors import UserError
from cxrjax.models import file_kind, keras_names
from cxrjax.models.file_kind import MAX_BYTES, REMEDY
from cxrjax.models.keras_names import Weight

# Keras' name of a tensor -> ours. The first four are batch norm's.
TENSORS = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "kernel": "kernel",
    "depthwise_kernel": "kernel",  # Keras 2
    "bias": "bias",
}
_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"  # members of a .keras archive
_MAX_CONFIG = 1 << 26  # bytes
_MOST = 2_000  # layers
# Layers of InceptionV3 go by these automatic names, which Keras numbers through a whole process.
_AUTOMATIC = re.compile(r"(conv2d|batch_normalization)(?:_(\d+))?")


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a backbone in a Keras file as {"layer/tensor": float32 array}, our names.

    A .h5 of Keras 2 (as keras.applications releases them) or 3, a .weights.h5, or a .keras archive.
    Where the file's model contains one convolutional model as a layer, that one is the backbone and
    the layers around it are left out; otherwise every layer counts.

    Raises:
      UserError: when it is no such file (a saved web page, say), is cut short, or holds a tensor
        that no layer of ours has.
    """
    import h5py

    try:
        config, source = None, path
        if zipfile.is_zipfile(path):
            config, source = _unpacked(path)
        # A download is read under a lock of our own, which HDF5's would wait for.
        with h5py.File(source, "r", locking=False) as file:
            # A whole saved model keeps its weights in a group of that name.
            root: Any = _inside(file, "model_weights") if "model_weights" in file else file
            if "layer_names" in root.attrs:
                weights = _by_attributes(root)
            elif "layers" in root:
                weights = keras_names.weights(
                    _tree(root["layers"], "layers/", iter(range(_MOST))), config
                )
            else:
                raise UserError(
                    f"{path} is an HDF5 file but not one of Keras weights (it has no layer_names); "
                    f"{REMEDY}."
                )
            return _values(path, root, _numbered_from_0(_backbone(path, root, weights)))
    except UserError:
        raise
    except Exception as error:  # damaged files make h5py raise almost anything
        raise file_kind.damaged(path, "a Keras weight file") from error


def _unpacked(path: Path) -> tuple[Any, io.BytesIO]:
    """(config, HDF5 file) of a .keras archive; the members are read into memory, by name."""
    with zipfile.ZipFile(path) as archive:
        for name, limit in ((_CONFIG, _MAX_CONFIG), (_WEIGHTS, 2 * MAX_BYTES)):
            if archive.getinfo(name).file_size > limit:
                raise UserError(f"{path} claims more data in {name} than weights have; {REMEDY}.")
        return json.loads(archive.read(_CONFIG)), io.BytesIO(archive.read(_WEIGHTS))


def _by_attributes(root: Any) -> list[Weight]:
    """The weights of an old .h5, which lists the names of its layers and of their tensors."""
    weights = []
    for group in map(_text, root.attrs["layer_names"]):
        paths = [_text(name) for name in _inside(root, group).attrs["weight_names"]]
        # "conv1_bn/gamma:0" in old files, "conv1_bn/gamma" in new ones.
        named = [path.split(":")[0].rpartition("/") for path in paths]
        # A model that is a layer lists its layers' tensors under their names, not under its own.
        nested = any(layer and f"/{group}/" not in f"/{layer}/" for layer, _, _ in named)
        for path, (layer, _, tensor) in zip(paths, named, strict=True):
            # DenseNet's release still says "conv1/conv"; Keras has since renamed it "conv1_conv".
            name = (layer if nested else group).replace("/", "_")
            weights.append(Weight(group if nested else "", name, tensor, f"{group}/{path}"))
    return weights


def _backbone(path: Path, root: Any, weights: list[Weight]) -> list[Weight]:
    """Those of the convolutional model that is a layer of another; all where there is none.

    Raises:
      UserError: when there are several such models.
    """
    models = {
        weight.model: None
        for weight in weights
        if weight.model
        and TENSORS.get(weight.tensor) == "kernel"
        and _inside(root, weight.path).ndim == 4
    }
    if len(models) > 1:
        raise UserError(
            f"{path} holds several models as layers ({', '.join(models)}); save the backbone alone."
        )
    return [weight for weight in weights if not models or weight.model in models]


def _numbered_from_0(weights: list[Weight]) -> list[Weight]:
    """The same with automatic layer names as in a fresh process: conv2d, conv2d_1, ..."""
    first: dict[str, int] = {}
    for weight in weights:
        if match := _AUTOMATIC.fullmatch(weight.layer):
            number = int(match[2] or 0)
            first[match[1]] = min(number, first.get(match[1], number))

    def renamed(layer: str) -> str:
        if not (match := _AUTOMATIC.fullmatch(layer)):
            return layer
        number = int(match[2] or 0) - first[match[1]]
        return f"{match[1]}_{number}" if number else match[1]

    return [weight._replace(layer=renamed(weight.layer)) for weight in weights]


def _values(path: Path, root: Any, weights: list[Weight]) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    left = MAX_BYTES
    for weight in weights:
        shown = f"{weight.layer}/{weight.tensor}"
        if weight.tensor not in TENSORS:
            raise UserError(
                f"{path} holds a tensor {shown!r} of a kind unknown here; "
                f"only {', '.join(TENSORS)} can be read."
            )
        data = _inside(root, weight.path)
        # The shape is the file's claim: memory is asked for only within reason.
        left -= data.size * max(4, data.dtype.itemsize)
        if data.dtype.kind != "f" or left < 0:
            raise UserError(
                f"{path} holds {shown!r} as {data.dtype} {data.shape}, which is no weight; "
                f"{REMEDY}."
            )
        name = f"{weight.layer}/{TENSORS[weight.tensor]}"
        if name in tensors:
            raise UserError(f"{path} holds {shown!r} twice; save the backbone alone.")
        with np.errstate(over="ignore"):  # the infinity it becomes is reported by the caller
            tensors[name] = np.asarray(data[()], np.float32)
    return tensors


def _inside(group: Any, path: str) -> Any:
    """The group or dataset at `path`, which must lie in this very file and not point elsewhere."""
    import h5py

    for part in path.strip("/").split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"no hard link {part}")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError("data outside the file")
    return group


def _tree(group: Any, path: str, budget: Iterator[int]) -> Mapping[str, Any]:
    """A Keras 3 group "layers" as `keras_names.weights` takes it.

    Args:
      budget: as long as there may be layers; linked groups can make a small file an endless tree.
    """
    tree = {}
    for key in group:
        if next(budget, None) is None:
            raise ValueError(f"more than {_MOST} layers")
        child = _inside(group, key)
        here = f"{path}{key}/"
        values: Any = _inside(child, "vars") if "vars" in child else {}
        tree[key] = {
            "name": values.attrs.get("name") if values else None,
            "vars": [f"{here}vars/{number}" for number in sorted(values, key=int)],
            "others": [
                f"{here}{name}/{inner}"
                for name in sorted(set(child) - {"vars", "layers", "seed_generator"})
                for inner in _datasets(_inside(child, name))
            ],
            "layers": _tree(_inside(child, "layers"), here + "layers/", budget)
            if "layers" in child
            else None,
        }
    return tree


def _datasets(group: Any) -> list[str]:
    """Paths of all datasets below `group`."""
    import h5py

    found: list[str] = []

    def note(path: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(path)

    group.visititems(note)
    return found


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
