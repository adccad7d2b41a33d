"""From configuration to data set: splits, statistics, audit, the ledger of test looks."""

from __future__ import annotations

import fcntl
import json
import os
import threading

import numpy as np
import pytest
from PIL import Image
from scipy.stats.contingency import association

from cxrjax import config as configuration
from cxrjax.data import __main__ as command
from cxrjax.data import dataset, duplicates, ledger
from cxrjax.data import images as pictures
from cxrjax.data.images import BrokenImage
from cxrjax.data.phantom import PhantomSource
from cxrjax.data.splits import SPLITS, digest
from cxrjax.errors import UserError


def _config(tmp_path, **fields):
    config = configuration.default()
    config.data.image_size = 64
    config.data.cache = str(tmp_path / "cache")
    config.data.phantom.count = 80
    config.data.update_from_flattened_dict(fields)
    configuration.validate(config)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dataset")


@pytest.fixture(scope="module")
def phantoms(folder):
    return dataset.prepare(_config(folder))


def test_the_phantom_set_is_complete(phantoms):
    store = phantoms.store
    assert store.images.shape == (80, 64, 64) and store.images.dtype == np.uint8
    everyone = np.concatenate([phantoms.splits[split] for split in SPLITS])
    assert sorted(everyone.tolist()) == list(range(80))
    assert np.bincount(store.labels[phantoms.splits["test"]]).tolist() == [4, 4, 4, 4]
    assert phantoms.digest == digest(phantoms.splits, store.names)
    assert phantoms.groups.dtype == np.int32
    json.dumps(phantoms.audit, allow_nan=False)


def test_pixel_statistics_are_those_of_train_and_validation(phantoms):
    seen = np.concatenate([phantoms.splits["train"], phantoms.splits["validation"]])
    pixels = np.asarray(phantoms.store.images[seen], np.float64) / 255
    assert phantoms.mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert phantoms.std == pytest.approx(pixels.std(), abs=1e-12)


def test_clean_phantoms_are_found_clean(phantoms):
    audit = phantoms.audit
    assert audit["duplicate_pairs"] == 0 and audit["largest_group"] == 1
    assert audit["label_conflicts"]["pairs"] == 0 and audit["skipped"] == []


def test_preparing_again_computes_nothing_and_gives_the_same(phantoms, folder, monkeypatch):
    monkeypatch.setattr(duplicates, "find_duplicates", None)
    again = dataset.prepare(_config(folder))
    assert again.digest == phantoms.digest and again.audit == phantoms.audit
    assert (again.mean, again.std) == (phantoms.mean, phantoms.std)


def test_a_damaged_cache_is_computed_again(folder, phantoms):
    for damage in (lambda data: data[:40], lambda data: data[:60] + b"??" * 20 + data[100:]):
        for path in phantoms.store.root.parent.rglob("*.npz"):
            path.write_bytes(damage(path.read_bytes()))
        assert dataset.prepare(_config(folder)).audit == phantoms.audit


def test_planted_duplicates_are_found_and_kept_on_one_side(tmp_path):
    config = _config(tmp_path, **{"phantom.duplicates": 0.25, "phantom.count": 100})
    kept = dataset.prepare(config)
    assert kept.audit["duplicate_pairs"] >= 24  # 25 planted
    assert sum(kept.audit["leaks"]["pairs"].values()) == 0 == kept.audit["leaks"]["images"]
    assert kept.audit["label_conflicts"] == {"pairs": 0, "images": 0, "examples": []}
    config.data.group_duplicates = False
    loose = dataset.prepare(config)
    assert loose.audit["leaks"]["pairs"]["train-test"] > 0
    assert loose.digest != kept.digest
    # The units of the bootstrap stay the films, however the splits were made.
    assert loose.groups.tolist() == kept.groups.tolist()


def test_membership_does_not_depend_on_the_image_size(tmp_path, monkeypatch):
    fields = {"phantom.duplicates": 0.4, "phantom.count": 160}
    small = dataset.prepare(_config(tmp_path, image_size=48, **fields))
    assert small.audit["duplicate_pairs"] > 50
    for size in (96, 64):
        if size == 64:  # the store's own images are those compared
            for kept in small.store.root.parent.glob("duplicates-*.npz"):
                kept.unlink()
            monkeypatch.setattr(dataset, "_read", None)
        other = dataset.prepare(_config(tmp_path, image_size=size, **fields))
        assert other.digest == small.digest and other.audit == small.audit
        assert other.groups.tolist() == small.groups.tolist()


