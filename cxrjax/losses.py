"""Per-example losses on logits, and the probabilities that belong to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: jax.Array | float | None = None
) -> jax.Array:
    """Cross-entropy of each example, in nats.

    Args:
      logits: float [B, K]; K = 1 is one sigmoid logit, the evidence for class 1.
      labels: int [B].
      smoothing: float32 [] e in [0, 1): the target puts 1 - e on the label and spreads e evenly
        over all classes, which are two where there is one logit (Szegedy et al. 2016, arXiv
        1512.00567, section 7; as Keras' losses have it). None: all on the label.
    Returns:
      float [B].
    """
    if logits.shape[-1] == 1:
        truth = labels.astype(logits.dtype)
        if smoothing is not None:
            truth = (1 - smoothing) * truth + smoothing / 2
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], truth)
    if smoothing is not None:
        truth = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(truth, smoothing))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def probabilities(logits: jax.Array) -> jax.Array:
    """Class probabilities: float [B, K] -> [B, K], and one logit [B, 1] -> [B, 2]."""
    if logits.shape[-1] == 1:
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)
    return jax.nn.softmax(logits, axis=-1)
