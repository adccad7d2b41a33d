"""Tables of patients and sources beside the images."""

import pytest
from film_files import TWO, lay_out, pack

from cxrjax.data.folder import open_folder
from cxrjax.errors import UserError


def test_metadata_by_path_name_and_stem(tmp_path):
    rows = [
        "\ufeffFile, Patient_ID ,SOURCE",
        "A/1.png,p1,here",
        "2,p2,",
        "B\\1.PNG,,there",
        "c,p9,x",
    ]
    table = "\n".join(rows)
    source = open_folder(lay_out(tmp_path, TWO | {"metadata.csv": table}))
    assert [(r.patient, r.source) for r in source.records] == [
        ("p1", "here"), ("p2", None), (None, "there"),
    ]  # fmt: skip


def test_metadata_may_repeat_and_complete_itself(tmp_path):
    table = "file,patient,source\n2,p2,x\n2,p2,x\nB/1,,y\nB/1.png,p1,\n"
    source = open_folder(lay_out(tmp_path, TWO | {"metadata.csv": table}))
    assert [(r.patient, r.source) for r in source.records[1:]] == [("p2", "x"), ("p1", "y")]


@pytest.mark.parametrize("place", ["", "set/", "set/films/"])
def test_metadata_may_lie_beside_a_wrapping_folder(tmp_path, capsys, place):
    """Paths are from the table's folder, wherever that is; the nearest table is read."""
    wrapped = {f"set/films/{name}": data for name, data in TWO.items()}
    films = "set/films/".removeprefix(place)
    table = f"file,patient\n{films}A/1.png,p1\n{films}A/2,p2\n{films}B/1.png,p3\n"
    source = open_folder(lay_out(tmp_path / "one", wrapped | {f"{place}metadata.csv": table}))
    assert [r.patient for r in source.records] == ["p1", "p2", "p3"]
    assert not capsys.readouterr().err
    both = {f"{place}Metadata.csv": table, "metadata.csv": "file,patient\n1,other\n"}
    if place:
        source = open_folder(pack(tmp_path / "two.zip", wrapped | both))
        assert [r.patient for r in source.records] == ["p1", "p2", "p3"]
        assert "ignored metadata.csv" in capsys.readouterr().err


@pytest.mark.parametrize("header", ["PatientID", "patient_id", "Patient ID", "PATIENT"])
def test_the_patient_is_found_under_its_usual_names(tmp_path, header):
    table = f"file,{header},source,Patient Age\n2,p2,x,40\nB/1,,y,50\n"
    source = open_folder(lay_out(tmp_path, TWO | {"metadata.csv": table}))
    assert [r.patient for r in source.records] == [None, "p2", None]


def test_images_that_metadata_leave_out_are_counted(tmp_path, capsys):
    table = "file,patient,source\nA/1.png,p1,x\nA/2.png,,x\n"
    open_folder(lay_out(tmp_path, TWO | {"metadata.csv": table}))
    said = capsys.readouterr().err
    assert "metadata.csv gives no patient for 2 of 3 images, as A/2.png" in said
    assert "metadata.csv gives no source for 1 of 3 images, as B/1.png" in said
    open_folder(lay_out(tmp_path, {"metadata.csv": "file,patient\n2,q\nA/1,p\nB/1,r\n"}))
    assert not capsys.readouterr().err


def test_parts_and_classes_may_have_tables_of_their_own(tmp_path, capsys):
    """As imagefolder data sets have them: columns file_name, paths from the table's folder."""
    parts = {f"{part}/{name}": data for part in ("train", "test") for name, data in TWO.items()}
    tables = {
        "train/metadata.csv": "file_name,patient\nA/1.png,p1\nA/2.png,p2\n1,p3\n",
        "test/B/metadata.csv": "file_name,patient\n1.png,p9\n",
        "metadata.csv": "file,source\ntrain/A/1.png,here\n",
    }
    with pytest.raises(UserError, match=r"train/metadata.csv names 1, which may be"):
        open_folder(lay_out(tmp_path / "both", parts | tables))
    tables["train/metadata.csv"] = tables["train/metadata.csv"].replace("\n1,", "\nB/1,")
    source = open_folder(lay_out(tmp_path / "set", parts | tables))
    assert {r.name: (r.patient, r.source) for r in source.records} == {
        "train/A/1.png": ("p1", "here"), "train/A/2.png": ("p2", None),
        "train/B/1.png": ("p3", None), "test/B/1.png": ("p9", None),
        "test/A/1.png": (None, None), "test/A/2.png": (None, None),
    }  # fmt: skip
    assert not capsys.readouterr().err.count("ignored")
    lay_out(tmp_path / "set", {"train/A/metadata.csv": "instance,kvp\n1,80\n"})
    assert open_folder(tmp_path / "set").records == source.records
    assert "train/A/metadata.csv needs a column file" in capsys.readouterr().err
    lay_out(tmp_path / "set", {"test/metadata.csv": "file_name,patient\nC/1.png,p9\n"})
    with pytest.raises(UserError, match=r"test/metadata.csv names none of the images"):
        open_folder(tmp_path / "set")
