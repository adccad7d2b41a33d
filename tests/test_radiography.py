"""The Radiography Database in its releases: archive, folder, metadata, masks, errors."""

import io
import zipfile

import pytest
from film_files import TWO, lay_out, pack, png, xlsx

from cxrjax.data.folder import open_folder
from cxrjax.data.radiography import CLASSES, open_radiography
from cxrjax.errors import UserError


def database(classes=CLASSES, images="images/"):
    files = {"README.md.txt": "hello"}
    for k, name in enumerate(classes):
        for i in range(1, 4):
            files[f"{name}/{images}{name}-{i}.png"] = png(10 * k + i, 12)
            if images:
                files[f"{name}/masks/{name}-{i}.png"] = png(255, 4, "RGB")
    files["COVID.metadata.xlsx"] = xlsx(
        [["FILE NAME", "FORMAT", "SIZE", "URL"], ["COVID-1", "PNG", "12*12", "https://a.b/c"],
         ["COVID-2", "PNG", "12*12", None], ["COVID-3.png", "PNG", "12*12", "  "]]
    )  # fmt: skip
    files["Normal.metadata.csv"] = (
        "file name,format,Source,url\nNORMAL-1,PNG,rsna,https://x\nNORMAL-2,PNG,,https://y\n"
    )
    return files


def test_database_from_folder_parent_archive_and_holder(tmp_path):
    files = {f"COVID-19_Radiography_Dataset/{n}": d for n, d in database().items()}
    lay_out(tmp_path / "un/versions/5", files)
    (tmp_path / "zips").mkdir()
    pack(tmp_path / "zips" / "archive.zip", files)
    pack(tmp_path / "zips" / "other.zip", TWO)
    lay_out(tmp_path / "zips", {"a.zip": "not a zip"})
    opened = [
        open_radiography(tmp_path / place)
        for place in (
            "un/versions/5/COVID-19_Radiography_Dataset", "un/versions/5", "un", "zips/archive.zip",
            "zips",
        )
    ]  # fmt: skip
    source = opened[0]
    assert source.classes == CLASSES
    assert len(source.records) == 12
    assert all(other.records == source.records for other in opened)
    assert len({other.fingerprint() for other in opened}) == 1
    known = {r.name.rsplit("/")[-1]: r.source for r in source.records if r.source}
    assert known == {
        "COVID-1.png": "https://a.b/c",
        "Normal-1.png": "rsna",
        "Normal-2.png": "https://y",
    }
    assert source.records[0].mask == "COVID/masks/COVID-1.png"
    assert (source.read_mask(0, 12) == 255).all() and source.read(0, 12)[0, 0] == 1


def test_older_releases(tmp_path):
    files = database(("COVID-19", "NORMAL", "Viral Pneumonia"), images="")
    files["COVID-19.metadata.xlsx"] = xlsx([["FILE NAME", "URL"], ["COVID-19-2", "https://z"]])
    source = open_radiography(lay_out(tmp_path, files))
    assert source.classes == ("COVID", "Normal", "Viral Pneumonia")
    assert next(r.name for r in source.records if r.label == 0) == "COVID-19/COVID-19-1.png"
    assert {r.name: r.source for r in source.records}["COVID-19/COVID-19-2.png"] == "https://z"
    assert {r.name: r.source for r in source.records}["NORMAL/NORMAL-1.png"] == "rsna"


def test_fingerprint_tells_class_names_apart(tmp_path):
    """The same files and labels, but a folder COVID-19 that the database calls COVID."""
    files = {"COVID-19/1.png": png(1), "Normal/1.png": png(2)}
    as_database = open_radiography(lay_out(tmp_path, files))
    as_folder = open_folder(tmp_path)
    assert as_database.records == as_folder.records
    assert as_database.fingerprint() != as_folder.fingerprint()