def test_duplicates_follow_the_images_that_were_kept(tmp_path, monkeypatch):
    fields = {"phantom.duplicates": 0.4, "phantom.count": 60, "image_size": 32}
    read, broken = PhantomSource.read, 7

    def reads_most(source, i, size):
        if i == broken:
            raise BrokenImage(source.records[i].name, "damaged")
        return read(source, i, size)

    monkeypatch.setattr(PhantomSource, "read", reads_most)
    config = _config(tmp_path, skip_broken=True, **fields)
    most = dataset.prepare(config)
    source = dataset.open_source(config.data)
    broken, left_out = -1, broken
    whole = dataset.prepare(_config(tmp_path, **fields))
    assert len(most.store.names) == 59 and len(whole.store.names) == 60

    def named(data):
        pairs = dataset.find_duplicates(source, data.store).pairs
        return {(data.store.names[i], data.store.names[j]) for i, j in pairs}

    lost = source.records[left_out].name
    assert named(most) == {pair for pair in named(whole) if lost not in pair}
    assert len(named(most)) > 10
    # One that breaks between two reads is a sentence, not a traceback.
    broken = 8
    for kept in most.store.root.parent.glob("duplicates-*.npz"):
        kept.unlink()
    with pytest.raises(UserError, match=r"no longer is \(damaged\)"):
        dataset.find_duplicates(source, most.store)


@pytest.mark.parametrize("frame", ["whole", "lungs_box"])
def test_films_are_decoded_for_copies_only_where_a_store_is_at_hand(tmp_path, monkeypatch, frame):
    phantoms, decoded = PhantomSource(40, 0, 0.0, 0.3, 0.0), []
    for i, record in enumerate(phantoms.records):
        path = tmp_path / "own" / phantoms.classes[record.label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantoms.read(i, 80)).save(path)
    decode = pictures.decode
    monkeypatch.setattr(pictures, "decode", lambda *a: decoded.append(a[1]) or decode(*a))
    own = {"name": "folder", "dir": str(tmp_path / "own"), "image_size": 48, "frame": frame}
    config = _config(tmp_path, **own)
    at_once = dataset.prepare(config)
    # Lungs are sought in all films before any but the first few are cut.
    assert len(decoded) == 40 if frame == "whole" else len(decoded) <= 80
    for kept in at_once.store.root.parent.glob("duplicates-*.npz"):
        kept.unlink()
    decoded.clear()
    again = dataset.prepare(config)
    assert len(decoded) == 40
    assert len(at_once.copies.pairs) > 3
    for one, other in zip(at_once.copies, again.copies, strict=True):
        np.testing.assert_array_equal(one, other)


