"""Reads the pickles inside PyTorch files as inert data, without torch and without running anything.

Why a reader of our own: torch is a dependency of gigabytes that is needed nowhere else, and its
`weights_only` refuses the whole-module pickles that torchxrayvision publishes. Here a pickle is
walked opcode by opcode (`pickletools.genops`), classes and functions are only ever names, and no
opcode can call, import or construct what a file asks for: a name outside the short lists below is
refused, and one inside becomes a value of the few types of this module.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_DICTS = ("collections.OrderedDict", "builtins.dict", "__builtin__.dict")
_SETS = ("builtins.set", "__builtin__.set")
# What stands beside weights in real files and holds none: kept as an `Instance` without content.
_ASIDE = (
    *("torch.Size", "torch.device", "torch.float16", "torch.float32", "torch.float64"),
    *("_codecs.encode", "numpy.dtype", "numpy.ndarray"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
)
# Whole pickled networks.
_MODULES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "torchxrayvision.")
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
_MOST = 2_000_000  # opcodes; a state dict of DenseNet121 takes 22,000


class Refused(Exception):
    """The pickle asks for something that weights do not need; the message is a clause naming it."""


@dataclass(frozen=True)
class Name:
    """A class or function the pickle refers to. It is never looked up."""

    path: str  # "module.name"


@dataclass(frozen=True)
class Storage:
    """`numel` elements in a block of the file, known by `key`; `kind` is e.g. "FloatStorage"."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A strided view of a storage; sizes, strides and offset count elements and are unchecked."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


@dataclass(eq=False)
class Instance:
    """Stands for an object of the class `path`; `state` is what it would have as its attributes."""

    path: str
    state: Any = None


def load(stream: Any, storages: dict[str, Storage] | None = None) -> Any:
    """The value of one pickle, made of None, bool, int, float, str, bytes, tuple, list and dict
    (sets become lists) and of the types above.

    Args:
      stream: binary file, left behind the pickle.
      storages: takes up every storage the pickle refers to, by its key.
    Raises:
      Refused: when the pickle asks for a class, function or opcode outside the lists above, or
        holds more than `_MOST` opcodes.
      Exception: almost any, when the pickle is damaged.
    """
    machine = _Machine({} if storages is None else storages)
    for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if opcode.name == "STOP":
            break
        if number == _MOST:  # each may make an object, of a byte that compresses to nothing
            raise Refused(f"is described by more than {_MOST:,} pickle opcodes")
        if opcode.name in _LITERALS:
            machine.stack.append(argument)
        elif handler := _HANDLERS.get(opcode.name):
            handler(machine, argument)
        else:
            raise Refused(f"uses the pickle opcode {opcode.name}")
    return machine.stack.pop()


def _name(path: str) -> Name:
    """A permitted name.

    Raises:
      Refused: for all others.
    """
    known = (*_TENSORS, *_PARAMETERS, *_DICTS, *_SETS, *_ASIDE)
    module, _, name = path.rpartition(".")
    storage = module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage")
    if path in known or storage or path.startswith(_MODULES):
        return Name(path)
    raise Refused(f"asks for {path}")


def _made(function: Any, arguments: Any) -> Any:
    """What stands for `function(*arguments)`, which is never called."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no name")
    if function.path in _TENSORS:
        return Tensor(*arguments[:4])
    if function.path in _PARAMETERS:
        return arguments[0]
    if function.path in _SETS:
        return arguments[0] if arguments else []
    if function.path in _DICTS:
        pairs = arguments[0] if arguments else []  # Python 2 hands over a list of [key, value]
        made = {_key(key): value for key, value in pairs}
        if pairs:
            pairs.clear()  # or a small file could have one long list copied without end
        return made
    return Instance(function.path)


def _key(value: Any) -> Any:
    # Only of flat types: hashing a tuple nested deeply enough overflows the C stack.
    if value is None or isinstance(value, str | int | float | bytes):
        return value
    raise ValueError("a dictionary key of an unexpected type")


class _Machine:
    """Stack, marks and memo of the pickle machine. The memo is a dict: indices cost no memory."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise ValueError("the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self) -> None:
        self.put(len(self.memo))

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(flat) % 2:
            raise ValueError("items for something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target[_key(key)] = value

    def append(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("elements for something that is no list")
        self.stack[-1].extend(values)

    def call(self) -> None:
        function, arguments = self.last(2)
        self.push(_made(function, arguments))

    def call_with_keywords(self) -> None:
        function, arguments, _ = self.last(3)
        self.push(_made(function, arguments))

    def call_from_mark(self) -> None:
        function, *arguments = self.pop_to_mark()
        self.push(_made(function, tuple(arguments)))

    def call_named(self, path: str) -> None:
        self.push(_made(_name(path.replace(" ", ".")), tuple(self.pop_to_mark())))

    def build(self) -> None:
        """Attributes of a dictionary (`_metadata` of a state dict) hold no weights."""
        target, state = self.last(2)
        if isinstance(target, Instance):
            # (attributes, slots) for classes with slots.
            target.state = state[0] if isinstance(state, tuple) and state else state
        elif not isinstance(target, dict):
            raise ValueError("a state for something that takes none")
        self.push(target)

    def persistent(self) -> None:
        """The reference to a storage, or to a class together with its source code, unread."""
        identity = self.pop()
        kind, value, *others = identity
        if kind == "module":
            self.push(value)
            return
        if kind != "storage" or not isinstance(value, Name):
            raise ValueError("a reference to something that is no storage")
        key, _, numel = others[:3]
        if len(others) > 3 and others[3] is not None:
            raise Refused("holds a storage that is a view of another (PyTorch before 0.4)")
        if not isinstance(key, str) or type(numel) is not int:
            raise ValueError("a storage without key or size")
        storage = Storage(value.path.rpartition(".")[2], key, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("a storage that is described twice, differently")
        self.push(storage)

    def dict_from_mark(self) -> None:
        flat = self.pop_to_mark()
        self.push({})
        self.set_items(flat)

    def stack_name(self) -> None:
        module, name = self.last(2)
        self.push(_name(f"{module}.{name}"))

    def pop_mark_or_value(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()


_HANDLERS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop_mark_or_value(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "TUPLE1": lambda m, _: m.push(m.last(1)),
    "TUPLE2": lambda m, _: m.push(m.last(2)),
    "TUPLE3": lambda m, _: m.push(m.last(3)),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "DICT": lambda m, _: m.dict_from_mark(),
    "FROZENSET": lambda m, _: m.push(m.pop_to_mark()),
    "APPEND": lambda m, _: m.append(list(m.last(1))),
    "APPENDS": lambda m, _: m.append(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.pop_to_mark()),
    "SETITEM": lambda m, _: m.set_items(list(m.last(2))),
    "SETITEMS": lambda m, _: m.set_items(m.pop_to_mark()),
    "PUT": lambda m, index: m.put(int(index)),
    "BINPUT": lambda m, index: m.put(index),
    "LONG_BINPUT": lambda m, index: m.put(index),
    "MEMOIZE": lambda m, _: m.memoize(),
    "GET": lambda m, index: m.push(m.memo[int(index)]),
    "BINGET": lambda m, index: m.push(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.push(m.memo[index]),
    "GLOBAL": lambda m, path: m.push(_name(path.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m.stack_name(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "NEWOBJ_EX": lambda m, _: m.call_with_keywords(),
    "OBJ": lambda m, _: m.call_from_mark(),
    "INST": lambda m, path: m.call_named(path),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.persistent(),
}