def test_the_shallowest_copy_is_the_database_and_two_archives_are_too_many(tmp_path):
    copy = {f"COVID/old/{name}": data for name, data in database().items()}
    source = open_radiography(pack(tmp_path / "a.zip", database() | copy))
    assert source.records[0].name == "COVID/images/COVID-1.png" and len(source.records) == 12
    pack(tmp_path / "b.zip", database())
    with pytest.raises(UserError, match=r"several archives .*a.zip, b.zip"):
        open_radiography(tmp_path)


def test_a_folder_that_may_not_be_listed_is_a_sentence(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        open_radiography(tmp_path)


def test_database_classes(tmp_path):
    root = lay_out(tmp_path, database(("COVID", "Normal")))
    assert open_radiography(root).classes == ("COVID", "Normal")
    source = open_radiography(root, ("Normal", "COVID"))
    assert source.classes == ("Normal", "COVID")
    assert [r.label for r in source.records] == [1, 1, 1, 0, 0, 0]
    names = [r.name for r in source.records]
    assert names == sorted(names)
    with pytest.raises(UserError, match="'Lung_Opacity'"):
        open_radiography(root, ("COVID", "Lung_Opacity"))
    with pytest.raises(UserError, match="did you mean 'Normal'"):
        open_radiography(root, ("COVID", "normal"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (TWO, "does not hold the COVID-19 Radiography Database"),
        ({"COVID/images/1.png": png(1), "Other/1.png": png(1)}, "does not hold"),
        ({f"{p}/{c}/1.png": png(1) for p in ("train", "test") for c in CLASSES}, "several places"),
        (
            database() | {"Normal.metadata.csv": b"\xff\xff\xff"},
            "Normal.metadata.csv cannot be read",
        ),
        (database() | {"COVID.metadata.xlsx": b"PK\x03\x04"}, "COVID.metadata.xlsx cannot be read"),
    ],
)
def test_database_errors(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        open_radiography(pack(tmp_path / "a.zip", files))
    with pytest.raises(UserError, match=message):
        open_radiography(lay_out(tmp_path / "a", files))


def test_two_releases_side_by_side_are_told_apart(tmp_path):
    files = {f"{year}/{name}": data for year in (2020, 2021) for name, data in database().items()}
    with pytest.raises(UserError, match=r"in several places \(2020/, 2021/\); name one"):
        open_radiography(lay_out(tmp_path, files))
    assert len(open_radiography(tmp_path / "2021").records) == 12


@pytest.mark.parametrize(
    "table",
    [
        "FILE NAME;FORMAT;SOURCE\nNORMAL-1;PNG;rsna\n",
        "file,source\nNORMAL-1,rsna\n",
        "FILE NAME,SOURCE\nN0RMAL-1,rsna\n",
        "FILE NAME,SOURCE\n",
    ],
)
def test_a_table_that_says_nothing_of_the_images_is_told(tmp_path, capsys, table):
    files = database() | {"Normal.metadata.csv": table}
    source = open_radiography(lay_out(tmp_path, files))
    assert not [r for r in source.records if r.label == 2 and r.source]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "Normal.metadata.csv gives the source of no image; it needs the columns FILE" in said


def test_a_workbook_is_read_whatever_size_it_claims(tmp_path):
    workbook = database()["COVID.metadata.xlsx"]
    with zipfile.ZipFile(io.BytesIO(workbook)) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"]
    assert b'<dimension ref="A1:D4"' in sheet
    members["xl/worksheets/sheet1.xml"] = sheet.replace(b'ref="A1:D4"', b'ref="A1"')
    stale = pack(tmp_path / "stale.xlsx", members).read_bytes()
    source = open_radiography(lay_out(tmp_path / "a", database() | {"COVID.metadata.xlsx": stale}))
    assert source.records[0].source == "https://a.b/c"


def test_workbook_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("cxrjax.data.metadata._MAX_UNPACKED", 1000)
    with pytest.raises(UserError, match="unreasonable size"):
        open_radiography(lay_out(tmp_path, database()))
