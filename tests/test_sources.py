"""Data sets in folders and archives: labels, parts, masks, errors."""

import errno
import io
import os
import shutil

import numpy as np
import pytest
from film_files import TWO, lay_out, pack, png, summary
from PIL import Image

from cxrjax.data.folder import films, open_folder
from cxrjax.data.images import BrokenImage
from cxrjax.data.radiography import open_radiography
from cxrjax.data.sources import open_files
from cxrjax.errors import UserError
from cxrjax.threads import in_order


def test_folder_and_archive_give_the_same(tmp_path):
    files = TWO | {
        "README.txt": "hello",
        ".DS_Store": "x",
        "A/._1.png": "x",
        "__MACOSX/A/1.png": "x",
    }
    plain = open_folder(lay_out(tmp_path / "plain", files))
    packed = open_folder(pack(tmp_path / "a.zip", files))
    wrapped = open_folder(pack(tmp_path / "w.zip", {f"w/deep/{n}": d for n, d in files.items()}))
    assert summary(plain) == [
        ("A/1.png", "A", None),
        ("A/2.png", "A", None),
        ("B/1.png", "B", None),
    ]
    assert plain.records == packed.records == wrapped.records
    assert plain.fingerprint() == packed.fingerprint() == wrapped.fingerprint()
    for source in (plain, packed, wrapped):
        assert [int(source.read(i, 4)[0, 0]) for i in range(3)] == [10, 20, 30]
        assert source.read_mask(0, 4) is None


