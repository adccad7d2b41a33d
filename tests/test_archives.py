"""Data sets in archives that are damaged, hostile or read by many threads."""

import zipfile

import pytest
from film_files import TWO, pack, png

from cxrjax.data import sources
from cxrjax.data.folder import open_folder
from cxrjax.data.images import BrokenImage
from cxrjax.errors import UserError
from cxrjax.threads import in_order


def test_archive_members_are_bounded_while_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_FILE_BYTES", 2 * 2**20)
    bomb = pack(tmp_path / "bomb.zip", TWO | {"A/bomb.png": b"\0" * (3 * 2**20)})
    source = open_folder(bomb)
    source.fingerprint()
    with pytest.raises(BrokenImage, match="larger than 2 MiB"):
        source.read(2, 8)
    # An archive that claims a small size for the same member is not believed either.
    data = bomb.read_bytes().replace((3 * 2**20).to_bytes(4, "little"), (900).to_bytes(4, "little"))
    (tmp_path / "lie.zip").write_bytes(data)
    with pytest.raises(BrokenImage):
        open_folder(tmp_path / "lie.zip").read(2, 8)


def test_damaged_members_are_broken_images(tmp_path):
    path = pack(tmp_path / "a.zip", TWO, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 5] ^= 255
    path.write_bytes(data)
    source = open_folder(path)
    with pytest.raises(BrokenImage, match="damaged in the archive") as caught:
        source.read(0, 8)
    assert caught.value.name == "A/1.png"
    assert source.read(1, 8)[0, 0] == 20
    assert source.fingerprint() != open_folder(pack(tmp_path / "b.zip", TWO)).fingerprint()


def test_encrypted_archive_says_so(tmp_path):
    path = pack(tmp_path / "a.zip", TWO)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        open_folder(path)


def test_hostile_and_foreign_member_names(tmp_path):
    names = ["../A/0.png", "/abs/../x.png", "A\\1.png", "/A/2.png", "B/1.png", "A/"]
    path = pack(tmp_path / "a.zip", {n: png(5) if n[-1] != "/" else b"" for n in names})
    assert [r.name for r in open_folder(path).records] == ["A/1.png", "A/2.png", "B/1.png"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip"]


def test_archive_is_read_from_many_threads(tmp_path):
    path = pack(tmp_path / "a.zip", {f"{'AB'[i % 2]}/{i:03}.png": png(i) for i in range(200)})
    source = open_folder(path)
    expected = [int(r.name[2:5]) for r in source.records]
    for _ in range(5):
        levels = in_order(lambda i: int(source.read(i, 8)[3, 3]), 200, what="", unit="")
        assert list(levels) == expected
