"""Which layer each numbered tensor of a Keras 3 file belongs to, told from config.json if there.

Keras 3 keeps the tensors of a layer at layers/KEY/vars/NUMBER, where KEY is the layer's class in
snake case, numbered in the order of `model.layers`; a model that is a layer has its own "layers".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

# Classes whose first tensor is their kernel; a second one is the bias.
_WITH_KERNEL = ("conv2d", "depthwise_conv2d", "dense")


class Weight(NamedTuple):
    """A tensor of a Keras file."""

    model: str  # the model inside the file's that it belongs to; "": the file's own
    layer: str
    tensor: str  # Keras' name, e.g. "gamma"
    path: str  # where it lies in the file


def weights(tree: Mapping[str, Any], config: Any, model: str = "") -> list[Weight]:
    """Every tensor of a model with the names Keras gives its layer and itself.

    Args:
      tree: {KEY: {"name": of the layer or None, "vars": [path, ...], "others": [path, ...],
        "layers": the same again for a model, or None}}.
      config: Keras' {"config": {"layers": [...]}} of the model; None: the names in `tree` count.
      model: name of the model, "" for the outermost.
    Raises:
      ValueError: when tree and config do not fit together, or neither names a layer.
    """
    described = None if config is None else _described(config["config"]["layers"])
    found = []
    for key, node in tree.items():
        entry = None if described is None else described[key]
        name = node["name"] if entry is None else entry["config"]["name"]
        if not isinstance(name, str):
            raise ValueError(f"layer {key} has no name")
        if node["layers"] is not None:
            found += weights(node["layers"], entry, f"{model}/{name}".lstrip("/"))
        tensors = _tensor_names(key, len(node["vars"]), entry)
        found += [
            Weight(model, name.replace("/", "_"), tensor, path)
            for tensor, path in zip(tensors, node["vars"], strict=True)
        ]
        found += [Weight(model, name.replace("/", "_"), path, path) for path in node["others"]]
    return found


def _described(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The layers of a config by their KEY; operations, which are listed too, hold no tensors."""
    counts: dict[str, int] = {}
    described = {}
    for entry in entries:
        key = _snake_case(entry["class_name"])
        counts[key] = counts.get(key, -1) + 1
        described[f"{key}_{counts[key]}" if counts[key] else key] = entry
    return described


def _tensor_names(key: str, count: int, entry: dict[str, Any] | None) -> list[str]:
    """Keras' names of the `count` tensors of the layer at `key`; numbers where it is unknown."""
    kind = re.sub(r"_\d+$", "", key)
    names = ["kernel", "bias"][:count] if kind in _WITH_KERNEL else []
    if kind == "batch_normalization":
        # Without a config three tensors could also be those of one without beta, which none of
        # the networks here has.
        options = {"scale": count > 3, "center": count > 2} if entry is None else entry["config"]
        names = ["gamma"] * options["scale"] + ["beta"] * options["center"]
        names += ["moving_mean", "moving_variance"]
    return names if len(names) == count else [str(number) for number in range(count)]


def _snake_case(name: str) -> str:
    """As Keras does it: DepthwiseConv2D becomes depthwise_conv2d."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
