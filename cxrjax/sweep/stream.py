"""What the trials of one unit are fed: images, or what frozen layers make of them, once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import build, prefix, step
from cxrjax.config import Config
from cxrjax.data import augment, batches
from cxrjax.data.batches import Batch
from cxrjax.data.dataset import Dataset

Stop = Callable[[], bool]


class Stream:
    """The training passes and the validation split of the trials of one trunk, input and seed."""

    def __init__(self, config: Config, data: Dataset, pass_size: int, *, shared: bool):
        """Builds the network.

        Args:
          config: of one of the trials.
          pass_size: P, images of one training batch.
          shared: feed maps of the frozen layers, where the trials train only what is behind them.
        """
        self._config, self._data, self._pass_size = config, data, pass_size
        self._networks: dict[str, tuple[step.Recipe, build.Variables]] = {}
        self._images = build.make_input(config, data)
        self._maps: prefix.FrozenMaps | None = None
        if shared:
            recipe, variables = self.network(config)
            self._maps = prefix.frozen_maps(config, recipe, data, self._images.batches, variables)
        self._augmented = augment.active(config)

    @property
    def shared(self) -> bool:
        """Whether frozen layers run once for all trials."""
        return self._maps is not None

    def sample(self, size: int) -> Batch:
        """A batch of `size` examples as a trial is fed it, maps of frozen layers being made up."""
        plan = batches.evaluation_plan(np.resize(self._data.splits["train"], size), size)
        batch = next(self._images.batches(plan))
        if self._maps is None:
            return batch
        drawn = np.random.default_rng(0).random((size, *self._maps.shape), np.float32)
        maps = jnp.asarray(drawn, self._maps.dtype)
        return {"maps": maps} | {name: batch[name] for name in ("label", "index", "mask")}  # type: ignore[return-value]

    def run_frozen(self) -> None:
        """Runs the frozen layers over one batch as `training` does; nothing is stored."""
        assert self._maps is not None
        size = self._pass_size
        plan = batches.evaluation_plan(np.resize(self._data.splits["train"], size), size)
        jax.block_until_ready(list(self._maps.fresh(plan, 0)))

    @property
    def lives(self) -> bool:
        """Whether the frozen layers run over newly augmented images in every epoch."""
        return self._maps is not None and self._augmented and not self._config.cache.views

    def network(self, config: Config) -> tuple[step.Recipe, build.Variables]:
        """Recipe and first arrays of a trial; trials of one head share them."""
        head: Any = config.model.head
        key = f"{head.batch_norm} {head.dense} {head.one_logit} {config.train.remat}"
        if key not in self._networks:
            _, recipe, variables = build.network(config, self._data)
            self._networks[key] = recipe, variables
        return self._networks[key]

    def prepare(self, epochs: int, should_stop: Stop) -> None:
        """Computes and stores the maps that `epochs` epochs need, where any are stored."""
        if self._maps is None:
            return
        views = () if self.lives else prefix.views(self._config, epochs)
        wanted = [(self._data.splits["train"], view) for view in views]
        self._maps.prepare([(self._data.splits["validation"], 0), *wanted], should_stop)

    def training(self, epoch: int) -> Iterator[Batch]:
        """Batches of P examples in the order of the epoch: see `batches.training_plan`.

        A trial of batch size B takes them apart; the order is the same for every B.
        """
        views = self._config.cache.views if self._maps is not None else 0
        plan = batches.training_plan(
            self._data.splits["train"], self._pass_size, self._config.seed, epoch, views
        )
        if self._maps is None:
            return self._images.batches(plan)
        return self._maps.fresh(plan, epoch) if self.lives else self._maps.batches(plan)

    def validation(self) -> tuple[batches.Plan, Iterator[Batch]]:
        """The validation split in its order, with the plan that it follows."""
        size = self._config.eval.batch_size
        plan = batches.evaluation_plan(self._data.splits["validation"], size)
        return plan, (self._images if self._maps is None else self._maps).batches(plan)

    def steps(self, batch_size: int) -> int:
        """Training steps of an epoch at a batch size."""
        return -(-len(self._data.splits["train"]) // batch_size)

    @property
    def passes(self) -> int:
        """Batches of `training`."""
        return self.steps(self._pass_size)

    @property
    def labels(self) -> np.ndarray:
        """int [N], of the validation split."""
        return np.asarray(self._data.store.labels[self._data.splits["validation"]])

    @property
    def groups(self) -> np.ndarray:
        """int [N], near-duplicates of the validation split."""
        return self._data.groups[self._data.splits["validation"]]
