"""A backbone and a head as one classifier, taken apart into plain arrays and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from cxrjax.errors import UserError
from cxrjax.models import registry
from cxrjax.models.backbone import Backbone, fold
from cxrjax.models.head import Head
from cxrjax.models.layers import Grey

Tree = dict[str, Any]  # {"backbone": {layer: {tensor: array}}, "head": {layer: {tensor: array}}}


class Classifier(nnx.Module):
    """logits = classify(features(images)); Grad-CAM is the gradient of `classify` at the maps."""

    def __init__(self, backbone: Backbone, head: Head, dtype: Any):
        self.backbone: Any = backbone
        self.head = head
        self.dtype = jnp.dtype(dtype).name

    def features(
        self,
        x: jax.Array | Grey,
        *,
        train_layers: frozenset[str] = frozenset(),
        after: str | None = None,
    ) -> jax.Array:
        """Last convolutional maps [B, h, w, F] in `self.dtype`; `x` itself behind the last stage.

        Args:
          x: normalised images, float [B, H, W, C] or `Grey`; with `after`, that stage's output.
          train_layers: batch-norm layers named here use, and move, the statistics of the batch; all
            others use the stored ones.
          after: go on behind this stage of the backbone; behind the last, `x` are the features.
        """
        maps = self.backbone.stages(self.cast(x), train_layers=train_layers, after=after)
        # Stored maps of the last stage are pooled, in float32: cast, they would lose digits that
        # the head, which is in float32, has of images.
        return maps[next(reversed(maps))] if maps else x  # type: ignore[return-value]

    def cast(self, x: Any) -> Any:
        """`x`, an array or `Grey`, in the compute dtype."""
        if isinstance(x, Grey):
            return replace(x, pixels=x.pixels.astype(self.dtype))
        return x.astype(self.dtype)

    def classify(
        self,
        maps: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        rate: jax.Array | float | None = None,
    ) -> jax.Array:
        """Logits float32 [B, K] of maps [B, h, w, F]; K = 1 is the evidence for the second class.

        Args:
          train: dropout acts, and batch norm uses and moves batch statistics.
          key, rate: random key of the dropout and its rate; no rate, no dropout.
        """
        return self.head(maps, train=train, key=key, rate=rate)


def build(
    config: Any,
    n_classes: int,
    *,
    contract: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: Any = "float32",
) -> Classifier:
    """A classifier with random weights (Keras' initialisers), the same for the same seed.

    Args:
      config: the `model` section of the configuration (a ConfigDict).
      n_classes: K >= 2; with two classes and `head.one_logit` there is one logit.
      contract: the input contract of the weights it is to hold, see `ModelSpec.with_contract`.
      dtype: compute dtype, "float32" or "bfloat16"; parameters are float32.
    Raises:
      UserError: for an unknown network, or the contract of another.
    """
    entry = registry.spec(config.name).with_contract(contract)
    for_backbone, for_head = np.random.default_rng(seed).spawn(2)
    options: dict[str, Any] = {"filters": config.filters} if entry.name == "baseline" else {}
    if entry.convention != "keras":
        options["convention"] = entry.convention
    backbone = entry.load()(for_backbone, channels=entry.channels, **options)
    n_logits = 1 if config.head.one_logit and n_classes == 2 else n_classes
    return Classifier(backbone, Head(for_head, backbone.features, n_logits, config.head), dtype)


def folded(
    classifier: Classifier, params: Tree, batch_stats: Tree, keep: frozenset[str] = frozenset()
) -> tuple[Any, Tree, Tree]:
    """The same classifier for inference, as `split` gives it: see `backbone.fold`.

    Args:
      classifier: of the structure wanted; its own arrays are not used.
      params, batch_stats: left unchanged.
      keep: layers that are trained and so stay as they are.
    """
    graphdef, _, _ = split(classifier)
    model = merge(graphdef, params, batch_stats)
    fold(model.backbone, keep)
    return split(model)


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


def last_frozen_stage(classifier: Classifier, trained: frozenset[str]) -> str | None:
    """The last stage of the backbone whose output no trained layer reaches; None: there is none.

    A layer without parameters counts as neither: what follows the last frozen parameter without a
    trained one, such as a pooling, is still a function of the image alone.

    Args:
      trained: names of layers, as `trainable_layer_names` gives them.
    """
    backbone = classifier.backbone
    has_parameters = split(classifier)[1]["backbone"].keys()
    positions = {name: i for i, name in enumerate(backbone.layers)}
    first = min((positions[name] for name in trained & has_parameters), default=len(positions))
    names = [name for name, _ in backbone.chain() if positions[name] < first]
    return names[-1] if names else None
