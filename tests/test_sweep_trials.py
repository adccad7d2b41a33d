"""The ledger of a sweep loses nothing, whenever and however often its writers are killed."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_records import arrays, key, record

from cxrjax.errors import UserError
from cxrjax.sweep import trials
from cxrjax.sweep.trials import Trials

ROOT = Path(__file__).resolve().parents[1]
ACCENTS = {"data.dir": "/x/Röntgen", "train.learning_rate": 0.001}


def filled(folder, count):
    ledger = Trials(folder)
    for number in range(count):
        assert ledger.append(record(number, ACCENTS), arrays(record(number)))
    return ledger


def test_what_was_appended_is_read_back(tmp_path):
    ledger = Trials(tmp_path / "new" / "sweep")
    assert ledger.records() == {} and not (tmp_path / "new").exists()
    ends = [record(2), record(0, status="diverged"), record(1, status="out_of_memory")]
    for each in ends:
        assert ledger.append(each, arrays(each))
    for reader in (ledger, Trials(ledger.folder)):
        assert list(reader.records().values()) == ends  # in their order
        assert reader.over() == {key(0), key(1), key(2)}
        for name, array in arrays(ends[0]).items():
            np.testing.assert_array_equal(reader.arrays(key(2))[name], array)
    assert [json.loads(line) for line in ledger.file.read_text().splitlines()] == ends


def test_a_later_outcome_of_a_trial_changes_neither_line_nor_arrays(tmp_path):
    ledger = filled(tmp_path, 2)
    before = ledger.file.read_bytes()
    for writer in (ledger, Trials(tmp_path)):
        assert not writer.append(record(1, accuracy=0.99), {"history": np.zeros([1, 4])})
    assert ledger.file.read_bytes() == before
    np.testing.assert_array_equal(ledger.arrays(key(1))["history"], arrays(record(1))["history"])
    with open(ledger.file, "a") as file:  # two ledgers put together by hand
        file.write(json.dumps(record(1, accuracy=0.99)) + "\n")
    assert Trials(tmp_path).records()[key(1)] == ledger.records()[key(1)] == record(1, ACCENTS)


def test_a_trial_short_of_memory_may_be_repeated(tmp_path):
    ledger = Trials(tmp_path)
    assert ledger.append(record(0, status="out_of_memory"), {})
    assert ledger.append(record(0, accuracy=0.9), arrays(record(0)))
    assert Trials(tmp_path).records() == ledger.records() == {key(0): record(0, accuracy=0.9)}
    assert not ledger.append(record(0, status="out_of_memory"), {})


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    ledger = filled(tmp_path_factory.mktemp("three"), 3)
    return ledger.file.read_bytes()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_cut_at_any_byte_the_rest_is_read_and_the_next_line_stays_whole(
    three, tmp_path_factory, data
):
    cut = data.draw(st.integers(0, len(three)))
    junk = data.draw(st.sampled_from([b"", b"\0" * 40, b'{"key": "\xff']))  # as after a power cut
    folder = tmp_path_factory.mktemp("cut")
    (folder / trials.FILE).write_bytes(three[:cut] + junk)
    # A line that lacks nothing but its end counts, where nothing else took the place of the end.
    whole = three[:cut].count(b"\n") + (not junk and three[cut : cut + 1] == b"\n")
    reader = Trials(folder)
    assert list(reader.records()) == [key(number) for number in range(whole)]
    writer = Trials(folder)
    for number in range(4):
        assert writer.append(record(number, ACCENTS), {}) == (number >= whole)
    for each in (reader, writer, Trials(folder)):
        assert each.records() == {key(number): record(number, ACCENTS) for number in range(4)}
    assert (folder / trials.FILE).read_bytes().startswith(three[:cut] + junk)  # it only grows


def test_every_single_cut_of_the_last_line(three, tmp_path):
    begin = three[:-1].rfind(b"\n") + 1
    for cut in range(begin, len(three)):
        (tmp_path / trials.FILE).write_bytes(three[:cut])
        assert len(Trials(tmp_path).records()) == 2 + (cut == len(three) - 1), cut


def test_a_damaged_line_is_told_once_with_its_place_and_costs_only_its_trial(tmp_path, capsys):
    ledger = filled(tmp_path, 3)
    lines = ledger.file.read_bytes().splitlines(keepends=True)
    ledger.file.write_bytes(lines[0] + lines[1][:30] + b"\n" + lines[2])
    reader = Trials(tmp_path)
    assert list(reader.records()) == [key(0), key(2)] == list(reader.records())
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{ledger.file}: line 2 " in said
    assert reader.append(record(1), {})
    assert list(Trials(tmp_path).records()) == [key(0), key(2), key(1)]


def spoilt(*path, value):
    """A line in which the entry of this path is another."""
    changed = json.loads(json.dumps(record(1)))
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(changed).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b'{"trial": 3}',
        spoilt("key", value="../../x"),
        spoilt("values", value=None),
        spoilt("status", value="foo"),
        spoilt("status", value=["finished"]),
        spoilt("seed", value="0"),
        spoilt("epochs", value=None),
        spoilt("seconds", value="long"),
        spoilt("seconds", value=float("nan")),
        spoilt("best_epoch", value=99),
        spoilt("best_epoch", value=0),
        spoilt("validation", value=None),
        spoilt("validation", "accuracy", value=None),
        spoilt("validation", "accuracy", "low", value=None),
        spoilt("validation", "loss", value="x"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, line):
    (tmp_path / trials.FILE).write_bytes(json.dumps(record(0)).encode() + b"\n" + line + b"\n")
    ledger = Trials(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"trials\.jsonl .* line 2; restore"):
            ledger.records()
    with pytest.raises(UserError, match="line 2"):
        ledger.append(record(1), {})
    assert (tmp_path / trials.FILE).read_bytes().endswith(line + b"\n")
    with pytest.raises(ValueError, match="not a trial"):
        Trials(tmp_path / "other").append({**record(0), "key": "../x"}, {})


def test_a_ledger_put_in_place_of_another_is_read_anew(tmp_path):
    ledger = filled(tmp_path, 3)
    ledger.file.write_text(json.dumps(record(7)) + "\n")
    assert list(ledger.records()) == [key(7)]
    ledger.file.unlink()
    assert ledger.records() == {}


def test_missing_damaged_or_pickled_arrays_are_told(tmp_path):
    ledger = filled(tmp_path, 1)
    path = tmp_path / "trials" / f"{key(0)}.npz"
    whole = path.read_bytes()
    np.savez(path, history=np.array([{}], object))
    pickled = path.read_bytes()
    for content in (pickled, whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"npz cannot be read .* repeated"):
            ledger.arrays(key(0))
    path.unlink()
    with pytest.raises(UserError, match="npz cannot be read"):
        ledger.arrays(key(0))


def test_a_full_disk_is_told_and_leaves_a_ledger_that_goes_on(tmp_path, monkeypatch):
    ledger = filled(tmp_path, 2)
    write, room = os.write, [100]

    def until_full(descriptor, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, bytes(data)[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", until_full)
        with pytest.raises(UserError, match="no space left on device; free some room or"):
            ledger.append(record(2), {})
    assert list(Trials(tmp_path).records()) == [key(0), key(1)] == list(ledger.records())
    assert ledger.append(record(2), {})
    assert list(Trials(tmp_path).records()) == [key(0), key(1), key(2)]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .* choose another --workdir"):
        Trials(tmp_path / "file").append(record(0), {})
    if os.geteuid():
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o555)
        with pytest.raises(UserError, match="permission denied"):
            Trials(locked).append(record(0), {})
    (tmp_path / "folder" / trials.FILE).mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be read: is a directory"):
        Trials(tmp_path / "folder").records()


def test_arrays_are_on_the_disk_before_their_line_and_the_line_before_append_returns(
    tmp_path, monkeypatch
):
    done = []
    fsync = os.fsync

    def noted(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    Trials(tmp_path).append(record(0), arrays(record(0)))
    # The arrays, the folder that names them, the sweep's folder with the new ledger, the ledger.
    assert done == [key(0), "trials", tmp_path.name, "trials"]
    Trials(tmp_path).append(record(1), arrays(record(1)))
    assert done[4:] == [key(1), "trials", "trials"]


WRITER = """
import sys
import numpy as np
from sweep_records import record
from cxrjax.sweep.trials import Trials
folder, first, count, common = sys.argv[1], *map(int, sys.argv[2:])
ledger = Trials(folder)
for number in range(first, first + count):
    ledger.append(record(number), {"history": np.full([50, 4], number, float)})
    ledger.append(record(number % common), {"history": np.full([50, 4], number % common, float)})
    print(number, flush=True)
