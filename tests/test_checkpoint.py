"""Checkpoints: what goes in comes out, and a bad disk or folder is one sentence."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cxrjax.checkpoint import Checkpoints
from cxrjax.errors import UserError
from cxrjax.step import Settings, TrainState


def make_tree(seed):
    params = {"a": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4))}, "empty": {}}
    return params, optax.adam(1e-3).init(params), jnp.int32(seed)


def test_round_trip_keeps_values_dtypes_and_structure(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.latest() is None
    for step in (1, 5, 9):
        checkpoints.save(step, make_tree(step), {"history": [{"loss": 0.5, "none": None}]})
    checkpoints.wait()
    assert checkpoints.latest() == 9
    assert checkpoints.note(9, {"history": list}) == {"history": [{"loss": 0.5, "none": None}]}
    restored = checkpoints.arrays(9, make_tree(0))
    # A vector for each type of number: orbax takes long for every single array.
    assert set(checkpoints._saved_like(9, "arrays")) == {"float32", "int32"}
    assert jax.tree.structure(restored) == jax.tree.structure(make_tree(0))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(make_tree(9)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    checkpoints.close()
    assert len([p for p in (tmp_path / "c").iterdir() if p.name.isdigit()]) == 2


class OldSettings(NamedTuple):
    """`step.Settings` as it was before schedules and averaged weights."""

    learning_rate: Any
    dropout: Any
    l2: Any
    class_weights: Any
    seed: Any
    steps_per_epoch: Any


class OldState(NamedTuple):
    """`step.TrainState` as it was then; the tuple itself was what a checkpoint held."""

    params: Any
    frozen: Any
    batch_stats: Any
    opt_state: Any
    step: Any
    totals: Any
    settings: OldSettings


def old_state(seed):
    """That state of a made-up network, and the best weights saved beside it."""
    rng = np.random.default_rng(seed)

    def tensor(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"backbone": {"conv": {"kernel": tensor(3, 4)}}, "head": {"out": {"bias": tensor(4)}}}
    settings = OldSettings(
        *(tensor() for _ in range(3)), tensor(4), jnp.int32(seed), jnp.int32(7 + seed)
    )
    stats = {"backbone": {"norm": {"mean": tensor(4), "var": tensor(4)}}}
    moments = jax.tree.map(lambda leaf: leaf + seed, optax.adam(1e-3).init(params))
    totals = {"loss": tensor(), "correct": tensor(4), "support": tensor(4)}
    frozen = {"backbone": {"stem": {"kernel": tensor(2)}}, "head": {}}
    state = OldState(params, frozen, stats, moments, jnp.int32(70 + seed), totals, settings)
    best = (jax.tree.map(jnp.negative, params), jax.tree.map(jnp.negative, stats))
    return state, best


def save_as_before(folder, step, tree):
    """A checkpoint as versions wrote them that did not pack: the tree itself, and the note."""
    items = {"state": ocp.args.StandardSave(tree), "note": ocp.args.JsonSave({})}
    with ocp.CheckpointManager(folder, item_names=tuple(items)) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def test_checkpoints_of_versions_without_the_options_are_read(tmp_path):
    was, was_best = old_state(1)
    save_as_before(tmp_path / "c", 4, (was, was_best))
    checkpoints = Checkpoints(tmp_path / "c")
    assert set(checkpoints.all_arrays(4)[0]) == set(OldState._fields)
    now, now_best = old_state(0)
    fresh = TrainState(*now[:-1], Settings(*now.settings))
    held, best = checkpoints.arrays(4, (fresh.held(), now_best))
    checkpoints.save(5, (held, best), {}, wait=True)  # a run goes on from it in today's form
    for read in (held, best), checkpoints.arrays(5, (fresh.held(), now_best)):
        jax.tree.map(np.testing.assert_array_equal, read, checkpoints.arrays(4, (held, best)))
    state = TrainState.restored(held)
    checkpoints.close()
    assert jax.tree.structure(state) == jax.tree.structure(fresh) and state.average is None
    ours, theirs = (jax.tree.leaves_with_path(of) for of in ((state, best), (was, was_best)))
    for (path, got), (where, wanted) in zip(ours, theirs, strict=True):
        assert path == where and got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_another_structure_or_a_damaged_checkpoint_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, make_tree(1), {}, wait=True)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.arrays(1, {"other": jnp.ones(3)})
    layout = tmp_path / "c" / "1" / "layout" / "metadata"
    kept = layout.read_text()
    for spoilt in ("[]", "{}", "[1]", "", kept.replace("[3, 4]", "[3, 5]"), kept[: len(kept) // 2]):
        layout.write_text(spoilt)
        for read in (checkpoints.all_arrays, lambda step: checkpoints.arrays(step, make_tree(0))):
            with pytest.raises(UserError, match=r"cannot be read .*delete that folder"):
                read(1)
    for names in ([[], ["c"]], [["a"], ["a", "b"]]):  # no name; an array with one within it
        entries = [{"name": name, "dtype": "int32", "shape": []} for name in names]
        rest = [entry for entry in json.loads(kept)["arrays"] if entry["dtype"] != "int32"]
        layout.write_text(json.dumps({"arrays": rest + entries}))
        with pytest.raises(UserError, match="cannot be read"):
            checkpoints.all_arrays(1)
    layout.write_text(kept)
    checkpoints.arrays(1, make_tree(0))
    for file in (tmp_path / "c" / "1" / "arrays").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="delete that folder"):
        checkpoints.arrays(1, make_tree(0))
    checkpoints.close()


def test_a_note_may_change_while_it_is_written(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    note, save = {"history": [{"loss": 0.5}]}, checkpoints._manager.save

    def late(step, args, **options):
        note["history"] += [{"loss": 0.25}]  # as an epoch that ends before the writing has begun
        save(step, args=args, **options)

    monkeypatch.setattr(checkpoints._manager, "save", late)
    checkpoints.save(1, make_tree(1), note, wait=True)
    assert checkpoints.note(1, {"history": list}) == {"history": [{"loss": 0.5}]}
    checkpoints.close()


def test_a_full_disk_is_told_and_the_checkpoint_before_stays(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, make_tree(1), {"n": 1}, wait=True)

    def full(*args, **kwargs):
        raise ValueError('RESOURCE_EXHAUSTED: ... "x": No space left on device [os_error_code=28]')

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match="no space left on device"):
        checkpoints.save(2, make_tree(2), {})
    monkeypatch.undo()
    assert checkpoints.latest() == 1
    assert int(checkpoints.arrays(1, make_tree(0))[2]) == 1
    checkpoints.close()
