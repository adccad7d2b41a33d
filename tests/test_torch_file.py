"""PyTorch files are read without torch and without running anything; what is wrong is named."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch_files
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch_files import Call, Global, Persistent, module, storage, tensor, whole

from cxrjax.errors import UserError
from cxrjax.models import torch_file, torch_pickle, weights

WRITERS = {"zip": torch_files.write_zip, "legacy": torch_files.write_legacy}
CONTAINERS = pytest.mark.parametrize("container", WRITERS)
ORDERED = Global("collections", "OrderedDict")


# What is read


@given(data=st.data(), kind=st.sampled_from(sorted(torch_files.KINDS)), legacy=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_view_of_any_storage_is_read_as_numpy_reads_it(tmp_path_factory, data, kind, legacy):
    elements = st.integers(0, 100) if kind[0] in "ui" else st.integers(-1000, 1000)
    block = data.draw(npst.arrays(np.dtype(f"<{kind}"), st.integers(1, 40), elements=elements))
    size = data.draw(st.lists(st.integers(0, 4), max_size=4))
    stride = data.draw(st.lists(st.integers(0, 6), min_size=len(size), max_size=len(size)))
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if 0 not in size else 0
    offset = data.draw(st.integers(0, block.size))
    stored = storage("a", torch_files.KINDS[kind], block.size, legacy)
    root = {"layer.weight": tensor(stored, offset, size, stride, legacy)}
    path = tmp_path_factory.mktemp("torch") / "w.pth"
    WRITERS["legacy" if legacy else "zip"](path, root, {"a": block})
    if 0 not in size and offset + last >= block.size:
        with pytest.raises(UserError, match=r"layer\.weight, which lies outside its storage"):
            torch_file.read(path)
        return
    (name, value), *others = torch_file.read(path).items()
    assert (name, others) == ("layer.weight", [])
    expected = np.zeros(size)
    for place in np.ndindex(*size):
        expected[place] = block[offset + int(np.dot(place, stride))]
    np.testing.assert_array_equal(value, expected)
    assert value.dtype == (np.float32 if kind[0] == "f" or not expected.size else block.dtype)


@CONTAINERS
def test_bfloat16_is_the_upper_half_of_float32(tmp_path, container):
    values = np.array([1.0, -2.5, 3e38, 0.0], "<f4")
    upper = (values.view("<u4") >> 16).astype("<u2")
    stored = storage("0", "BFloat16Storage", 4, container == "legacy")
    path = WRITERS[container](tmp_path / "w.pt", {"w": tensor(stored, 0, [4], [1])}, {"0": upper})
    np.testing.assert_allclose(torch_file.read(path)["w"], values, rtol=1e-2)


def small_network(**attributes):
    """As torchxrayvision pickles one: the module itself, its classes by name."""
    inner = module(
        "torch.nn.modules.batchnorm.BatchNorm2d",
        buffers={"running_mean": whole("1", np.ones(2, "f4")), "scratch": whole("2", np.ones(3))},
        _non_persistent_buffers_set=Call(Global("__builtin__", "set"), (["scratch"],)),
    )
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (whole("0", np.ones(2)), True))
    return module(
        "torchxrayvision.models.DenseNet",
        parameters={"weight": parameter, "bias": None},
        children={"norm": inner, "gone": None},
        pathologies=["Mass"],
        **attributes,
    )


STORAGES = {"0": np.full(2, 5.0), "1": np.full(2, 6.0, "f4"), "2": np.full(3, 7.0)}


@CONTAINERS
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_network_gives_its_state_dict(tmp_path, container, wrapped):
    root = small_network()
    root = {"epoch": 3, "state_dict": root} if wrapped else root
    read = torch_file.read(WRITERS[container](tmp_path / "w.pt", root, STORAGES))
    assert {name: value.tolist() for name, value in read.items()} == {
        "weight": [5, 5],
        "norm.running_mean": [6, 6],
    }


@CONTAINERS
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, container, key):
    state = Call(ORDERED, (), {"_metadata": {"": {"version": 1}}})
    pairs = [["w", whole("0", np.ones(2))]]  # Python 2 hands OrderedDict a list of lists
    root = {"epoch": 1, "optimizer": {"state": {1: state}}, key: Call(ORDERED, (pairs,))}
    storages = {"0": STORAGES["0"]}
    read = torch_file.read(WRITERS[container](tmp_path / "w.pth.tar", root, storages))
    assert {name: value.tolist() for name, value in read.items()} == {"w": [5, 5]}


def test_a_file_is_known_by_its_content_where_the_suffix_lies(tmp_path):
    for number, legacy in enumerate((False, True)):
        path = torch_files.write_state(tmp_path / f"{number}.h5", {"w": np.ones(2)}, legacy)
        with pytest.raises(UserError, match="no PyTorch network known here"):
            weights.load_tensors(path)
    weights.save_npz(tmp_path / "w.npz", {"a/kernel": np.ones(2, np.float32)}, {})
    (tmp_path / "w.npz").rename(tmp_path / "w.pth")
    assert list(weights.load_tensors(tmp_path / "w.pth")[0]) == ["a/kernel"]


# What is refused


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def evil_pickles(marker):
    """Pickles that make a file called `marker` when they are loaded by pickle itself."""
    command = f"touch {marker}"
    for protocol in (0, 2, 4):
        yield "posix.system", pickle.dumps(Evil(os.system, (command,)), protocol)
        yield "posix.system", pickle.dumps({"w": [Evil(os.system, (command,))]}, protocol)
    yield "posix.system", b"(S'" + command.encode() + b"'\niposix\nsystem\n."
    yield "posix.system", b"(cposix\nsystem\nS'" + command.encode() + b"'\no."
    code = f"__import__('os').system({command!r})"
    yield "eval", pickle.dumps(Evil(eval, (code,)), 2)
    call = Call(Global("posix", "system"), (command,))
    yield "posix.system", torch_files.dumps(Call(ORDERED, ([["w", call]],)))
    yield "posix.system", torch_files.dumps(module("torch.nn.Linear", hooks=call))
    yield "posix.system", torch_files.dumps(Persistent(("storage", call, "0", "cpu", 1)))


@pytest.mark.parametrize("container", [*WRITERS, "bare"])
def test_a_pickle_that_wants_to_run_something_is_refused_unrun(tmp_path, container):
    marker = tmp_path / "was_here"
    for words, pickled in evil_pickles(marker):
        path = tmp_path / "w.pth"
        if container == "bare":
            path.write_bytes(pickled)
        else:
            WRITERS[container](path, None, pickled=pickled)
        with pytest.raises(UserError, match=words) as caught:
            weights.load_tensors(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert not marker.exists()
    pickle.loads(pickled_for_real := next(evil_pickles(marker))[1])
    assert marker.exists(), pickled_for_real  # and these pickles do work


@pytest.mark.parametrize(
    "function",
    [
        Global("torch.hub", "load"),
        Global("torch", "load"),
        Global("torch", "Storage.__init__"),
        Global("torch.storage", "_load_from_bytes"),
        Global("builtins", "getattr"),
        Global("os", "system"),
        Global("torch.utils.data", "x"),
        Global("torchvision", "models"),
        Global("__main__", "DenseNet121"),
    ],
)
def test_other_names_are_refused_by_name(tmp_path, function):
    path = torch_files.write_zip(tmp_path / "w.pt", {"w": Call(function, ("x",))})
    with pytest.raises(UserError, match=f"asks for {function.module}.{function.name}"):
        torch_file.read(path)


def test_permitted_names_are_never_looked_up(monkeypatch):
    """The stand-ins are data: their modules need not exist and no attribute of ours is set."""
    call = Call(Global("torch.nn", "functional.__class__"), ("x",), {"state": 1, "__class__": 2})
    value = torch_pickle.load(io.BytesIO(torch_files.dumps(call)))
    assert type(value) is torch_pickle.Instance
    assert (value.path, value.state) == (
        "torch.nn.functional.__class__",
        {"state": 1, "__class__": 2},
    )


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"Pid\n", b"\x97", b"\x96" + bytes(8)])
def test_other_opcodes_are_refused(tmp_path, opcode):
    path = torch_files.write_zip(tmp_path / "w.pt", None, pickled=b"\x80\x02" + opcode + b".")
    with pytest.raises(UserError, match="pickle opcode"):
        torch_file.read(path)


def four(offset=0, size=(4,), stride=(1,), kind="FloatStorage", numel=4):
    return {"conv.weight": tensor(storage("0", kind, numel), offset, size, stride)}


@CONTAINERS
@pytest.mark.parametrize(
    ("root", "words"),
    [
        (four(offset=1), r"conv\.weight, which lies outside its storage"),
        (four(size=(2, 2), stride=(3, 1)), r"conv\.weight, which lies outside"),
        (four(offset=-1), r"conv\.weight with a negative"),
        (four(stride=(-1,)), r"conv\.weight with a negative"),
        (four(size=(1 << 40,), stride=(0,)), r"conv\.weight, with which it is larger"),
        (four(size=(1 << 70,), stride=(0,)), r"conv\.weight, with which it is larger"),
        (four(kind="ComplexFloatStorage"), r"ComplexFloatStorage"),
        (four(numel=5), r"cut short"),
        ({"conv.weight": 3}, r"'conv\.weight', which is no tensor"),
        ({"conv.weight": four()["conv.weight"], 3: 4}, "holds 3, which is no tensor"),
        ({}, "no tensors"),
        ([four()], "neither a state dict nor a network"),
        (module("torch.nn.Linear", children={"a": 3}), "neither a state dict nor a network"),
        (Call(Global("torch.nn", "Linear"), ()), "neither a state dict nor a network"),
    ],
)
def test_a_tensor_that_is_none_is_named(tmp_path, container, root, words):
    storages = {"0": np.ones(4, "f4")} if b"storage" in torch_files.dumps(root) else {}
    path = WRITERS[container](tmp_path / "w.pt", root, storages)
    with pytest.raises(UserError, match=words) as caught:
        torch_file.read(path)
    assert "\n" not in str(caught.value)


def test_one_storage_cannot_be_spread_over_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAX_BYTES", 1 << 20)
    spread = tensor(storage("0", "FloatStorage", 4), 0, (1 << 17,), (0,))
    root = {name: spread for name in "abc"}
    path = torch_files.write_zip(tmp_path / "w.pt", root, {"0": np.ones(4, "f4")})
    with pytest.raises(UserError, match="holds c, with which it is larger"):
        torch_file.read(path)


def test_a_network_that_contains_itself_ends(tmp_path):
    inside = torch_files.emit(module("torch.nn.A", children={"a": 0, "b": 0}))
    # The memo holds the network itself where its children should be.
    looped = inside.replace(b"R}(", b"Rq\x00}(", 1).replace(torch_files.emit(0), b"h\x00")
    path = torch_files.write_zip(tmp_path / "w.pt", None, pickled=b"\x80\x02" + looped + b".")
    with pytest.raises(UserError, match="nested without end"):
        torch_file.read(path)


def test_a_huge_memo_index_or_length_takes_no_memory(tmp_path):
    for opcodes in (b"Nr\xff\xff\xff\xff", b"X\xff\xff\xff\xffab", b"\x8e" + b"\xff" * 8):
        path = torch_files.write_zip(tmp_path / "w.pt", None, pickled=b"\x80\x02" + opcodes + b".")
        with pytest.raises(UserError):
            torch_file.read(path)


def test_a_pickle_of_endless_small_values_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MOST", 100)
    for count, words in ((99, "holds no tensors"), (100, "more than 100 pickle opcodes")):
        pickled = b"\x80\x02" + b"}" * count + b"."
        path = torch_files.write_zip(tmp_path / "w.pt", None, pickled=pickled)
        with pytest.raises(UserError, match=words):
            torch_file.read(path)


def test_deeply_nested_values_do_not_overflow_the_stack(tmp_path):
    """A tuple in a tuple in a tuple ... as dictionary key: Python would hash it recursively."""
    pickled = b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."
    path = torch_files.write_zip(tmp_path / "w.pt", None, pickled=pickled)
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


# What is damaged


def test_what_is_wrong_with_the_container_is_said(tmp_path):
    state = {"conv.weight": np.ones(400, "f4"), "conv.bias": np.ones(4, "f4")}
    good = torch_files.write_state(tmp_path / "good.pth", state)
    legacy = torch_files.write_state(tmp_path / "legacy.pth", state, legacy=True)
    (tmp_path / "page.pth").write_bytes(b"\n<!DOCTYPE html><html>sign in</html>")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-30])
    (tmp_path / "short.pth").write_bytes(legacy.read_bytes()[:-20])
    (tmp_path / "early.pth").write_bytes(legacy.read_bytes()[:90])
    (tmp_path / "empty.pth").write_bytes(b"")
    root = {"conv.weight": whole("0", np.ones(2))}
    torch_files.write_zip(tmp_path / "script.pt", root, **{"constants.pkl": b"x"})
    torch_files.write_zip(tmp_path / "big.pt", root, STORAGES, byteorder=b"big")
    torch_files.write_legacy(tmp_path / "big.pth", root, STORAGES, little=False)
    torch_files.write_zip(tmp_path / "lost.pt", root)
    twice = torch_files.write_zip(tmp_path / "twice.pt", root)
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data.pkl", b"x")
    for name, words in {
        "page.pth": "is a web page",
        "cut.pth": "damaged, cut short",
        "short.pth": r"is cut short in conv\.bias",
        "early.pth": "damaged, cut short",
        "empty.pth": "damaged, cut short",
        "script.pt": "TorchScript",
        "big.pt": "big-endian",
        "big.pth": "big-endian",
        "lost.pt": "damaged, cut short",
        "twice.pt": "two members of one name",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            weights.load_tensors(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


@given(data=st.data(), container=st.sampled_from(sorted(WRITERS)), inside=st.booleans())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_never_end_in_another_exception(tmp_path_factory, data, container, inside):
    """`inside`: the pickle is damaged before it is packed, so that no checksum tells."""
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    root = small_network()
    pickled = bytearray(torch_files.dumps(root))
    places = st.tuples(st.integers(0, 4000), st.integers(0, 255))
    damage = data.draw(st.lists(places, min_size=1, max_size=6))
    if inside:
        for place, value in damage:
            pickled[place % len(pickled)] = value
    WRITERS[container](path, None, STORAGES, pickled=bytes(pickled))
    if not inside:
        content = bytearray(path.read_bytes())
        for place, value in damage:
            content[place % len(content)] = value
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        torch_file.read(path)
    except UserError as error:
        assert str(path) in str(error)
