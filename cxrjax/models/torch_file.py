"""Reads the tensors of PyTorch files: the zip format, the one before 1.6, state dicts, modules."""

from __future__ import annotations

import contextlib
import functools
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.errors import UserError
from cxrjax.models import file_kind, torch_pickle
from cxrjax.models.file_kind import MAX_BYTES
from cxrjax.models.torch_pickle import Instance, Refused, Storage, Tensor

_KINDS = {
    "FloatStorage": np.dtype("f4"),
    "DoubleStorage": np.dtype("f8"),
    "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": np.dtype("u2"),  # the upper half of a float32
    "LongStorage": np.dtype("i8"),
    "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_MAGIC = 0x1950A86A20F9469CFC6C
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys under which trainers keep it
_DEEPEST, _MOST = 32, 100_000  # nesting and number of modules
_SAVE_STATE = "load it where you trust it and save only its state_dict()"

Fetch = Callable[[Storage], Any]  # the bytes of a storage


class _Unfit(Exception):
    """What the file holds is no weights, or not whole; the message is a clause naming what."""


def read(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a PyTorch file under their own names; floating ones become float32.

    A state dict, one wrapped as {"state_dict": ...}, or a whole pickled network of torch.nn,
    torchvision or torchxrayvision. Nothing in the file is executed.

    Raises:
      UserError: when it is no such file, is cut short, asks for anything but weights, or holds a
        tensor that lies outside its storage; it names which.
    """
    try:
        with contextlib.ExitStack() as files:
            if zipfile.is_zipfile(path):
                root, fetch = _open_zip(files.enter_context(zipfile.ZipFile(path)))
            else:
                root, fetch = _open_legacy(path)
            tensors: dict[str, np.ndarray] = {}
            left = MAX_BYTES
            for name, tensor in _named(_unwrapped(root)):
                if name in tensors:
                    raise _Unfit(f"holds {name} twice")
                tensors[name] = value = _value(name, tensor, fetch, left)
                left -= value.nbytes
        if not tensors:
            raise _Unfit("holds no tensors")
        return tensors
    except Refused as refused:
        raise UserError(
            f"{path} {refused}, which no weights need, so it is not read and nothing in it was "
            f"executed; {_SAVE_STATE}."
        ) from refused
    except _Unfit as unfit:
        raise UserError(f"{path} {unfit}; get the file again, or {_SAVE_STATE}.") from unfit
    except OSError as error:
        raise UserError(f"weight file {path} cannot be read: {error.strerror}.") from error
    except Exception as error:  # damaged files make zipfile and pickletools raise almost anything
        raise file_kind.damaged(path, "a PyTorch file") from error


def _open_zip(archive: zipfile.ZipFile) -> tuple[Any, Fetch]:
    """What data.pkl describes, and how to get at the members data/KEY beside it."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise _Unfit("holds two members of one name")
    if sum(info.file_size for info in infos.values()) > 2 * MAX_BYTES:
        raise _Unfit("claims more data than weights have")
    (pickle_name,) = (name for name in infos if name.endswith("/data.pkl"))
    folder = pickle_name.removesuffix("data.pkl")
    if folder + "constants.pkl" in infos:
        raise _Unfit("is a TorchScript program")
    root = torch_pickle.load(io.BytesIO(archive.read(pickle_name)))
    order = archive.read(folder + "byteorder") if folder + "byteorder" in infos else b"little"
    _refuse_big_endian(order == b"little")
    # Tensors can share a storage, which is then unpacked once.
    member = functools.cache(lambda key: archive.read(f"{folder}data/{key}"))
    return root, lambda storage: member(storage.key)


def _open_legacy(path: Path) -> tuple[Any, Fetch]:
    """Five pickles (magic number, version, system, content, keys), then the storages in order."""
    if path.stat().st_size > 2 * MAX_BYTES:
        raise _Unfit("is larger than weights are")
    content = path.read_bytes()
    stream = io.BytesIO(content)
    if torch_pickle.load(stream) != _MAGIC:
        raise ValueError("not PyTorch's magic number")
    torch_pickle.load(stream)
    _refuse_big_endian(torch_pickle.load(stream)["little_endian"] is True)
    storages: dict[str, Storage] = {}
    root = torch_pickle.load(stream, storages)
    keys = torch_pickle.load(stream)
    starts: dict[str, int] = {}
    position = stream.tell()
    for key in keys:
        # Its length in elements, then the elements.
        length = int.from_bytes(content[position : position + 8], "little")
        if key in starts or (position < len(content) and length != storages[key].numel):
            raise ValueError("a storage that is listed twice, or is not as long as it should be")
        starts[key] = position + 8
        position += 8 + length * _dtype(storages[key].kind).itemsize

    def fetch(storage: Storage) -> memoryview:
        start = starts[storage.key]
        return memoryview(content)[start : start + storage.numel * _dtype(storage.kind).itemsize]

    return root, fetch


def _dtype(kind: str) -> np.dtype:
    if kind not in _KINDS:
        raise _Unfit(f"holds a {kind}")
    return _KINDS[kind]


def _refuse_big_endian(little: bool) -> None:
    if not little:
        raise _Unfit("was saved by a big-endian machine")


def _unwrapped(root: Any) -> Any:
    """The state dict or network inside a training checkpoint."""
    if isinstance(root, dict):
        for key in _WRAPPERS:
            if isinstance(root.get(key), dict | Instance):
                return root[key]
    return root


def _named(root: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that `state_dict()` would give, by name."""
    if isinstance(root, dict):
        for name, value in root.items():
            if not isinstance(value, Tensor) or not isinstance(name, str):
                raise _Unfit(f"holds {name!r}, which is no tensor")
            yield name, value
        return
    todo, visited = [("", root, 0)], 0
    while todo:
        prefix, module, depth = todo.pop()
        visited += 1
        if not isinstance(module, Instance) or not isinstance(module.state, dict):
            raise _Unfit("holds neither a state dict nor a network")
        if depth > _DEEPEST or visited > _MOST:
            raise _Unfit("holds modules nested without end")
        temporary = module.state.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, value in module.state[group].items():
                if isinstance(value, Tensor) and name not in temporary:
                    yield prefix + name, value
        children = module.state["_modules"].items()
        todo += [(f"{prefix}{name}.", child, depth + 1) for name, child in children if child]


def _value(name: str, tensor: Tensor, fetch: Fetch, left: int) -> np.ndarray:
    """The elements of `tensor`, copied; `left` bytes may be used.

    Raises:
      Refused: when they are not all inside its storage, or are too many.
    """
    storage, offset, size, stride = tensor.storage, tensor.offset, tensor.size, tensor.stride
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Storage) or len(size) != len(stride) or len(size) > 8:
        raise ValueError("a tensor without storage or shape")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise _Unfit(f"holds {name} with a negative size, stride or offset")
    if storage.kind not in _KINDS:
        raise _Unfit(f"holds {name} as {storage.kind}, which is no weight")
    dtype = _KINDS[storage.kind].newbyteorder("<")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel:
        raise _Unfit(f"holds {name}, which lies outside its storage")
    count = 1
    for n in size:
        count *= n
    if max(count, storage.numel) * max(4, dtype.itemsize) > left:
        raise _Unfit(f"holds {name}, with which it is larger than weights are")
    data = fetch(storage)
    if len(data) < storage.numel * dtype.itemsize:
        raise _Unfit(f"is cut short in {name}")
    if count == 0:
        return np.zeros(size, np.float32)
    flat = np.frombuffer(data, dtype, storage.numel)[offset:]
    steps = [step * dtype.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(flat, size, steps, writeable=False)
    if storage.kind == "BFloat16Storage":
        return (view.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # the infinity it becomes is reported by the caller
        return view.astype(np.float32 if dtype.kind == "f" else dtype.newbyteorder("="))
