"""PyTorch's tensor names and layouts to ours: MobileNetV2 and DenseNet121, with what they expect.

The names are those of torchvision (BSD-3-Clause), which torchxrayvision (Cohen et al. 2022,
arXiv 2111.00595) and the PyTorch versions of CheXNet (Rajpurkar et al. 2017, arXiv 1711.05225)
share. Ours are the layer names of keras.applications.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax.errors import UserError

# Wrappers around the network: DataParallel, and the attribute CheXNet's code keeps it in.
_PREFIXES = ("module.densenet121.", "densenet121.", "module.", "")
_BATCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_IMAGENET = {
    "channels": 3,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "input_size": 224,
    "preprocessing": "torch",
}
# torchxrayvision trains on pixels from -1024 to 1024.
_XRAY = {
    "channels": 1,
    "mean": [0.5],
    "std": [0.5 / 1024],
    "input_size": 224,
    "preprocessing": "torchxrayvision",
}


def _densenet121() -> dict[str, str]:
    layers = {"conv0": "conv1_conv", "norm0": "conv1_bn", "norm5": "bn"}
    parts = {"norm1": "0_bn", "conv1": "1_conv", "norm2": "1_bn", "conv2": "2_conv"}
    for stage, count in enumerate((6, 12, 24, 16), start=1):
        for block in range(1, count + 1):
            for theirs, ours in parts.items():
                layers[f"denseblock{stage}.denselayer{block}.{theirs}"] = (
                    f"conv{stage + 1}_block{block}_{ours}"
                )
        if stage < 4:
            layers[f"transition{stage}.norm"] = f"pool{stage + 1}_bn"
            layers[f"transition{stage}.conv"] = f"pool{stage + 1}_conv"
    return {f"features.{theirs}": ours for theirs, ours in layers.items()}


def _mobilenetv2() -> dict[str, str]:
    layers = {"0.0": "Conv1", "0.1": "bn_Conv1", "18.0": "Conv_1", "18.1": "Conv_1_bn"}
    parts = {
        "0.0": "expand",
        "0.1": "expand_BN",
        "1.0": "depthwise",
        "1.1": "depthwise_BN",
        "2": "project",
        "3": "project_BN",
    }
    # The first block expands nothing, so that its parts are counted from the depthwise one.
    first = {"0.0": "depthwise", "0.1": "depthwise_BN", "1": "project", "2": "project_BN"}
    layers |= {f"1.conv.{theirs}": f"expanded_conv_{ours}" for theirs, ours in first.items()}
    for block in range(1, 17):
        for theirs, ours in parts.items():
            layers[f"{block + 1}.conv.{theirs}"] = f"block_{block}_{ours}"
    return {f"features.{theirs}": ours for theirs, ours in layers.items()}


_LAYERS = {"densenet121": _densenet121(), "mobilenetv2": _mobilenetv2()}
# A tensor by which each network is known, and what is left out: the classifier, torchxrayvision's
# thresholds.
_KNOWN_BY = {
    "densenet121": "features.denseblock1.denselayer1.conv1.weight",
    "mobilenetv2": "features.1.conv.0.0.weight",
}
_LEFT_OUT = {
    "densenet121": (
        *("classifier.weight", "classifier.bias", "classifier.0.weight", "classifier.0.bias"),
        "op_threshs",
    ),
    "mobilenetv2": ("classifier.1.weight", "classifier.1.bias"),
}


def converted(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A state dict under our names and layouts.

    Args:
      state: {name: array}; kernels [out, in, h, w], depthwise ones [C, 1, h, w].
    Returns:
      ({"layer/tensor": float32 array}, contract): kernels [h, w, in, out], depthwise ones
      [h, w, C, 1]; the contract says what network it is and what input it was trained on: pixels x
      in 0..255 become (x / 255 - mean) / std, in `channels` channels. Its convention "torch" means
      PyTorch's batch-norm constants and symmetric padding.
    Raises:
      UserError: for an unknown network, and for a tensor that is missing, unexplained or no kernel;
        it names it as the file does.
    """
    prefix, model = _recognised(state)
    left = {_modern(name.removeprefix(prefix)): name for name in state}
    if len(left) < len(state):
        raise UserError(
            f"the weights hold {_twice(state, prefix)} under two names; use a file that has it "
            "only once."
        )
    tensors = {}
    for theirs, ours in _LAYERS[model].items():
        is_norm = ours.lower().endswith("bn") or ours.startswith("bn_")
        for kind, tensor in (_BATCH_NORM if is_norm else {"weight": "kernel"}).items():
            name = left.pop(f"{theirs}.{kind}", None)
            if name is None:
                raise UserError(
                    f"the weights lack {prefix}{theirs}.{kind}, which {model} needs; use a file of "
                    "the whole network."
                )
            tensors[f"{ours}/{tensor}"] = _laid_out(name, state[name], ours, tensor)
        left.pop(f"{theirs}.num_batches_tracked", None)
    for name in _LEFT_OUT[model]:
        left.pop(name, None)
    if left:
        raise UserError(
            f"the weights hold {next(iter(left.values()))} (and {len(left) - 1} more tensors) that "
            f"{model} does not have; use a file of this network."
        )
    stem = next(iter(tensors.values()))
    about = _XRAY if model == "densenet121" and stem.shape[2] == 1 else _IMAGENET
    return tensors, {"model": model, "convention": "torch", **about}


def _recognised(state: Mapping[str, np.ndarray]) -> tuple[str, str]:
    """(prefix of all names, network)."""
    names = {_modern(name) for name in state}
    for prefix in _PREFIXES:
        for model, tensor in _KNOWN_BY.items():
            if prefix + tensor in names:
                return prefix, model
    raise UserError(
        f"the weights are of no PyTorch network known here ({', '.join(_KNOWN_BY)}): their first "
        f"tensor is {next(iter(state), 'none')}; use a file of one of these."
    )


def _modern(name: str) -> str:
    """Before PyTorch 0.4, layers of a dense block were called norm.1 and conv.1."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


def _twice(state: Mapping[str, np.ndarray], prefix: str) -> str:
    seen: set[str] = set()
    for name in state:
        plain = _modern(name.removeprefix(prefix))
        if plain in seen:
            return name
        seen.add(plain)
    raise AssertionError("no name occurs twice")


def _laid_out(name: str, value: np.ndarray, layer: str, tensor: str) -> np.ndarray:
    rank = 4 if tensor == "kernel" else 1
    if value.ndim != rank or value.dtype.kind != "f":
        raise UserError(
            f"the weights hold {name} as {value.dtype} {value.shape} where {rank} axes of floating "
            "numbers are needed; use a file of this network."
        )
    if rank == 1:
        return value
    order = (2, 3, 0, 1) if layer.endswith("depthwise") else (2, 3, 1, 0)
    return np.ascontiguousarray(value.transpose(order))
