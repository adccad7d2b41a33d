"""Batch plans, and the two input paths held to each other batch by batch."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrjax.data.batches import evaluation_plan, training_plan
from cxrjax.data.resident import ResidentInput
from cxrjax.data.tfdata import TfDataInput

sizes = st.integers(1, 70)


@given(n=sizes, batch_size=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_every_example_counts_once_an_epoch(n, batch_size, seed, epoch):
    positions = np.arange(n) * 3 + 5
    plan = training_plan(positions, batch_size, seed, epoch)
    assert plan.index.shape == plan.mask.shape == (-(-n // batch_size), batch_size)
    assert sorted(plan.index[plan.mask]) == list(positions)
    assert set(plan.index[~plan.mask]) <= set(positions)
    again = training_plan(positions, batch_size, seed, epoch)
    np.testing.assert_array_equal(plan.index, again.index)


def test_the_order_changes_with_seed_and_epoch():
    orders = {
        tuple(training_plan(np.arange(50), 10, seed, epoch).index.ravel())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


@given(n=sizes, batch_size=st.integers(1, 40))
def test_evaluation_keeps_the_order(n, batch_size):
    plan = evaluation_plan(np.arange(n), batch_size)
    np.testing.assert_array_equal(plan.index[plan.mask], np.arange(n))


@pytest.mark.parametrize("start", [0, 2])
def test_both_paths_give_identical_batches(tmp_path, start):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (23, 12, 12), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = rng.integers(0, 4, 23)
    plan = training_plan(np.arange(3, 23), 6, seed=1, epoch=2)
    resident = list(ResidentInput(images, labels).batches(plan, start))
    streamed = list(TfDataInput(images, labels).batches(plan, start))
    assert len(resident) == len(streamed) == plan.steps - start
    for step, (one, other) in enumerate(zip(resident, streamed, strict=True), start):
        assert one.keys() == other.keys()
        for name in one:
            assert isinstance(other[name], jax.Array)
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name])
        np.testing.assert_array_equal(one["index"], plan.index[step])
        np.testing.assert_array_equal(one["image"][..., 0], images[plan.index[step]])
        np.testing.assert_array_equal(one["label"], labels[plan.index[step]])
        np.testing.assert_array_equal(one["mask"], plan.mask[step])
        assert one["image"].dtype == np.uint8
        assert one["label"].dtype == one["index"].dtype == np.int32
        assert one["mask"].dtype == bool
