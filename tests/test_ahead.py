"""Compiling ahead: calls find what was compiled of shapes alone."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from test_prefix import opened, tiny

from cxrjax import ahead, runtime

COMPILED = "/jax/core/compile/backend_compile_duration"
STEPS = ("jit(train)", "jit(eval_step)")


@contextlib.contextmanager
def compilations():
    """Counts what XLA compiles, or loads from the persistent cache, meanwhile."""
    seen = []

    def note(event, _, **about):
        if event == COMPILED:
            seen.append(about)

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_a_call_runs_what_was_compiled_of_shapes():
    double = jax.jit(lambda x: 2 * x)
    x = jnp.ones(3)
    with compilations() as seen:
        compiling = ahead.Ahead()
        compiling.compile(double, x)
        compiling.wait()
        assert len(seen) == 1
        double(x)
    assert len(seen) == 1


@pytest.mark.parametrize("at_once", [1, 512])
@pytest.mark.parametrize(
    "changes",
    [{"cache.prefix": False}, {"cache.prefix": False, "input.path": "tfdata"}, {}],
    ids=["resident", "tfdata", "frozen maps"],
)
def test_an_epoch_compiles_nothing_more(tmp_path, monkeypatch, changes, at_once):
    if at_once > 1 and not changes:
        pytest.skip("a scan over stored maps is not compiled ahead")
    monkeypatch.setattr(runtime, "steps_per_dispatch", lambda: at_once)
    with opened(tiny(tmp_path / "cache", **changes), tmp_path / "run") as training:
        compiling = training._compile_ahead()
        training._prepare(type("Never", (), {"requested": False}))
        compiling.wait()
        with compilations() as seen:
            training._train_epoch(0, type("Never", (), {"requested": False}))
            training.predict("validation", training.state.params, training.state.batch_stats)
    assert [about for about in seen if about.get("fun_name") in STEPS] == []


def test_a_program_that_does_not_compile_is_told_when_it_is_called():
    def refuse(x):
        raise ValueError("no such program")

    compiling = ahead.Ahead()
    compiling.compile(jax.jit(refuse), jnp.ones(3))
    compiling.wait()
    with pytest.raises(ValueError, match="no such program"):
        jax.jit(refuse)(jnp.ones(3))
