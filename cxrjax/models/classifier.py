"""A backbone and a head as one classifier, taken apart into plain arrays and put together again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxrjax.errors import UserError
from cxrjax.models import registry
from cxrjax.models.head import Head

Tree = dict[str, Any]  # {"backbone": {layer: {tensor: array}}, "head": {layer: {tensor: array}}}


class Classifier(nnx.Module):
    """logits = classify(features(images)); Grad-CAM is the gradient of `classify` at the maps."""

    def __init__(self, backbone: nnx.Module, head: Head, dtype: Any):
        self.backbone: Any = backbone
        self.head = head
        self.dtype = jnp.dtype(dtype).name

    def features(
        self,
        x: jax.Array,
        *,
        train_layers: frozenset[str] = frozenset(),
    ) -> jax.Array:
        """Last convolutional maps: float [B, H, W, C], normalised -> [B, h, w, F] in `self.dtype`.

        Args:
          train_layers: batch-norm layers named here use, and move, the statistics of the batch; all
            others use the stored ones.
        """
        x = x.astype(self.dtype)
        maps = self.backbone.stages(x, train_layers=train_layers)
        return maps[next(reversed(maps))]

    def classify(
        self,
        maps: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, K] of maps [B, h, w, F]; K = 1 is the evidence for the second class.

        Args:
          train: dropout acts, and batch norm uses and moves batch statistics.
          key: random key of the dropout, needed when `train` and its rate is not 0.
        """
        return self.head(maps, train=train, key=key)


def build(
    config: Any,
    n_classes: int,
    channels: int | None = None,
    seed: int = 0,
    dtype: Any = "float32",
) -> Classifier:
    """A classifier with random weights (Keras' initialisers), the same for the same seed.

    Args:
      config: the `model` section of the configuration (a ConfigDict).
      n_classes: K >= 2; with two classes and `head.one_logit` there is one logit.
      channels: of the images; None: the network's own number.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
    Raises:
      UserError: for an unknown network, or channels it cannot take.
    """
    entry = registry.spec(config.name)
    if channels not in (None, entry.channels) and entry.parameters is not None:
        raise UserError(f"{entry.name} takes {entry.channels} channels, not {channels}.")
    for_backbone, for_head = np.random.default_rng(seed).spawn(2)
    options = {"filters": config.filters} if entry.name == "baseline" else {}
    backbone = entry.load()(for_backbone, channels=channels or entry.channels, **options)
    n_logits = 1 if config.head.one_logit and n_classes == 2 else n_classes
    return Classifier(backbone, Head(for_head, backbone.features, n_logits, config.head), dtype)


def split(classifier: Classifier) -> tuple[Any, Tree, Tree]:
    """(graphdef, params, batch_stats): what never changes, and two plain nested dicts of arrays."""
    graphdef, params, batch_stats = nnx.split(classifier, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)


def merge(graphdef: Any, params: Tree, batch_stats: Tree) -> Classifier:
    """The inverse of `split`, to be called inside the function that JAX transforms."""
    return nnx.merge(graphdef, params, batch_stats)


def batch_stats(classifier: Classifier) -> Tree:
    """The running statistics as they are now, e.g. after a forward pass that moved some."""
    return nnx.to_pure_dict(nnx.state(classifier, nnx.BatchStat))


def trainable_layer_names(classifier: Classifier, n: int) -> frozenset[str]:
    """Names of the backbone layers that are trained; the head always is.

    Args:
      n: the last n in Keras' counting, which includes layers without parameters; -1: all, 0: none.
    Raises:
      UserError: when the network has fewer layers.
    """
    layers = classifier.backbone.layers
    if n > len(layers):
        raise UserError(
            f"config field model.trainable_layers is {n}, but the network has {len(layers)} "
            "layers; -1 trains all of them."
        )
    return frozenset(layers if n < 0 else layers[len(layers) - n :])
