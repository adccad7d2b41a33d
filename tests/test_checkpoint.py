"""Checkpoints: what goes in comes out, and a bad disk or folder is one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax.checkpoint import Checkpoints
from cxrjax.errors import UserError


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
    assert checkpoints.note(9) == {"history": [{"loss": 0.5, "none": None}]}
    restored = checkpoints.arrays(9, make_tree(0))
    assert jax.tree.structure(restored) == jax.tree.structure(make_tree(0))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(make_tree(9)), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    checkpoints.close()
    assert len([p for p in (tmp_path / "c").iterdir() if p.name.isdigit()]) == 2


def test_another_structure_or_a_damaged_checkpoint_is_one_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, make_tree(1), {}, wait=True)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.arrays(1, {"other": jnp.ones(3)})
    for file in (tmp_path / "c" / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="delete that folder"):
        checkpoints.arrays(1, make_tree(0))
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