def test_file_names_outside_unicode(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("sick", "well"):
        folder = os.path.join(os.fsencode(tmp_path), b"own", name.encode(), b"\xe9")
        os.makedirs(folder)
        for i in range(12):
            with open(os.path.join(folder, b"caf\xe9-%d.png" % i), "wb") as file:
                Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(file, "PNG")
    data = dataset.prepare(_config(tmp_path, name="folder", dir=str(tmp_path / "own")))
    assert os.fsencode(data.store.names[0]) == b"sick/\xe9/caf\xe9-0.png"
    assert [len(data.splits[split]) for split in SPLITS] == [18, 2, 4]


def test_copies_of_different_class_are_counted(tmp_path):
    fields = {"phantom.duplicates": 0.25, "phantom.count": 100, "phantom.label_noise": 0.5}
    config = _config(tmp_path, **fields)
    data = dataset.prepare(config)
    pairs = dataset.find_duplicates(dataset.open_source(config.data), data.store).pairs
    differ = [(i, j) for i, j in pairs if data.store.labels[i] != data.store.labels[j]]
    conflicts = data.audit["label_conflicts"]
    assert conflicts["pairs"] == len(differ) > 3
    assert conflicts["images"] == len(np.unique(differ))
    assert conflicts["examples"][0] == [data.store.names[i] for i in differ[0]]


def test_classes_are_selected_in_the_order_asked_for(tmp_path, phantoms):
    data = dataset.prepare(_config(tmp_path, classes=("perihilar", "clear")))
    assert data.classes == ("perihilar", "clear")
    assert np.bincount(data.store.labels).tolist() == [20, 20]
    original = {name: i for i, name in enumerate(phantoms.store.names)}
    for i in (0, 17, 39):
        j = original[data.store.names[i]]
        assert data.classes[data.store.labels[i]] == phantoms.classes[phantoms.store.labels[j]]
        assert (data.store.images[i] == phantoms.store.images[j]).all()
        assert (data.store.masks[i] == phantoms.store.masks[j]).all()
    with pytest.raises(UserError, match=r"'pneumonia'.*not in the phantom set"):
        dataset.prepare(_config(tmp_path, classes=("clear", "pneumonia")))


@pytest.mark.parametrize("name", ["radiography", "folder"])
def test_missing_data_say_where_to_get_them(tmp_path, name):
    with pytest.raises(UserError, match=r"(?s)Kaggle.*CXRJAX_DATA.*configs/quickstart.py"):
        dataset.prepare(_config(tmp_path, name=name))
    with pytest.raises(UserError, match=r"nowhere.zip does not exist"):
        dataset.prepare(_config(tmp_path, name=name, dir=str(tmp_path / "nowhere.zip")))


@pytest.mark.parametrize("where", ["x" * 300, "y/" * 3000, "a\0b", __file__ + "/below"])
def test_impossible_paths_are_a_sentence(tmp_path, where):
    with pytest.raises(UserError, match=r"(cannot be read \(.*\)|does not exist): download"):
        dataset.prepare(_config(tmp_path, name="folder", dir=where))


def test_the_home_folder_is_expanded(tmp_path, monkeypatch):
    command.main(["phantom", "--out", str(tmp_path / "set"), "--count", "40", "--size", "48"])
    monkeypatch.setenv("HOME", str(tmp_path))
    named = dataset.open_source(_config(tmp_path, name="folder", dir="~/set").data)
    monkeypatch.setenv("CXRJAX_DATA", "~/set")
    assert named.records == dataset.open_source(_config(tmp_path, name="folder").data).records
    monkeypatch.delenv("CXRJAX_DATA")
    with pytest.raises(UserError, match="~nobody-here/set does not exist"):
        dataset.open_source(_config(tmp_path, name="folder", dir="~nobody-here/set").data)


def test_data_are_found_by_the_environment(tmp_path, monkeypatch):
    command.main(["phantom", "--out", str(tmp_path / "set"), "--count", "40", "--size", "48"])
    monkeypatch.setenv("CXRJAX_DATA", str(tmp_path / "set"))
    data = dataset.prepare(_config(tmp_path, name="folder"))
    assert len(data.store.labels) == 40 and len(data.classes) == 4


def test_looks_at_a_test_split_are_counted(tmp_path):
    few = {"phantom.count": 24}
    data = dataset.prepare(_config(tmp_path, **few))
    other = dataset.prepare(_config(tmp_path, split_seed=1, **few))
    for k in (1, 2):
        assert dataset.record_test_look(data, f"run {k}") == (k, 0)
    assert dataset.record_test_look(other, "run 3") == (1, 2)
    ledger = data.store.root.parent / "test_looks.jsonl"
    with open(ledger, "a") as file:
        file.write('{"time": "cut sho')
    assert dataset.record_test_look(data, "run 4") == (3, 1)
    # Another image size is another store but the same test split.
    larger = dataset.prepare(_config(tmp_path, image_size=72, **few))
    assert larger.digest == data.digest and larger.store.root != data.store.root
    assert dataset.record_test_look(larger, "run 5") == (4, 1)


def test_looks_can_be_counted_without_the_data_and_without_looking(tmp_path):
    assert ledger.count(tmp_path, "data", "split") == (0, 0)
    assert ledger.record(tmp_path, "data", "split", "run 1") == (1, 0)
    assert ledger.record(tmp_path, "data", "redrawn", "run 2") == (1, 1)
    assert ledger.record(tmp_path, "other data", "split", "run 3") == (1, 0)
    with open(tmp_path / ledger.FILE, "ab") as file:
        file.write(b"\xff\n" + b"[" * 200_000 + b'\n[1]\n{"time": "cut sho')
    for _ in range(2):
        assert ledger.count(tmp_path, "data", "split") == (1, 1)
    assert ledger.record(tmp_path, "data", "split", "run 4") == (2, 1)
    assert str(ledger.count(tmp_path, "data", "split")) == (
        "test split read 2 time(s) so far; 1 time(s) in other splits of the data"
    )


def test_looks_at_once_are_each_counted(tmp_path):
    data = dataset.prepare(_config(tmp_path, **{"phantom.count": 24}))
    dataset.record_test_look(data, "first")
    ledger = data.store.root.parent / "test_looks.jsonl"
    counted = []
    with open(ledger, "r+") as other:  # another run, between reading and writing
        fcntl.flock(other, fcntl.LOCK_EX)
        line = other.read()
        look = threading.Thread(target=lambda: counted.append(dataset.record_test_look(data, "me")))
        look.start()
        look.join(0.3)
        assert look.is_alive()
        other.write(line)
    look.join()
    assert counted == [(3, 0)] and len(ledger.read_text().splitlines()) == 3


def test_cramers_v_without_correction_would_be_scipys():
    table = np.array([[20, 5, 1], [4, 30, 3], [2, 2, 40], [7, 7, 9]])
    n, (rows, columns) = table.sum(), table.shape
    plain = association(table, method="cramer")
    phi2 = plain**2 * (min(rows, columns) - 1) - (rows - 1) * (columns - 1) / (n - 1)
    smaller = min(k - (k - 1) ** 2 / (n - 1) for k in (rows, columns)) - 1
    assert dataset.cramers_v(table) == pytest.approx(np.sqrt(phi2 / smaller))
    assert dataset.cramers_v(table) < plain


def test_cramers_v_at_its_ends():
    assert dataset.cramers_v(np.diag([50, 60, 70])) == pytest.approx(1, abs=1e-6)
    assert dataset.cramers_v(np.outer([20, 30], [10, 40])) == 0
    assert dataset.cramers_v(np.array([[5, 6], [0, 0]])) is None
    assert dataset.cramers_v(np.zeros((2, 2))) is None


def test_confounding_is_measured_where_the_source_is_known(tmp_path):
    rng = np.random.default_rng(0)
    lines = ["file,source"]
    for name, source in {"sick": "north", "well": "south"}.items():
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(20):
            path = tmp_path / "own" / name / f"{name}-{i}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).save(path)
            if i < 15:  # the source of the others is not known
                lines.append(f"{name}/{path.name},{source if i else 'east'}")
    (tmp_path / "own" / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = dataset.prepare(_config(tmp_path, name="folder", dir=str(tmp_path / "own")))
    found = data.audit["confounding"]
    assert found["table"] == {
        "north": {"sick": 14, "well": 0},
        "south": {"sick": 0, "well": 14},
        "east": {"sick": 1, "well": 1},
    }
    assert (found["n"], found["unknown"]) == (30, 10)
    assert 0.9 < found["cramers_v"] < 1


def test_without_varying_sources_confounding_is_unknown(phantoms):
    assert phantoms.audit["confounding"] is None


@pytest.mark.parametrize(
    ("archive", "classes", "pairs"),
    [("covid-normal.zip", ("COVID", "Normal"), 33)],
)
def test_a_real_archive(tmp_path, shared, archive, classes, pairs):
    path = shared(f"data/{archive}")
    data = dataset.prepare(_config(tmp_path, name="folder", dir=str(path), image_size=128))
    assert data.classes == classes
    assert {split: len(data.splits[split]) for split in SPLITS} == {
        "train": 1600,
        "validation": 400,
        "test": 200,
    }
    # By eye, every pair is one film (or one sitting); sizes of the store hardly matter.
    assert abs(data.audit["duplicate_pairs"] - pairs) <= 2
    assert data.audit["largest_group"] == 4
    assert sum(data.audit["leaks"]["pairs"].values()) == 16
    assert (data.mean, data.std) == (pytest.approx(0.53, abs=0.04), pytest.approx(0.25, abs=0.02))
