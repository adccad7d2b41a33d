"""Trees of arrays as one vector for each type of number, and the place of each array in them.

A network's checkpoint is a thousand arrays, most of them tiny, and what orbax does for each costs
2 to 3 ms: more than an epoch behind stored maps takes. A few vectors cost what their bytes cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Name = tuple[str | int, ...]  # of an array: keys and positions from the root of its tree


def pack(tree: Any) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Copies of all arrays of a tree, end to end.

    Args:
      tree: a pytree of arrays of dicts with str keys, lists, tuples and named tuples.
    Returns:
      vectors [n] by the name of their dtype, and for each array, in the order they lie in, its
      "name", "dtype" and "shape" as JSON values; see `unpack`.
    """
    arrays, layout = {}, []
    for path, array in jax.tree.leaves_with_path(jax.device_get(tree)):
        array = np.asarray(array)
        dtype = array.dtype.name
        arrays.setdefault(dtype, []).append(array.ravel())
        layout.append({"name": list(_name(path)), "dtype": dtype, "shape": list(array.shape)})
    return {dtype: np.concatenate(parts) for dtype, parts in arrays.items()}, layout


def unpack(vectors: Mapping[str, np.ndarray], layout: Any) -> dict[Name, np.ndarray]:
    """What `pack` packed, each array by its name; views of the vectors.

    Raises:
      one of `errors.MALFORMED`: when the layout is not of these vectors.
    """
    ends, found = dict.fromkeys(vectors, 0), {}
    for entry in layout:
        name, dtype, shape = tuple(entry["name"]), entry["dtype"], tuple(entry["shape"])
        if any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"{name} has no shape")
        start = ends[dtype]
        ends[dtype] = start + int(np.prod(shape, dtype=object))
        found[name] = vectors[dtype][start : ends[dtype]].reshape(shape)
    if ends != {dtype: vector.size for dtype, vector in vectors.items()}:
        raise ValueError("its arrays are fewer than their layout tells, or more")
    return found


def fitted(found: Mapping[Name, np.ndarray], like: Any) -> Any:
    """Arrays by name in the structure of `like`, whose names, shapes and dtypes they must have.

    They stay what `unpack` returned: views of the vectors.

    Raises:
      ValueError: naming what differs.
    """
    wanted = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(like)}
    if odd := wanted.keys() ^ found.keys():
        raise ValueError(f"it has other arrays than the run ({min(map(_told, odd))})")
    for name, leaf in wanted.items():
        array = found[name]
        if (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{_told(name)} is {array.dtype} {array.shape}")
    return jax.tree.map_with_path(lambda path, _: found[_name(path)], like)


def nested(found: Mapping[Name, np.ndarray]) -> Any:
    """Copies of arrays by name on the device, in dicts, and in lists where names have positions.

    Empty ones are left out.

    Raises:
      one of `errors.MALFORMED`: for names that are no tree's.
    """
    root: dict[str | int, Any] = {}
    for name, array in found.items():
        inner = root
        for step in name[:-1]:
            inner = inner.setdefault(step, {})
        inner[name[-1]] = jnp.array(array)
    return _lists(root)


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {key: _lists(value) for key, value in tree.items()}
    return list(inner.values()) if all(isinstance(key, int) for key in inner) else inner


def _name(path: tuple[Any, ...]) -> Name:
    return tuple(_steps(path))


def _steps(path: tuple[Any, ...]) -> Iterator[str | int]:
    for key in path:
        match key:
            case jax.tree_util.SequenceKey(idx=position):
                yield position
            case jax.tree_util.GetAttrKey(name=name) | jax.tree_util.DictKey(key=name):
                yield name
            case _:
                raise TypeError(f"{key!r} is no key of a dict, list, tuple or named tuple")


def _told(name: Name) -> str:
    return "/".join(map(str, name))
