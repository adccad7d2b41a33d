"""PyTorch files written by hand, without torch: pickles opcode by opcode, in both containers."""

import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
KINDS = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
}


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass
class Call:
    function: Any
    arguments: tuple
    state: Any = None


@dataclass
class Persistent:
    value: tuple


def emit(value):
    """The opcodes (protocol 2, no memo) that leave `value` on the stack."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"\x8a\x0a" + value.to_bytes(10, "little", signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, tuple):
        return b"(" + b"".join(map(emit, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(emit, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(emit(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, Persistent):
        return emit(value.value) + b"Q"
    made = emit(value.function) + emit(value.arguments) + b"R"
    return made if value.state is None else made + emit(value.state) + b"b"


def dumps(value):
    return b"\x80\x02" + emit(value) + b"."


def storage(key, kind, numel, legacy=False):
    location = ("cpu", numel) + ((None,) if legacy else ())
    return Persistent(("storage", Global("torch", kind), key, *location))


def tensor(stored, offset, size, stride, legacy=False):
    """`stored` is what `storage` gives; sizes and strides count elements."""
    hooks = Call(Global("collections", "OrderedDict"), ())
    name = "_rebuild_tensor" if legacy else "_rebuild_tensor_v2"
    rest = () if legacy else (False, hooks)
    return Call(Global("torch._utils", name), (stored, offset, tuple(size), tuple(stride), *rest))


def whole(key, array, legacy=False):
    """A tensor that is the whole of its storage."""
    array = np.ascontiguousarray(array)
    stride = [step // array.itemsize for step in array.strides]
    stored = storage(key, KINDS[array.dtype.str[1:]], array.size, legacy)
    return tensor(stored, 0, array.shape, stride, legacy)


def module(cls, parameters=(), buffers=(), children=(), **attributes):
    """A pickled network: attributes as torch.nn.Module has them."""
    path, _, name = cls.rpartition(".")
    state = {
        "training": True,
        "_parameters": dict(parameters),
        "_buffers": dict(buffers),
        "_modules": dict(children),
        **attributes,
    }
    return Call(Global(path, name), (), state)


def write_zip(path, root, storages=(), *, pickled=None, folder="archive", **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", dumps(root) if pickled is None else pickled)
        for name, content in {"byteorder": b"little", "version": b"3\n", **members}.items():
            archive.writestr(f"{folder}/{name}", content)
        for key, array in dict(storages).items():
            archive.writestr(f"{folder}/data/{key}", np.asarray(array).tobytes())
    return path


def write_legacy(path, root, storages=(), *, pickled=None, little=True):
    system = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    parts = [MAGIC, 1001, system]
    content = b"".join(pickle.dumps(part, 2) for part in parts)
    content += dumps(root) if pickled is None else pickled
    content += pickle.dumps(list(dict(storages)), 2)
    for array in dict(storages).values():
        array = np.asarray(array)
        content += struct.pack("<q", array.size) + array.tobytes()
    path.write_bytes(content)
    return path


def write_state(path, state, legacy=False):
    """A state dict {name: array} in either container."""
    storages = {str(number): value for number, value in enumerate(state.values())}
    root = {name: whole(str(n), state[name], legacy) for n, name in enumerate(state)}
    return (write_legacy if legacy else write_zip)(path, root, storages)
