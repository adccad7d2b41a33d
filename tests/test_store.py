"""The decoded store: built once, the same for all, whole or not there at all."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxrjax.data import store as store_module
from cxrjax.data.folder import open_folder
from cxrjax.data.images import BrokenImage
from cxrjax.data.radiography import open_radiography
from cxrjax.data.sources import Record
from cxrjax.data.store import open_store
from cxrjax.errors import UserError
from cxrjax.runtime import cache_root


class Drawn:
    """Twelve images of known grey level; some broken, some with masks."""

    classes = ("A", "B")

    def __init__(self, broken=(), masked=(), n=12):
        self.records = tuple(
            Record(f"{'AB'[i % 2]}/{i:02}.png", i % 2, "train", f"p{i // 3}", None)
            for i in range(n)
        )
        self.broken, self.masked, self.reads = set(broken), set(masked), 0

    def fingerprint(self):
        return f"drawn {len(self.records)} {sorted(self.broken)} {sorted(self.masked)}"

    def read(self, i, size):
        self.reads += 1
        time.sleep(0.002 * (i % 3))  # threads finish out of order
        if i in self.broken:
            raise BrokenImage(self.records[i].name, "torn")
        return np.full((size, size), 10 + i, np.uint8)

    def read_mask(self, i, size):
        return np.full((size, size), 255, np.uint8) if i in self.masked else None


def levels(store):
    return store.images[:, 0, 0].tolist()


def leftovers(cache):
    return [path.name for path in cache.iterdir() if not path.name.startswith("store-")]


def test_built_once_then_mapped(tmp_path):
    source = Drawn()
    store = open_store(source, 16, tmp_path, False)
    assert isinstance(store.images, np.memmap) and not store.images.flags.writeable
    assert store.images.shape == (12, 16, 16) and store.images.dtype == np.uint8
    assert levels(store) == list(range(10, 22))
    assert (store.images == store.images[:, :1, :1]).all()
    assert store.labels.dtype == np.int32 and store.labels.tolist() == [0, 1] * 6
    assert store.names == tuple(r.name for r in source.records)
    assert store.classes == ("A", "B") and store.given_split == ("train",) * 12
    assert store.patients[3:7] == ("p1", "p1", "p1", "p2") and store.sources == (None,) * 12
    assert store.masks is None and not store.has_mask.any() and store.skipped == ()
    assert source.reads == 12
    again = open_store(source, 16, tmp_path, False)
    assert source.reads == 12 and again.key == store.key and again.root == store.root
    assert sorted(p.name for p in store.root.iterdir()) == ["images.npy", "store.json"]
    assert leftovers(tmp_path) == []


def test_plain_numpy_reads_the_store(tmp_path):
    store = open_store(Drawn(masked=[1]), 16, tmp_path, False)
    np.testing.assert_array_equal(np.load(store.root / "images.npy"), store.images)
    np.testing.assert_array_equal(np.load(store.root / "masks.npy"), store.masks)


def test_size_content_and_format_make_another_store(tmp_path, monkeypatch):
    keys = {open_store(Drawn(), 16, tmp_path, False).key}
    keys.add(open_store(Drawn(), 17, tmp_path, False).key)
    keys.add(open_store(Drawn(n=10), 16, tmp_path, False).key)
    monkeypatch.setattr(store_module, "FORMAT", 99)
    keys.add(open_store(Drawn(), 16, tmp_path, False).key)
    assert len(keys) == 4


@pytest.mark.parametrize("masked", [[0], [5, 7], [11], range(12)])
def test_masks_stay_beside_their_images(tmp_path, masked):
    store = open_store(Drawn(masked=masked, broken=[2, 6]), 16, tmp_path, True)
    kept = [i for i in range(12) if i not in (2, 6)]
    assert store.masks is not None and store.masks.shape == store.images.shape
    expected = [255 * (i in set(masked)) for i in kept]
    assert store.masks[:, 3, 3].tolist() == expected == (store.has_mask * 255).tolist()


def test_broken_images_stop_the_build_and_are_named(tmp_path):
    with pytest.raises(UserError, match=r"2 of the 12 .*A/04.png \(torn\).*skip_broken=True"):
        open_store(Drawn(broken=[4, 7]), 16, tmp_path, False)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="most of the images cannot be read: 7 of the 12"):
        open_store(Drawn(broken=range(7)), 16, tmp_path, False)
    for skip in (False, True):
        with pytest.raises(UserError, match="none of the 12 images"):
            open_store(Drawn(broken=range(12)), 16, tmp_path, skip)
    with pytest.raises(UserError, match="no image of class 'B'"):
        open_store(Drawn(broken=range(1, 12, 2)), 16, tmp_path, True)


def test_skipped_images_are_named_and_never_taken_for_whole(tmp_path, capsys):
    source = Drawn(broken=[0, 7])
    for _ in range(2):  # when built and when opened
        store = open_store(source, 16, tmp_path, True)
        assert store.skipped == (("A/00.png", "torn"), ("B/07.png", "torn"))
        assert levels(store) == [10 + i for i in range(12) if i not in (0, 7)]
        assert store.labels.tolist() == [i % 2 for i in range(12) if i not in (0, 7)]
        assert "A/00.png" not in store.names and len(store.names) == 10
        assert "left out A/00.png: torn" in capsys.readouterr().err
    assert source.reads == 12
    described = json.loads((store.root / "store.json").read_text())
    assert described["skipped"][1] == {"name": "B/07.png", "reason": "torn"}
    with pytest.raises(UserError, match="skip_broken"):
        open_store(source, 16, tmp_path, False)


def test_skip_broken_shares_the_store_when_nothing_is_broken(tmp_path):
    source = Drawn()
    key = open_store(source, 16, tmp_path, True).key
    assert open_store(source, 16, tmp_path, False).key == key and source.reads == 12


def truncate(path, change):
    os.truncate(path, path.stat().st_size + change)


DAMAGE = {
    "images cut": lambda root: truncate(root / "images.npy", -1),
    "images longer": lambda root: truncate(root / "images.npy", 8),
    "images gone": lambda root: (root / "images.npy").unlink(),
    "other images": lambda root: np.save(root / "images.npy", np.zeros((12, 16, 16), np.int8)),
    "objects": lambda root: np.save(root / "images.npy", np.array([{}]), allow_pickle=True),
    "masks cut": lambda root: truncate(root / "masks.npy", -300),
    "json gone": lambda root: (root / "store.json").unlink(),
    "json cut": lambda root: truncate(root / "store.json", -20),
    "json is deep": lambda root: (root / "store.json").write_text("[" * 200_000),
    "json is a list": lambda root: (root / "store.json").write_text("[]"),
    "label off": lambda root: (root / "store.json").write_text(
        (root / "store.json").read_text().replace('"A",', "", 1)
    ),
    "name missing": lambda root: (root / "store.json").write_text(
        (root / "store.json").read_text().replace('"A/00.png",', "", 1)
    ),
    "emptied": lambda root: [path.unlink() for path in root.iterdir()],
    "a file": lambda root: (shutil.rmtree(root), root.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_store_is_built_anew(tmp_path, capsys, damage):
    source = Drawn(masked=[3])
    root = open_store(source, 16, tmp_path, False).root
    DAMAGE[damage](root)
    store = open_store(source, 16, tmp_path, False)
    assert levels(store) == list(range(10, 22)) and store.root == root
    assert source.reads == 24
    assert f"{root} are damaged" in capsys.readouterr().err
    assert leftovers(tmp_path) == []


class Failing:
    """A file that takes `room` bytes and then fails like a full disk."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(memoryview(data).cast("B"))
        if self._room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()


