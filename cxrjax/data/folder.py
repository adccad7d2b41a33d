"""Any folder or zip archive with one subfolder of images per class, divided into parts or not."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
# What folders within a class hold, by their name in lower case, "_" and "-" read as blanks.
_KINDS = {"images": "images"}
_KINDS |= dict.fromkeys(("mask", "masks", "lung mask", "lung masks"), "masks")
_KINDS |= dict.fromkeys(("lesions", "lesion masks", "infection mask", "infection masks"), "lesions")
_NO_CLASSES = {"images", "masks", "lesions"}  # side by side
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
    are passed over. Masks of the same stem may lie in `masks` (or `lung masks`) beside `images`, or
    beside the images themselves, in the class or deeper; folders of other masks, as `lesions` and
    `infection masks`, are ignored. A `metadata.csv` has a column `file` (or FILE NAME: path from
    the table's folder or bare name, with or without suffix) and `patient` (or `patient_id`,
    `PatientID`), `source` or both. It may lie beside the class or part folders or within them, for
    the images there, or beside a folder wrapped around them (of these the nearest counts). Other
    files are ignored.

    Args:
      path: the folder or archive.
      classes: which classes and in which order; () for all, sorted by name.
    Returns:
      Records with the part as split, patient and source from the metadata, and the mask.
    Raises:
      UserError: when there are no images, a wanted class is missing, fewer than two classes are
        left, parts lie beside other folders (a single one where these have the same subfolders),
        or the metadata contradict themselves or cannot be read or applied.
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
    there = {str(where.label) for where in labelled.values()}
    _tell_of_unread(files, found, there)
    chosen = choose_classes(there, classes, path)
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
        named = set(classes) & {path[0] for path in paths}
        if len(tops) != 1 or "" in below or all(map(_kind, below)) or named:
            break
        root += f"{tops.pop()}/"
    parts = {PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    others = sorted(top for top in tops if top.lower() not in PARTS)
    if others and (len(parts) > 1 or (parts and not set(classes) and _same_classes(paths))):
        raise UserError(
            f"{where} has folders {', '.join(others)} beside the parts {', '.join(sorted(parts))}; "
            "name the folder that holds only parts, or only classes, or name the classes by "
            "--config.data.classes=A,B."
        )
    if tops and {top.lower() for top in tops} <= _NO_CLASSES and not set(classes):
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
    inner = folders[above + 1 :]
    kinds = {_kind(folder) for folder in inner}
    kept = folders[: above + 1] + [folder for folder in inner if not _kind(folder)]
    key = "/".join([*kept, PurePosixPath(name).stem]).lower()
    label = folders[above] if len(folders) > above and (split or not divided) else None
    lesion = "lesions" in kinds
    return Place(label, split, "masks" in kinds and not lesion, lesion, key)


def _kind(folder: str) -> str:
    """What a folder below a class holds by its name: images, masks (of lungs), lesions; or ""."""
    return _KINDS.get(folder.lower().replace("_", " ").replace("-", " "), "")


def _same_classes(paths: Sequence[Sequence[str]]) -> bool:
    """Whether a folder shares two names of subfolders with one that is called like a part."""
    below: dict[str, set[str]] = defaultdict(set)
    for top, *inner in paths:
        if len(inner) > 1 and not _kind(inner[0]):
            below[top].add(inner[0].casefold())
    return any(
        len(below[top] & below[other]) > 1
        for top in below
        for other in below
        if top.lower() in PARTS and other.lower() not in PARTS
    )


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

    def is_mask(name: str) -> bool:
        folders = name.removeprefix(root).lower().split("/")[:-1]
        return any(_kind(f) in ("masks", "lesions") and f not in classes for f in folders)

    return [name for name in names if not is_mask(name)]


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


def _tell_of_unread(files: Files, found: Layout, labels: set[str]) -> None:
    """Names folders that would be classes, had they images: of DICOM without a suffix, maybe."""
    lost: dict[str, list[str]] = defaultdict(list)
    for name in files.names:
        if name.startswith(found.root) and not images.is_image(name):
            label = place(name.removeprefix(found.root), found.divided).label
            if label is not None and label not in labels:
                lost[label].append(name)
    for label, names in sorted(lost.items()):
        log.say(
            f"{files.path}: ignored the folder {label}, none of its {len(names)} files is a film "
            f"by its suffix, as {names[0]}; DICOM files must end in .dcm"
        )


def _metadata(files: Files, root: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Rows of the metadata.csv by image name, `patient`, `source` or both; {} without a table.

    Read are those below the root that have the columns for it, and of those in the root and in
    folders wrapped around it the nearest, which must have them.
    """
    tables = [name for name in files.names if PurePosixPath(name).name.lower() == _TABLE]
    around = [name for name in tables if root.startswith(name[: -len(_TABLE)])]
    nearest, *others = sorted(around, key=len, reverse=True) or [""]
    for other in others:
        log.say(f"{files.path}: ignored {other}, for {nearest} lies nearer to the images")
    within = [name for name in tables if name.startswith(root) and name not in around]
    found: dict[str, dict[str, str]] = {}
    for table in ([nearest] if nearest else []) + within:
        where, above = f"{files.path}: {table}", table[: -len(_TABLE)]
        try:
            rows = _with_patient(read_table(files, table), where)
        except UserError as error:
            if table == nearest:
                raise
            log.say(f"ignored a table within the parts or classes: {error}")
            continue
        below = {(root + n).removeprefix(above): n for n in names if (root + n).startswith(above)}
        _apply_table(rows, where, above, below, found)
    return found


def _apply_table(
    rows: list[dict[str, str]],
    where: str,
    above: str,
    below: Mapping[str, str],
    found: dict[str, dict[str, str]],
) -> None:
    """Adds to `found` what the rows of the table `where` in the folder `above` say of images.

    Args:
      below: names of the images below that folder by their path from there.
    """
    called: dict[str, set[str]] = defaultdict(set)
    for inside, name in below.items():
        path = PurePosixPath(inside.lower())
        for way in (str(path), str(path.with_suffix("")), path.name, path.stem):
            called[way].add(name)
    applied = False
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
            found[name], applied = before | row, True
    if not applied:
        raise UserError(f"{where} names none of the images; give their paths from its folder.")


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
