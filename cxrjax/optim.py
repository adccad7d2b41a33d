"""What is trained and how: the split into trainable and frozen parameters, and the optax chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
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


def rate_factor(
    step: jax.Array, warmup: jax.Array | None = None, total: jax.Array | None = None
) -> jax.Array | float:
    """Factor of the learning rate: linear warm-up from 0, then half a cosine down to 0.

    Warm-up: Goyal et al. 2017 (arXiv 1706.02677); cosine: Loshchilov & Hutter 2017 (arXiv
    1608.03983, equation 5, without restarts). Together as `optax.warmup_cosine_decay_schedule`,
    which takes no traced lengths.

    Args:
      step: int32 [], batches seen before this one. Where gradients are accumulated, the optimizer
        moves at the last batch of each group and so by that batch's factor.
      warmup: float32 [], batches of the warm-up; None: there is none.
      total: float32 [], batches until the factor is 0, warm-up included; None: it stays at 1.
    """
    factor: Any = 1.0
    if warmup is not None:
        factor = jnp.minimum(step / warmup, 1.0)
    if total is not None:
        begun = 0.0 if warmup is None else warmup
        share = jnp.maximum(step - begun, 0.0) / jnp.maximum(total - begun, 1.0)
        factor *= optax.cosine_decay_schedule(1.0, 1)(share)
    return factor


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