def test_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    other = open_store(Drawn(n=4), 16, tmp_path, False)

    def full(path, mode):
        return Failing(open(path, mode), 2000)

    monkeypatch.setattr(store_module, "open", full, raising=False)
    with pytest.raises(UserError, match="no space left on device; free some room or") as error:
        open_store(Drawn(), 16, tmp_path, False)
    assert "--config.data.cache" in str(error.value) and str(tmp_path) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [other.root.name]
    monkeypatch.undo()
    assert levels(open_store(Drawn(), 16, tmp_path, False)) == list(range(10, 22))


def test_too_little_room_is_said_before_decoding(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=12 * 256 - 1))
    source = Drawn()
    with pytest.raises(UserError, match="not enough room; free some room or"):
        open_store(source, 16, tmp_path, False)
    assert source.reads == 0 and list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"not a directory|file exists"):
        open_store(Drawn(), 16, tmp_path / "file" / "cache", False)
    with pytest.raises(UserError, match=r"not a directory|file exists"):
        open_store(Drawn(), 16, tmp_path / "file", False)


def test_interrupted_build_leaves_nothing(tmp_path):
    source = Drawn()
    read = source.read

    def interrupted(i, size):
        if i == 6:
            raise KeyboardInterrupt
        return read(i, size)

    source.read = interrupted
    with pytest.raises(KeyboardInterrupt):
        open_store(source, 16, tmp_path, False)
    assert list(tmp_path.iterdir()) == []


