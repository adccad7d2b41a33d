"""The classification head of both reports: pool, batch norm, dense with ReLU, dropout, logits."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx

from cxrjax.models.layers import BatchNorm, Dense, dropout
from cxrjax.models.lowering import global_average_pool


class Head(nnx.Module):
    """Global average pool -> [batch norm] -> [dense, ReLU] -> [dropout] -> dense, in float32.

    Report F's is batch norm, 256 units, dropout 0.3 and four logits; report B's 128 units, dropout
    and one logit. Layers are named batch_norm, dense and logits. `config` is the configuration's
    model.head; its L2 penalty is the train step's to add.
    """

    def __init__(self, rng: np.random.Generator, features: int, n_logits: int, config: Any):
        if config.batch_norm:
            self.batch_norm = BatchNorm(features)
        if config.dense:
            self.dense = Dense(rng, features, config.dense)
        self.logits = Dense(rng, config.dense or features, n_logits)
        self.has_batch_norm = bool(config.batch_norm)
        self.has_dense = bool(config.dense)

    def __call__(
        self,
        maps: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        rate: jax.Array | float | None = None,
    ) -> jax.Array:
        """Maps [B, h, w, features] -> logits float32 [B, n_logits].

        Args:
          train: dropout acts and batch norm uses, and moves, batch statistics.
          key, rate: random key and rate, float [] in [0, 1), of the dropout; no rate, none.
        """
        x = global_average_pool(maps)
        if self.has_batch_norm:
            x = self.batch_norm(x, train=train)
        if self.has_dense:
            x = jax.nn.relu(self.dense(x))
        if train and rate is not None:
            if key is None:
                raise ValueError("dropout needs a key while training")
            x = dropout(x, rate, key)
        return self.logits(x)
