"""What is jitted of a training step, against the plain step."""

import jax
import numpy as np
from test_step import make, make_batch, small_config

from cxrjax import build


def test_a_program_takes_the_same_step_and_leaves_frozen_weights_where_they_are():
    settings = small_config()
    settings.train.optimizer = "adamax"
    settings.model.trainable_layers = 4
    recipe, state, plain = make(settings)
    _, run = build.train_program(settings, recipe)
    expected = jax.device_get(plain(state, make_batch()))
    kept = state.frozen
    after, loss = run(build.copy_arrays(state)._replace(frozen=kept), make_batch())
    assert jax.tree.leaves(kept)
    jax.tree.map(lambda new, old: np.testing.assert_(new is old), after.frozen, kept)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((after, loss)), expected)
