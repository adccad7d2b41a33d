"""What is trained and how: the split into trainable and frozen parameters, and the optax chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

Params = dict[str, Any]  # {"backbone": {layer: {tensor: array}}, "head": ...}

# Keras' epsilon, so that its learning rates carry over (optax's own default is 1e-8).
_EPSILON = 1e-7


def partition(params: Params, trainable_layers: frozenset[str]) -> tuple[Params, Params]:
    """Splits {"backbone": {layer: ...}, "head": ...} into (trainable, frozen) of the same nesting.

    The head is always trainable; of the backbone, the layers named.
    """
    backbone = params["backbone"]
    trainable = {name: layer for name, layer in backbone.items() if name in trainable_layers}
    frozen = {name: layer for name, layer in backbone.items() if name not in trainable_layers}
    return {"backbone": trainable, "head": params["head"]}, {"backbone": frozen}


def combine(trainable: Params, frozen: Params) -> Params:
    """The inverse of `partition`."""
    return {
        "backbone": {**frozen["backbone"], **trainable["backbone"]},
        "head": trainable["head"],
    }


def optimizer(name: str, momentum: float = 0.0, accumulate: int = 1) -> Any:
    """Adam, Adamax (Kingma & Ba 2015, arXiv 1412.6980) or SGD, with Keras' constants.

    Args:
      name: "adam", "adamax" or "sgd".
      momentum: SGD only.
      accumulate: batches whose mean gradient makes one step.
    Returns:
      an optax.GradientTransformation of learning rate 1: the train step multiplies its updates by
      the rate, which is then no constant of the compiled program.
    """
    makers = {
        "adam": lambda: optax.adam(1.0, eps=_EPSILON),
        "adamax": lambda: optax.adamax(1.0, eps=_EPSILON),
        "sgd": lambda: optax.sgd(1.0, momentum=momentum or None),
    }
    tx = makers[name]()
    return optax.MultiSteps(tx, accumulate).gradient_transformation() if accumulate > 1 else tx


def class_weights(kind: str, labels: np.ndarray, n_classes: int) -> tuple[float, ...]:
    """Weight of each class in the training loss.

    "balanced" is N / (K n_k) (King & Zeng 2001, as in scikit-learn): mean 1 over the examples.

    Args:
      kind: "none" or "balanced".
      labels: int [N], the training labels; every class occurs.
    """
    if kind == "none":
        return (1.0,) * n_classes
    counts = np.bincount(labels, minlength=n_classes)
    return tuple(float(w) for w in len(labels) / (n_classes * counts))


def count(tree: Mapping[str, Any]) -> int:
    """Number of scalars in a nested dict of arrays."""
    return sum(count(v) if isinstance(v, Mapping) else int(np.size(v)) for v in tree.values())