def test_fingerprint_follows_bytes_labels_and_metadata(tmp_path):
    def digest(name, files, classes=()):
        return open_folder(lay_out(tmp_path / name, files), classes).fingerprint()

    digests = [
        digest("a", TWO),
        digest("b", TWO | {"B/1.png": png(31)}),
        digest("c", TWO, ("B", "A")),
        digest("d", TWO | {"metadata.csv": "file,patient\nA/1.png,p\n"}),
        digest("e", TWO | {"metadata.csv": "file,source\nA/1.png,p\n"}),
        digest(
            "f", {f"train/{name}": data for name, data in TWO.items()} | {"test/A/9.png": png(1)}
        ),
        digest("g", TWO | {"A/masks/1.png": png(255)}),
        digest("h", TWO | {"A/masks/1.png": png(0)}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("again", TWO) == digests[0]


@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_parts_are_kept(tmp_path, top):
    names = ["Training/A/1.PNG", "train/B/2.png", "val/A/3.png", "VALID/B/4.png", "testing/A/5.png"]
    source = open_folder(lay_out(tmp_path, {top + name: png(1) for name in names}))
    assert source.classes == ("A", "B")
    found = {name: split for name, _, split in summary(source)}
    assert [found[n] for n in names] == ["train", "train", "validation", "validation", "test"]


def test_a_lone_part_divides_nothing(tmp_path):
    source = open_folder(lay_out(tmp_path, {f"train/{name}": data for name, data in TWO.items()}))
    assert summary(source)[0] == ("A/1.png", "A", None)


def test_a_class_may_be_called_like_a_part(tmp_path):
    source = open_folder(lay_out(tmp_path, {"test/1.png": png(1), "control/1.png": png(2)}))
    assert source.classes == ("control", "test") and source.records[0].split is None


def test_classes_select_and_order(tmp_path):
    root = lay_out(tmp_path, TWO | {"C/1.png": png(3)})
    assert open_folder(root).classes == ("A", "B", "C")
    source = open_folder(root, ("C", "A"))
    assert source.classes == ("C", "A")
    assert [(r.name, r.label) for r in source.records] == [
        ("A/1.png", 1),
        ("A/2.png", 1),
        ("C/1.png", 0),
    ]


def test_masks_beside_images_in_both_layouts(tmp_path):
    files = {
        "A/images/1.png": png(1), "A/masks/1.png": png(255, 4, "RGB"), "A/images/2.png": png(2),
        "B/1.jpg.png": png(3), "B/Masks/1.JPG.webp": png(255),
    }  # fmt: skip
    source = open_folder(lay_out(tmp_path, files))
    assert [(r.name, r.mask) for r in source.records] == [
        ("A/images/1.png", "A/masks/1.png"), ("A/images/2.png", None),
        ("B/1.jpg.png", "B/Masks/1.JPG.webp"),
    ]  # fmt: skip
    mask = source.read_mask(0, 6)
    assert mask is not None and mask.shape == (6, 6) and mask.dtype == np.uint8
    assert (mask == 255).all()


def test_lesions_are_neither_images_nor_lung_masks(tmp_path):
    files = {
        f"{name}/{kind}/1.png": png(9)
        for name in ("COVID", "Normal")
        for kind in ("images", "lesions", "masks")
    }
    wanted = [(f"{name}/images/1.png", f"{name}/masks/1.png") for name in ("COVID", "Normal")]
    path = lay_out(tmp_path / "set", files)
    for opened in (open_folder(path), open_radiography(path)):
        assert [(r.name, r.mask) for r in opened.records] == wanted
    packed = pack(tmp_path / "set.zip", {f"train/{n}": d for n, d in files.items()} | {
        f"test/{n}": d for n, d in files.items()
    })  # fmt: skip
    assert len(open_folder(packed).records) == 4
    alone = {name: data for name, data in files.items() if name.startswith("COVID")}
    with pytest.raises(UserError, match=r"only one class \(COVID\)"):
        open_folder(lay_out(tmp_path / "alone", alone))
    # A class may be called so, and other folders speak of lesions.
    assert open_folder(lay_out(tmp_path / "b", {"lesions/1.png": png(1), "none/1.png": png(2)}))
    named = dict.fromkeys(("lesion/1.png", "no_lesion/1.png", "lesion/with mask/2.png"), png(1))
    for place, above in ("c", ""), ("d", "train/"):
        root = lay_out(tmp_path / place, {above + name: data for name, data in named.items()})
        assert [r.name for r in open_folder(root).records] == sorted(named)
        assert films(open_files(root).names) == [above + name for name in sorted(named)]


def test_masks_may_lie_deeper_and_be_called_what_they_show(tmp_path):
    """As in COVID-QU-Ex, where each image has a mask of the lungs and one of the infection."""
    parts, kinds = ("Train", "Val", "Test"), ("images", "lung masks", "infection masks")
    files = {
        f"{part}/{name}/{kind}/1.png": png(9) for part in parts for name in "AB" for kind in kinds
    }
    source = open_folder(lay_out(tmp_path / "parts", files))
    assert [(r.name, r.mask) for r in source.records[:2]] == [
        ("Test/A/images/1.png", "Test/A/lung masks/1.png"),
        ("Test/B/images/1.png", "Test/B/lung masks/1.png"),
    ]
    assert len(source.records) == 6 and source.classes == ("A", "B")
    assert films(sorted(files)) == sorted(r.name for r in source.records)
    deep = {"A/p1/1.png", "A/p1/masks/1.png", "B/p2/images/1.png", "B/p2/Lung_Masks/1.png"}
    source = open_folder(lay_out(tmp_path / "deep", dict.fromkeys(deep, png(9))))
    assert [(r.name, r.mask) for r in source.records] == [
        ("A/p1/1.png", "A/p1/masks/1.png"), ("B/p2/images/1.png", "B/p2/Lung_Masks/1.png"),
    ]  # fmt: skip
    assert films(sorted(deep)) == [r.name for r in source.records]


@pytest.mark.parametrize("levels", [(1,), (1, 2), (38, 75), (255,)])
def test_masks_may_be_maps_of_labels(tmp_path, levels):
    drawn = Image.new("L", (8, 8))
    for k, level in enumerate(levels):
        drawn.paste(level, (4 * k, 0, 4 * k + 4, 8))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    source = open_folder(lay_out(tmp_path, TWO | {"A/masks/1.png": file.getvalue()}))
    wanted = np.where(np.arange(8) < 4 * len(levels), 255, 0)
    np.testing.assert_array_equal(source.read_mask(0, 8), np.tile(wanted, (8, 1)))


def test_a_part_beside_another_folder_with_the_same_classes_is_no_class(tmp_path):
    """Else the network would learn to tell the training part from the other hospital."""
    names = [f"{top}/{name}/1.png" for top in ("train", "external") for name in ("A", "B")]
    root = lay_out(tmp_path, dict.fromkeys(names, png(1)))
    with pytest.raises(UserError, match="folders external beside the parts train; name the folder"):
        open_folder(root)
    assert open_folder(root, ("train", "external")).classes == ("train", "external")
    others = {"train/C/1.png": png(1), "docs/2.png": png(1), "abroad/a/1.png": png(1)}
    lay_out(tmp_path, others | {"abroad/b/1.png": png(1)})
    for _ in range(2):
        with pytest.raises(UserError, match=r"folders abroad, docs.* beside the parts train"):
            open_folder(root)
        shutil.rmtree(root / "external", ignore_errors=True)
    shutil.rmtree(root / "abroad")
    assert open_folder(root).classes == ("docs", "train")


def test_a_folder_without_films_is_named(tmp_path, capsys):
    root = lay_out(tmp_path, TWO | {"C/IM1": "DICM", "C/IM2": "DICM", "D/1.png": png(1)})
    assert open_folder(root).classes == ("A", "B", "D")
    said = capsys.readouterr().err
    assert "ignored the folder C, none of its 2 files is a film by its suffix, as C/IM1" in said
    assert said.count("\n") == 1
    lay_out(root, {"E/masks/1.png": png(1)})
    open_folder(root)
    assert "folder E" not in capsys.readouterr().err  # its files are films, but no images
    parts = {f"{part}/{n}": d for part in ("train", "test") for n, d in TWO.items()}
    open_folder(pack(tmp_path / "p.zip", parts | {"train/Normal/IM1": "x", "notes.txt": "x"}))
    said = capsys.readouterr().err
    assert "ignored the folder Normal, none of its 1 files" in said and said.count("\n") == 1


def test_links_that_lead_nowhere_are_broken_images(tmp_path):
    """As git-annex leaves those of files that were not fetched."""
    root = lay_out(tmp_path, TWO)
    (root / "A/9.png").symlink_to(tmp_path / "gone.png")
    source = open_folder(root)
    assert [r.name for r in source.records] == ["A/1.png", "A/2.png", "A/9.png", "B/1.png"]
    with pytest.raises(BrokenImage, match=r"9.png: cannot be read: No such file"):
        source.read(2, 8)


def test_in_the_way(tmp_path, capsys):
    """Images outside classes and of other formats are named, then ignored."""
    root = lay_out(tmp_path, TWO | {"preview.png": png(1), "A/9.tif": "II*", "A/8.TIF": "II*"})
    assert len(open_folder(root).records) == 3
    said = capsys.readouterr().err
    assert "preview.png" in said and "2 .tif files" in said


@pytest.mark.parametrize(
    ("files", "classes", "message"),
    [
        ({}, (), "no PNG, JPEG, WebP or DICOM"),
        ({"A/notes.txt": "x", "B/notes.txt": "x"}, (), "no PNG, JPEG, WebP or DICOM"),
        ({"A/1.png": png(1)}, (), r"only one class \(A\)"),
        ({"1.png": png(1)}, (), "no class"),
        (TWO, ("A",), "only one class"),
        (TWO, ("A", "b"), "class 'b' .* did you mean 'B'"),
        (TWO, ("A", "Pneumothorax"), "it has A, B"),
        ({"A/p1/1.png": png(1), "A/p2/1.png": png(1)}, ("A", "B"), "class 'B' .* it has A;?"),
        ({"A/p/1.png": png(1), "X/q/1.png": png(1)}, ("A", "B"), "it has A, X"),
        ({"images/1.png": png(1), "masks/1.png": png(1)}, (), "images and masks without classes"),
        ({"d/images/1.png": png(1), "d/masks/1.png": png(1)}, (), "only one class"),
        (
            {"train/A/1.png": png(1), "test/A/1.png": png(1), "C/A/1.png": png(1)},
            (),
            "folders C be",
        ),
        (TWO | {"metadata.csv": "name,patient\n1,2\n"}, (), "needs a column file"),
        (TWO | {"metadata.csv": "file,age\n1,2\n"}, (), "patient or source"),
        (
            TWO | {"metadata.csv": "file,PatientName,source\n2,p,x\n"},
            (),
            "column patientname; rename it to patient if",
        ),
        (TWO | {"metadata.csv": "file,patient\n1.png,p\n"}, (), "A/1.png or B/1.png"),
        (TWO | {"metadata.csv": "file,patient\n7.png,p\n"}, (), "names none of the images"),
        (
            TWO | {"metadata.csv": "file,patient\n2,p1\nA/1,p\nA/2.png,p2\n"},
            (),
            "metadata.csv gives A/2.png the patient p1 and p2; keep",
        ),
        (TWO | {"metadata.csv": "file,source\n2,x\n2,y\n"}, (), "A/2.png the source x and y"),
        (
            TWO | {"metadata.csv": b"file,patient\n\xff\xfe\x00,p\n"},
            (),
            "cannot be read as a table",
        ),
        (TWO | {"metadata.csv": b"PK\x03\x04 not a workbook"}, (), "cannot be read as a table"),
    ],
)
def test_folder_errors_say_what_to_do(tmp_path, files, classes, message):
    root = lay_out(tmp_path / "d", files)
    root.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=message) as error:
        open_folder(root, classes)
    assert str(root) in str(error.value) and "\n" not in str(error.value)


def test_paths_that_are_no_data_set(tmp_path):
    lay_out(tmp_path, {"a.tar.gz": "x", "b.bin": "x", "c.zip": "PK cut short"})
    whole = pack(tmp_path / "d.zip", TWO).read_bytes()
    (tmp_path / "d.zip").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "missing": "does not exist", "a.tar.gz": "unpack it", "b.bin": "neither a folder nor",
        "c.zip": "neither a folder nor", "d.zip": "neither a folder nor",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_folder(tmp_path / name)


def test_links_are_followed_but_not_in_circles(tmp_path):
    lay_out(tmp_path / "elsewhere", {"1.png": png(1)})
    root = lay_out(tmp_path / "data", TWO)
    (root / "C").symlink_to(tmp_path / "elsewhere")
    (root / "A" / "loop").symlink_to(root)
    os.mkfifo(root / "A" / "pipe.png")
    assert [r.name for r in open_folder(root).records] == [*sorted(TWO), "C/1.png"]


def test_each_folder_is_entered_once_as_itself_where_it_lies_inside(tmp_path):
    """Of 2^22 ways down a ladder of links one is taken, and no class loses its images to a link."""
    root = lay_out(tmp_path / "data", TWO | {f"A/steps/{i:02}/1.png": png(i) for i in range(22)})
    for i in range(21):
        for side in "lr":
            (root / f"A/steps/{i:02}" / side).symlink_to(root / f"A/steps/{i + 1:02}")
    (root / "A" / "a").symlink_to(root / "B")
    lay_out(tmp_path / "elsewhere", {"1.png": png(1)})
    for name in ("D", "C", "E"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    steps = [f"A/steps/{i:02}/1.png" for i in range(22)]
    assert open_files(root).names == ("A/1.png", "A/2.png", *steps, "B/1.png", "C/1.png")


def test_folders_may_lie_deep(tmp_path):
    root = lay_out(tmp_path / "data", TWO)
    deep = "/".join("d" * 1500)
    for i in range(0, 3000, 500):
        (root / "A" / deep[: i + 499]).mkdir(parents=True)
    film = root / "A" / deep / "1.png"
    film.write_bytes(png(1))
    try:
        assert f"A/{deep}/1.png" in open_files(root).names
    finally:  # else pytest fails where it clears its folders
        film.unlink()
        os.removedirs(film.parent)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    root, scandir = lay_out(tmp_path / "data", TWO), os.scandir

    def refuse(folder):  # as for those who are not root
        if os.path.basename(folder) == "B":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=rf"^{root}/B cannot be read \(Permission denied\)"):
        open_files(root)


def test_unreadable_file_in_a_folder(tmp_path):
    root = lay_out(tmp_path, TWO)
    source = open_folder(root)
    (root / "A/1.png").unlink()
    with pytest.raises(BrokenImage, match="No such file"):
        source.read(0, 8)
    assert len(source.fingerprint()) == 64


def test_in_order_keeps_order_raises_and_stays_ahead_only_a_little():
    done = []

    def work(i):
        done.append(i)
        if i == 500:
            raise KeyError(i)
        return i * i

    results = in_order(work, 1000, what="", unit="")
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(done) < 400
    with pytest.raises(KeyError):
        list(results)
    assert list(in_order(work, 0, what="", unit="")) == []


# --- real archives ---


def test_real_database(shared):
    source = open_radiography(shared("data/COVID-19_Radiography_Dataset.zip"))
    assert np.bincount([r.label for r in source.records]).tolist() == [3265, 1759, 4494, 1206]
    by_name = {r.name: r for r in source.records}
    assert by_name["COVID/images/COVID-1.webp"].source == "ieee8023"
    assert by_name["COVID/images/COVID-100.webp"].source is None
    assert source.read(0, 224).shape == (224, 224) and 40 < source.read(0, 224).mean() < 215


def test_real_parts(shared):
    source = open_folder(shared("data/covid-normal.zip"))
    counts = {}
    for _, name, split in summary(source):
        counts[split, name] = counts.get((split, name), 0) + 1
    assert counts == {
        ("train", "COVID"): 800, ("train", "Normal"): 800, ("validation", "COVID"): 200,
        ("validation", "Normal"): 200, ("test", "COVID"): 100, ("test", "Normal"): 100,
    }  # fmt: skip


def test_images_and_masks_without_classes_are_refused(shared):
    with pytest.raises(UserError, match="only one class"):
        open_folder(shared("data/lung-masks.zip"))


def test_open_files_names_are_sorted(tmp_path):
    assert open_files(lay_out(tmp_path / "a", TWO)).names == tuple(sorted(TWO))
