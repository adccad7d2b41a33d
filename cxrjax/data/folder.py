"""Any folder or zip archive with one subfolder of images per class, divided into parts or not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cxrjax import log
from cxrjax.data import images
from cxrjax.data.metadata import read_table
from cxrjax.data.sources import Files, FileSource, Record, choose_classes, open_files
from cxrjax.errors import UserError

# Folders, in lower case, that are parts of a divided data set rather than classes.
PARTS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_MASKS = {"masks", "lesions"}
_INNER = {"images"} | _MASKS  # folders within a class, or side by side without classes
_TABLE = "metadata.csv"
_TOLD = ("patient", "source")  # what a table may say of an image
_PATIENT = ("patient", "patient id", "patientid")  # columns that name a patient, the first counts
_UNREAD = (".bmp", ".gif", ".tif", ".tiff", ".jp2", ".heic", ".avif", ".nii", ".npy")


class Layout(NamedTuple):
    """Where the classes lie among the files of a data set."""

    root: str  # folders wrapped around the classes and parts, "" or "folder/"
    divided: bool  # whether there are parts between the root and the classes


class Place(NamedTuple):
    """What an image's path says of it."""

    label: str | None  # class name; None outside class folders
    split: str | None
    is_mask: bool  # of the lungs
    is_lesion: bool  # a mask of what is ill, which nothing here reads
    key: str  # equal for an image and its mask


def open_folder(path: Path, classes: tuple[str, ...] = ()) -> FileSource:
    """Opens class-named subfolders of PNG, JPEG, WebP or DICOM files, at any depth below them.

    `<class>/...` or `<part>/<class>/...` with the parts of `PARTS`; folders wrapped around these
    are passed over. Masks of the same stem may lie in `<class>/masks` beside `<class>/images`, or
    beside the images themselves; `<class>/lesions` is ignored. An optional `metadata.csv` beside
    the class or part folders, or beside a folder wrapped around them (the nearest counts), has a
    column `file` (or FILE NAME: path from the table's folder or bare name, with or without suffix)
    and `patient` (or `patient_id`, `PatientID`), `source` or both. Other files are ignored.

    Args:
      path: the folder or archive.
      classes: which classes and in which order; () for all, sorted by name.
    Returns:
      Records with the part as split, patient and source from the metadata, and the mask.
    Raises:
      UserError: when there are no images, a wanted class is missing, fewer than two classes are
        left, parts lie beside other folders, or the metadata contradict themselves or cannot be
        read or applied.
    """
    files, pictures = _pictures(path)
    found = layout(pictures, classes, path)
    places = {
        name: place(name, found.divided)
        for name in (picture.removeprefix(found.root) for picture in pictures)
    }
    outside = [name for name, where in places.items() if where.label is None]
    if outside:
        log.say(f"{path}: ignored {len(outside)} images outside class folders, as {outside[0]}")
    masks = {where.key: name for name, where in places.items() if where.is_mask}
    labelled = {
        name: where
        for name, where in places.items()
        if where.label and not (where.is_mask or where.is_lesion)
    }
    chosen = choose_classes((str(where.label) for where in labelled.values()), classes, path)
    known = _metadata(files, found.root, list(labelled))
    records = []
    for name, where in labelled.items():
        if where.label in chosen:
            row = known.get(name, {})
            patient, source = row.get("patient"), row.get("source")
            label, mask = chosen.index(where.label), masks.get(where.key)
            records.append(Record(name, label, where.split, patient, source, mask))
    for what in _TOLD:
        left = [record.name for record in records if getattr(record, what) is None]
        if left and any(what in row for row in known.values()):
            told = f"no {what} for {len(left)} of {len(records)} images, as {left[0]}"
            log.say(f"{path}: {_TABLE} gives {told}")
    return FileSource(files, found.root, chosen, records)


