"""InceptionV3 (Szegedy et al. 2016, arXiv 1512.00567), layer for layer keras.applications'.

Keras leaves most layers to its automatic names: the n-th convolution is conv2d_n, its batch norm
batch_normalization_n. `model.layers` lists them from the deepest to the shallowest path, not by
number; `_Kind.order` holds that order for each kind of block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax.models.backbone import Backbone, Stage, TrainLayers
from cxrjax.models.grid import Window
from cxrjax.models.layers import Grey
from cxrjax.models.lowering import average_pool_same, max_pool

# A convolution: (output channels, kernel height, width).
Unit = tuple[int, int, int]
_STEM: tuple[Unit, ...] = ((32, 3, 3), (32, 3, 3), (64, 3, 3), (80, 1, 1), (192, 3, 3))


class _Kind(NamedTuple):
    """The wiring of a block: paths of convolutions, numbered within the block as Keras does."""

    paths: tuple[tuple[int, ...], ...]  # in the order they are concatenated, without pooling
    pool: int | None  # the convolution behind the average pool; None: a max-pool that halves
    order: str  # c, n, a: convolution, batch norm, activation; p: pool; x, y: concatenations


_A = _Kind(
    paths=((0,), (1, 2), (3, 4, 5)),
    pool=6,
    order="c3 n3 a3 c1 c4 n1 n4 a1 a4 p c0 c2 c5 c6 n0 n2 n5 n6 a0 a2 a5 a6",
)
_HALVING_A = _Kind(
    paths=((0,), (1, 2, 3)), pool=None, order="c1 n1 a1 c2 n2 a2 c0 c3 n0 n3 a0 a3 p"
)
_B = _Kind(
    paths=((0,), (1, 2, 3), (4, 5, 6, 7, 8)),
    pool=9,
    order="c4 n4 a4 c5 n5 a5 c1 c6 n1 n6 a1 a6 c2 c7 n2 n7 a2 a7 p "
    "c0 c3 c8 c9 n0 n3 n8 n9 a0 a3 a8 a9",
)
_HALVING_B = _Kind(
    paths=((0, 1), (2, 3, 4, 5)),
    pool=None,
    order="c2 n2 a2 c3 n3 a3 c0 c4 n0 n4 a0 a4 c1 c5 n1 n5 a1 a5 p",
)
_C = _Kind(  # the last convolutions of its second and third path stand side by side, see _block
    paths=((0,), (1, 2), (1, 3), (4, 5, 6), (4, 5, 7)),
    pool=8,
    order="c4 n4 a4 c1 c5 n1 n5 a1 a5 c2 c3 c6 c7 p c0 n2 n3 n6 n7 c8 n0 a2 a3 a6 a7 n8 a0 x y a8",
)


def _units_a(pooled: int) -> tuple[Unit, ...]:
    return (
        *((64, 1, 1), (48, 1, 1), (64, 5, 5), (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        (pooled, 1, 1),
    )


def _units_b(n: int) -> tuple[Unit, ...]:
    return (
        *((192, 1, 1), (n, 1, 1), (n, 1, 7), (192, 7, 1)),
        *((n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7), (192, 1, 1)),
    )


_UNITS_C: tuple[Unit, ...] = (
    *((320, 1, 1), (384, 1, 1), (384, 1, 3), (384, 3, 1)),
    *((448, 1, 1), (384, 3, 3), (384, 1, 3), (384, 3, 1), (192, 1, 1)),
)
_BLOCKS: tuple[tuple[_Kind, tuple[Unit, ...]], ...] = (
    (_A, _units_a(32)),
    (_A, _units_a(64)),
    (_A, _units_a(64)),
    (_HALVING_A, ((384, 3, 3), (64, 1, 1), (96, 3, 3), (96, 3, 3))),
    (_B, _units_b(128)),
    (_B, _units_b(160)),
    (_B, _units_b(160)),
    (_B, _units_b(192)),
    (
        _HALVING_B,
        ((192, 1, 1), (320, 3, 3), (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3)),
    ),
    (_C, _UNITS_C),
    (_C, _UNITS_C),
)


def _blocks() -> Iterator[tuple[int, _Kind, int, tuple[Unit, ...]]]:
    """(number, kind, number of its first convolution, its convolutions) of every mixed block."""
    first = len(_STEM)
    for number, (kind, units) in enumerate(_BLOCKS):
        yield number, kind, first, units
        first += len(units)


def _numbered(name: str, n: int) -> str:
    return f"{name}_{n}" if n else name


def _conv_name(n: int) -> str:
    return _numbered("conv2d", n)


def _bn_name(n: int) -> str:
    return _numbered("batch_normalization", n)


def _layer_names() -> tuple[str, ...]:
    kinds = {"c": _conv_name, "n": _bn_name, "a": lambda n: _numbered("activation", n)}
    counters = {"max_pooling2d": 2, "average_pooling2d": 0, "concatenate": 0}  # the stem's two

    def next_of(name: str) -> str:
        counters[name] += 1
        return _numbered(name, counters[name] - 1)

    names = ["input_layer"]
    for n in range(len(_STEM)):
        names += [kinds[kind](n) for kind in "cna"]
        names += {2: ["max_pooling2d"], 4: ["max_pooling2d_1"]}.get(n, [])
    for number, kind, first, _ in _blocks():
        for token in kind.order.split():
            if token == "p":
                name = next_of("max_pooling2d" if kind.pool is None else "average_pooling2d")
            elif token == "x":
                name = f"mixed9_{number - 9}"
            elif token == "y":
                name = next_of("concatenate")
            else:
                name = kinds[token[0]](first + int(token[1:]))
            names.append(name)
        names.append(f"mixed{number}")
    return tuple(names)


class InceptionV3(Backbone):
    """Without top: 21,802,784 parameters, 311 layers, 2048 maps; its batch norms have no scale.

    Stages: "activation", "activation_1", "max_pooling2d", "activation_3", "max_pooling2d_1",
    "mixed0", ..., "mixed10".
    """

    layers: tuple[str, ...] = _layer_names()

    def __init__(self, rng: np.random.Generator, *, channels: int = 3):
        super().__init__(epsilon=1e-3, momentum=0.99)
        n = channels
        for number, unit in enumerate(_STEM):
            padding = "SAME" if number == 2 else "VALID"
            self._unit(rng, number, n, unit, 2 if number == 0 else 1, padding)
            n = unit[0]
        for _, kind, first, units in _blocks():
            for path in kind.paths:
                inside = n
                for step in path:
                    # The last convolution of each path of a halving block halves.
                    halves = kind.pool is None and step == path[-1]
                    if not hasattr(self, _conv_name(first + step)):
                        stride, padding = (2, "VALID") if halves else (1, "SAME")
                        self._unit(rng, first + step, inside, units[step], stride, padding)
                    inside = units[step][0]
            out = sum(units[path[-1]][0] for path in kind.paths)
            if kind.pool is None:
                n += out
            else:
                self._unit(rng, first + kind.pool, n, units[kind.pool], 1, "SAME")
                n = out + units[kind.pool][0]
        self.features = n

    def _unit(
        self, rng: np.random.Generator, number: int, n_in: int, unit: Unit, stride: int, padding
    ) -> None:
        n_out, height, width = unit
        shape = (height, width, n_in, n_out)
        self._conv(rng, _conv_name(number), shape, stride=stride, padding=padding)
        self._bn(_bn_name(number), n_out, after=_conv_name(number), use_scale=False)

    def chain(self) -> Iterator[tuple[str, Stage]]:
        yield "activation", functools.partial(self._run, 0)
        yield "activation_1", functools.partial(self._run, 1)
        yield "max_pooling2d", lambda x, train: max_pool(self._run(2, x, train), 3, 2)
        yield "activation_3", functools.partial(self._run, 3)
        yield "max_pooling2d_1", lambda x, train: max_pool(self._run(4, x, train), 3, 2)
        for number, kind, first, _ in _blocks():
            yield f"mixed{number}", functools.partial(self._block, kind, first)

    def windows(self, stage: str) -> tuple[Window, ...]:
        pool = Window(3, 2)
        if stage.startswith("mixed"):
            kind, _ = _BLOCKS[int(stage.removeprefix("mixed"))]
            return (pool,) if kind.pool is None else ()
        if number := {"max_pooling2d": 2, "max_pooling2d_1": 4}.get(stage):
            return self._window(_conv_name(number)), pool
        return (self._window(stage.replace("activation", "conv2d")),)

    def _run(self, number: int, x: jax.Array | Grey, train: TrainLayers) -> jax.Array:
        return self._norm_relu(getattr(self, _conv_name(number))(x), _bn_name(number), train)

    def _block(self, kind: _Kind, first: int, x: jax.Array, train: TrainLayers) -> jax.Array:
        done: dict[tuple[int, ...], jax.Array] = {(): x}  # what begins alike is computed once
        for path in kind.paths:
            for end in range(1, len(path) + 1):
                if path[:end] not in done:
                    inside = done[path[: end - 1]]
                    done[path[:end]] = self._run(first + path[end - 1], inside, train)
        parts = [done[path] for path in kind.paths]
        if kind.pool is None:
            parts.append(max_pool(x, 3, 2))
        else:
            parts.append(self._pool(first + kind.pool, x, train))
        return jnp.concatenate(parts, axis=-1)

    def _pool(self, number: int, x: jax.Array, train: TrainLayers) -> jax.Array:
        # Keras pools, then convolves; a 1x1 convolution commutes with the mean, and this order
        # pools fewer channels.
        x = average_pool_same(getattr(self, _conv_name(number))(x))
        return self._norm_relu(x, _bn_name(number), train)