def test_abandoned_builds_are_cleared_away_but_not_fresh_ones(tmp_path):
    for name in ("building-old", "building-new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.npy").write_text("x")
    for path in (tmp_path / "building-old" / "images.npy", tmp_path / "building-old"):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)
    open_store(Drawn(), 16, tmp_path, False)
    assert leftovers(tmp_path) == ["building-new"]


def _build_in_process(cache, barrier, results):
    source = Drawn(masked=[1])
    read = source.read

    def together(i, size):
        if i == 11:
            barrier.wait(20)
        return read(i, size)

    source.read = together
    store = open_store(source, 16, Path(cache), False)
    results.put((os.getpid(), store.key, levels(store)))


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_building_at_once_both_end_well(tmp_path, damaged):
    if damaged:
        truncate(open_store(Drawn(masked=[1]), 16, tmp_path, False).root / "images.npy", -1)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path), barrier, results)
    builders = [context.Process(target=_build_in_process, args=arguments) for _ in range(2)]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(20)
        assert builder.exitcode == 0
    assert found[0][1:] == found[1][1:] and found[0][2] == list(range(10, 22))
    assert leftovers(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1


def test_rename_race_lost_to_a_whole_store_keeps_that_one(tmp_path):
    source = Drawn()
    read, first = source.read, []

    def overtaken(i, size):
        if i == 11 and not first:
            root = open_store(Drawn(), 16, tmp_path, False).root
            first.append(os.stat(root / "images.npy").st_ino)
        return read(i, size)

    source.read = overtaken
    store = open_store(source, 16, tmp_path, False)
    assert first == [os.stat(store.root / "images.npy").st_ino]
    assert leftovers(tmp_path) == [] and len(list(tmp_path.iterdir())) == 1


def test_names_outside_unicode_survive(tmp_path):
    name = os.fsdecode(b"A/caf\xe9.png")
    source = Drawn()
    source.records = (replace(source.records[0], name=name), *source.records[1:])
    assert open_store(source, 16, tmp_path, False).names[0] == name
    assert open_store(source, 16, tmp_path, False).names[0] == name


def test_files_end_to_end(tmp_path):
    file = io.BytesIO()
    Image.new("L", (30, 20), 200).save(file, "PNG")
    for name in ("A/1.png", "A/2.png", "B/1.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(file.getvalue())
    (tmp_path / "d/B/notes.png").write_text("to do")
    with pytest.raises(
        UserError, match=r"/d are broken, the first B/notes.png \(its content is not"
    ):
        open_store(open_folder(tmp_path / "d"), 16, tmp_path / "cache", False)
    store = open_store(open_folder(tmp_path / "d"), 16, tmp_path / "cache", True)
    assert levels(store) == [200] * 3
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as packed:
        for path in (tmp_path / "d").rglob("*.png"):
            packed.write(path, path.relative_to(tmp_path))
    again = open_store(open_folder(tmp_path / "d.zip"), 16, tmp_path / "cache", True)
    assert again.root == store.root


def test_cache_root(monkeypatch, tmp_path):
    assert cache_root(str(tmp_path)) == tmp_path
    monkeypatch.setenv("CXRJAX_CACHE", str(tmp_path / "env"))
    assert cache_root("") == tmp_path / "env"
    monkeypatch.delenv("CXRJAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root("") == tmp_path / ".cache" / "cxrjax"


def test_a_few_real_images(shared, tmp_path):
    source = open_radiography(shared("data/COVID-19_Radiography_Dataset.zip"))
    source.records = source.records[::1500]
    store = open_store(source, 64, tmp_path, False)
    assert store.images.shape == (len(source.records), 64, 64)
    np.testing.assert_array_equal(store.images[3], source.read(3, 64))
    assert {name for name in store.sources if name} <= {"rsna", "kermany-paediatric", "rsna-jpeg",
                                                        "ieee8023", "covid-cxnet"}  # fmt: skip