def layout(names: Sequence[str], classes: Sequence[str] = (), where: object = "") -> Layout:
    """Finds the classes among image names, posix paths.

    A folder counts as wrapped around the data set, not as a class, when it is the only one and
    has images in subfolders only.

    Args:
      classes: folders that the user says are classes.
      where: for the error.
    Raises:
      UserError: when the folders are neither classes nor parts but a mixture, or have no classes.
    """
    root = ""
    while True:
        paths = [name.removeprefix(root).split("/") for name in names]
        tops = {path[0] for path in paths if len(path) > 1} - set(classes)
        below = {path[1].lower() if len(path) > 2 else "" for path in paths}
        if len(tops) != 1 or "" in below or below <= _INNER or set(classes) & {p[0] for p in paths}:
            break
        root += f"{tops.pop()}/"
    parts = {PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    others = sorted(top for top in tops if top.lower() not in PARTS)
    if len(parts) > 1 and others:
        raise UserError(
            f"{where} has folders {', '.join(others)} beside the parts {', '.join(sorted(parts))}; "
            "name the folder that holds only parts, or only classes."
        )
    if tops and {top.lower() for top in tops} <= _INNER and not set(classes):
        raise UserError(
            f"{where} holds {' and '.join(sorted(tops))} without classes; make one folder of "
            "images per class."
        )
    return Layout(root, len(parts) > 1)


def place(name: str, divided: bool) -> Place:
    """Reads class, part and kind from an image's path relative to the root of its data set."""
    folders = name.split("/")[:-1]
    split = PARTS.get(folders[0].lower()) if divided and folders else None
    above = 1 if divided else 0
    inner = folders[above + 1].lower() if len(folders) > above + 1 else ""
    kept = folders[: above + 1] + folders[above + 1 + (inner in _INNER) :]
    key = "/".join([*kept, PurePosixPath(name).stem]).lower()
    label = folders[above] if len(folders) > above and (split or not divided) else None
    return Place(label, split, inner == "masks", inner == "lesions", key)


def films(names: Sequence[str]) -> list[str]:
    """Of image names below any folder, posix paths, those that are not of masks or lesions.

    Left out is what lies in a folder called so, directly in its class (as for `open_folder`) or
    deeper; only a class may have such a name.
    """
    try:
        root, divided = layout(names)
    except UserError:  # not a data set: maybe one class of it
        root, divided, classes = "", False, set[str]()
    else:
        labels = (place(name.removeprefix(root), divided).label for name in names)
        classes = {label.lower() for label in labels if label}
    kinds = _MASKS - classes
    return [n for n in names if not kinds & set(n.removeprefix(root).lower().split("/")[:-1])]


def _pictures(path: Path) -> tuple[Files, list[str]]:
    files = open_files(path)
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in files.names)
    for suffix in _UNREAD:
        if suffixes[suffix]:
            log.say(f"{path}: ignored {suffixes[suffix]} {suffix} files; convert them to PNG")
    pictures = [name for name in files.names if images.is_image(name)]
    if not pictures:
        raise UserError(
            f"{path} holds no PNG, JPEG, WebP or DICOM image; name a folder or zip archive with "
            "one folder of images per class."
        )
    return files, pictures


def _metadata(files: Files, root: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Rows of the nearest metadata.csv by image name; {} when there is no such file.

    It lies in the root or in a folder wrapped around it. A row has `patient`, `source` or both.
    """
    tables = [
        name
        for name in files.names
        if PurePosixPath(name).name.lower() == _TABLE and root.startswith(name[: -len(_TABLE)])
    ]
    if not tables:
        return {}
    table, *others = sorted(tables, key=len, reverse=True)
    for other in others:
        log.say(f"{files.path}: ignored {other}, for {table} lies nearer to the images")
    where, above = f"{files.path}: {table}", table[: -len(_TABLE)]
    rows = _with_patient(read_table(files, table), where)
    called: dict[str, set[str]] = defaultdict(set)
    for name in names:
        path = PurePosixPath((root + name).removeprefix(above).lower())
        for way in (str(path), str(path.with_suffix("")), path.name, path.stem):
            called[way].add(name)
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        file = row.get("file", row.get("file name", "")).replace("\\", "/").removeprefix("./")
        meant = called.get(file.removeprefix(above).lower(), set())
        if len(meant) > 1:
            raise UserError(
                f"{where} names {file}, which may be {' or '.join(sorted(meant)[:2])}; give the "
                f"path from the folder of {_TABLE}."
            )
        for name in meant:
            before = found.get(name, {})
            for column in _TOLD:
                if column in before and row.get(column, before[column]) != before[column]:
                    raise UserError(
                        f"{where} gives {name} the {column} {before[column]} and {row[column]}; "
                        "keep the row that is right."
                    )
            found[name] = before | row
    if not found:
        raise UserError(f"{where} names none of the images; give their paths from its folder.")
    return found


def _with_patient(rows: list[dict[str, str]], where: str) -> list[dict[str, str]]:
    """The rows of a table, checked, with the patient under one name whatever its column's is."""
    columns = {column for row in rows for column in row}
    known = columns & set(_PATIENT)
    unknown = sorted(name for name in columns - known if name.startswith("patient"))
    if unknown and not known:
        # Passed over, a misnamed patient would cross the splits without a word.
        raise UserError(
            f"{where} has a column {unknown[0]}; rename it to patient if it says whose image it "
            "is, else so that it does not begin with patient."
        )
    if not columns & {"file", "file name"} or not (known or "source" in columns):
        raise UserError(
            f"{where} needs a column file and a column patient or source, filled; it has "
            f"{', '.join(sorted(columns)) or 'none'}."
        )
    named = ([row[column] for column in _PATIENT if column in row] for row in rows)
    return [row | {"patient": of[0]} if of else row for row, of in zip(rows, named, strict=True)]