"""


def writer(folder, first, count, common=1):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(first), str(count), str(common)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        text=True,
    )


def all_whole(folder):
    """Keys in the ledger, whose arrays must all be there and their own."""
    ledger = Trials(folder)
    found = ledger.records()
    for name in found:
        assert (ledger.arrays(name)["history"] == int(name, 16)).all()
    return set(found)


def test_killed_again_and_again_nothing_told_as_written_is_lost(tmp_path):
    told = set()
    for turn in range(4):
        process = writer(tmp_path, 1000 * turn, 1000)
        assert process.stdout is not None
        told.add(int(process.stdout.readline()))
        time.sleep(0.013 * (turn + 1))
        process.send_signal(signal.SIGKILL)
        told |= {int(line) for line in process.stdout.read().splitlines()}
        process.wait()
        assert process.returncode == -signal.SIGKILL
        assert {key(number) for number in told} <= all_whole(tmp_path)
    lines = (tmp_path / trials.FILE).read_bytes().splitlines()
    assert len(lines) <= len(all_whole(tmp_path)) + 4  # at most one cut short a kill


def test_processes_that_append_at_the_same_time_lose_and_repeat_nothing(tmp_path):
    processes = [writer(tmp_path, 1000 * part, 60, common=7) for part in range(1, 4)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    wanted = {key(1000 * part + k) for part in range(1, 4) for k in range(60)}
    wanted |= {key(k) for k in range(7)}
    assert all_whole(tmp_path) == wanted
    lines = (tmp_path / trials.FILE).read_text().splitlines()
    assert len(lines) == len(wanted)
    assert len({json.loads(line)["key"] for line in lines}) == len(wanted)
