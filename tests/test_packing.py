"""Packed trees: every array comes back as it was, and what is no layout is refused."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import packing

DTYPES = ("float32", "bfloat16", "int32", "uint32", "bool")


@st.composite
def arrays(draw):
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    seed = draw(st.integers(0, 99))
    values = np.random.default_rng(seed).normal(0, 9, shape)
    return values.astype(jnp.dtype(draw(st.sampled_from(DTYPES))))


TREES = st.recursive(
    arrays(),
    lambda inner: st.one_of(
        st.dictionaries(st.text(max_size=4), inner, max_size=4),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
    ),
    max_leaves=12,
)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_what_is_packed_comes_back(tree):
    vectors, layout = packing.pack(tree)
    assert all(vector.dtype.name == name and vector.ndim == 1 for name, vector in vectors.items())
    assert_same(packing.fitted(packing.unpack(vectors, layout), tree), tree)


def test_optimizer_states_come_back_in_their_own_types_and_as_dicts_and_lists():
    params = {"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "nothing": {}}
    state = (optax.adam(1e-3).init(params), params)
    found = packing.unpack(*packing.pack(state))
    assert_same(packing.fitted(found, state), state)
    (adam, *_), plain = packing.nested(found)
    assert_same(adam["mu"]["head"], jax.tree.map(jnp.zeros_like, params["head"]))
    assert_same(plain, {"head": params["head"]})


def test_copies_are_packed_since_a_step_overwrites_its_state():
    array = np.ones(3, np.float32)
    vectors, _ = packing.pack({"alone": array})
    array[:] = 2
    np.testing.assert_array_equal(vectors["float32"], 1)


def shorter(layout):
    del layout[-1]


def longer(layout):
    layout.append({"name": ["more"], "dtype": "float32", "shape": [1]})


def negative(layout):
    layout[0]["shape"] = [-1, -3]


def fraction(layout):
    layout[0]["shape"] = [1.0]


def another_type(layout):
    layout[0]["dtype"] = "float64"


def nameless(layout):
    del layout[0]["name"]


def huge(layout):
    layout[0]["shape"] = [2**62, 2**62]


@pytest.mark.parametrize(
    "spoil", [shorter, longer, negative, fraction, another_type, nameless, huge]
)
def test_a_layout_of_other_vectors_is_refused(spoil):
    vectors, layout = packing.pack({"a": jnp.ones(3), "b": jnp.ones(2)})
    packing.unpack(vectors, copy.deepcopy(layout))
    spoil(layout)
    with pytest.raises((ValueError, KeyError)):
        packing.unpack(vectors, layout)


@pytest.mark.parametrize(
    ("like", "told"),
    [
        ({"a": jnp.ones(3)}, "b"),
        ({"a": jnp.ones(3), "b": jnp.ones(2), "c": jnp.ones(1)}, "c"),
        ({"a": jnp.ones(3), "b": jnp.ones((2, 1))}, "b is float32"),
        ({"a": jnp.ones(3), "b": jnp.ones(2, jnp.int32)}, "b is float32"),
    ],
)
def test_another_tree_is_refused_by_name(like, told):
    found = packing.unpack(*packing.pack({"a": jnp.ones(3), "b": jnp.ones(2)}))
    with pytest.raises(ValueError, match=told):
        packing.fitted(found, like)
