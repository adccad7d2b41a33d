"""Per-example losses on logits, and the probabilities that belong to them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each example, in nats.

    Args:
      logits: float [B, K]; K = 1 is one sigmoid logit, the evidence for class 1.
      labels: int [B].
    Returns:
      float [B].
    """
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[:, 0], labels.astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def probabilities(logits: jax.Array) -> jax.Array:
    """Class probabilities: float [B, K] -> [B, K], and one logit [B, 1] -> [B, 2]."""
    if logits.shape[-1] == 1:
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=-1)
    return jax.nn.softmax(logits, axis=-1)
