"""Trials that are trained side by side on the same batches: in one program, or one after another.

Stacked, every array of the state that a trial changes has a leading axis of the trials, and one
program (`jax.vmap` of the plain step) moves all of them. Separate lanes share the program of a
single trial, and what is fed to them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import build, optim, step
from cxrjax.data.batches import Batch

# Which arrays differ from trial to trial.
_AXES: dict[str, Any] = dict.fromkeys(step.TrainState._fields, 0) | {"frozen": None}
_TRIALS = step.TrainState(**_AXES)


class Programs(NamedTuple):
    """What is compiled for trials of one recipe."""

    train: step.Program  # (state, batch) -> (state, loss [] or [n])
    evaluate: Any  # (params, frozen, batch_stats, batch) -> probabilities, cross-entropy


@functools.lru_cache(maxsize=64)
def programs(
    recipe: step.Recipe, optimizer: str, momentum: float, accumulate: int, stacked: bool
) -> Programs:
    """The jitted steps; the same object for the same arguments, so that nothing compiles twice.

    Args:
      optimizer, momentum, accumulate: see `optim.optimizer`.
      stacked: of many trials; every number of them compiles anew.
    """
    tx = optim.optimizer(optimizer, momentum, accumulate)
    train = functools.partial(step.train_step, recipe, tx)
    evaluate = functools.partial(step.eval_step, recipe)
    if stacked:
        train = jax.vmap(train, in_axes=(_TRIALS, None), out_axes=(_TRIALS, 0))
        evaluate = jax.vmap(evaluate, in_axes=(0, None, 0, None))
    return Programs(step.Program(train), jax.jit(evaluate))


def first_states(
    variables: build.Variables,
    recipe: step.Recipe,
    optimizer: tuple[str, float, int],
    settings: Sequence[step.Settings],
) -> list[step.TrainState]:
    """The state of each trial before its first step. All share the frozen arrays."""
    tx = optim.optimizer(*optimizer)
    states = [build.init_state(variables, recipe, tx, own) for own in settings[:1]]
    for own in settings[1:]:
        changing = build.copy_arrays(states[0]._replace(frozen=None, settings=None))
        states.append(changing._replace(frozen=states[0].frozen, settings=own))
    return states


class Lanes:
    """The states of n trials and the programs that move them."""

    def __init__(
        self,
        states: Sequence[step.TrainState],
        recipe: step.Recipe,
        optimizer: tuple[str, float, int],
        batch_size: int,
        *,
        stacked: bool,
    ):
        """Takes the states over: they are used up by training.

        Args:
          optimizer: name, momentum and accumulated batches, see `optim.optimizer`.
          batch_size: B of the trials; what they are fed may be larger by a whole factor.
        """
        self.batch_size, self.stacked = batch_size, stacked
        self._programs = programs(recipe, *optimizer, stacked)
        self._frozen = states[0].frozen
        bare = [state._replace(frozen=None) for state in states]
        self._states = [_stack(bare)] if stacked else bare

    def train(self, batch: Batch) -> None:
        """One step of every trial on the same B examples."""
        for i, state in enumerate(self._states):
            state, _ = self._programs.train(state._replace(frozen=self._frozen), batch)
            self._states[i] = state._replace(frozen=None)

    def compile(self, batch: Batch) -> int:
        """Compiles the training step; returns the bytes that it needs on the device."""
        state = self._states[0]._replace(frozen=self._frozen)
        found = self._programs.train.lower(state, batch).compile().memory_analysis()
        if found is None:  # a platform that does not tell
            return 0
        held = found.argument_size_in_bytes + found.output_size_in_bytes
        return int(held + found.temp_size_in_bytes - found.alias_size_in_bytes)

    def wait(self) -> None:
        """Returns when the device is done."""
        jax.block_until_ready(self._states)

    def evaluate(self, batch: Batch) -> tuple[list[jax.Array], list[jax.Array]]:
        """Probabilities [n, B, K] or [B, K], and cross-entropy likewise, of each part."""
        outputs = []
        for state in self._states:
            params, batch_stats = state.evaluated
            outputs.append(self._programs.evaluate(params, self._frozen, batch_stats, batch))
        return [probabilities for probabilities, _ in outputs], [loss for _, loss in outputs]

    def totals(self) -> dict[str, np.ndarray]:
        """Sums over the epoch, see `step.no_totals`: [n] and [n, K]. Sets them to 0."""
        parts = jax.device_get([state.totals for state in self._states])
        for i, state in enumerate(self._states):
            zero = jax.tree.map(jnp.zeros_like, state.totals)
            self._states[i] = state._replace(totals=zero)
        return {name: self.by_trial([part[name] for part in parts]) for name in parts[0]}

    def by_trial(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Arrays of each part of the lanes as one with the trials first: [n, ...]."""
        return np.asarray(parts[0]) if self.stacked else np.stack(parts)

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with some of the trials, by their positions among those that are left."""
        if self.stacked:
            chosen = np.asarray(which, np.int32)
            self._states = [jax.tree.map(lambda leaf: leaf[chosen], self._states[0])]
        else:
            self._states = [self._states[i] for i in which]


def _stack(states: Sequence[step.TrainState]) -> step.TrainState:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@functools.partial(jax.jit, static_argnums=2)
def piece(batch: Batch, start: jax.Array, size: int) -> Batch:
    """`size` rows of a batch from `start`, int32 [], on."""
    return jax.tree.map(lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, size), batch)
