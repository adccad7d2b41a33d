"""The COVID-19 Radiography Database, from its archive or its unpacked folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cxrjax import log
from cxrjax.data import images
from cxrjax.data.metadata import read_table
from cxrjax.data.sources import Files, FileSource, Record, choose_classes, open_files
from cxrjax.errors import UserError

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
URL = "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database"
# Folder names of all releases in lower case; the first releases wrote COVID-19 and NORMAL.
_CLASS_OF = {name.lower(): name for name in CLASSES} | {"covid-19": "COVID"}
_DEPTH = 3  # folders to descend in search of the database


def open_radiography(path: Path, classes: tuple[str, ...] = ()) -> FileSource:
    """Opens the database (doi:10.1109/ACCESS.2020.3010287, 10.1016/j.compbiomed.2021.104319).

    Below its root lie `<class>/images/*` with `<class>/masks/*` of the same stem where present
    (first releases: `<class>/*`), and `<class>.metadata.xlsx` or `.csv` with FILE NAME and SOURCE
    or URL. Other subfolders are ignored. A part of the database will do.

    A table that says nothing of its images is named on standard error.

    Args:
      path: the archive, the unpacked folder, or a folder that holds either.
      classes: which of `CLASSES` and in which order; () for all there are.
    Returns:
      Records with source and mask where known; they have neither split nor patient, for the
      database names none.
    Raises:
      UserError: when the database is not there or there several times, a wanted class is missing,
        or fewer than two are.
    """
    files = open_files(_locate(path))
    root = _root(files)
    inside = [name.removeprefix(root) for name in files.names if name.startswith(root)]
    pictures: dict[str, list[str]] = defaultdict(list)
    masks: dict[str, str] = {}
    for name in filter(images.is_image, inside):
        folder, *between, _ = name.split("/") if "/" in name else ("", "")
        found = _CLASS_OF.get(folder.lower())
        part = between[0].lower() if between else "images"
        if found is None or part not in ("images", "masks"):
            continue
        if part == "masks":
            masks[f"{folder}/{PurePosixPath(name).stem}".lower()] = name
        else:
            pictures[found].append(name)
    chosen = choose_classes(pictures, classes, files.path)
    records = []
    for label, name in enumerate(chosen):
        stems = {picture: PurePosixPath(picture).stem.lower() for picture in pictures[name]}
        sources = {
            folder: _sources(files, root, inside, folder, set(stems.values()))
            for folder in sorted({picture.split("/")[0] for picture in stems})
        }
        for picture, stem in stems.items():
            folder = picture.split("/")[0]
            source, mask = sources[folder].get(stem), masks.get(f"{folder.lower()}/{stem}")
            records.append(Record(picture, label, source=source, mask=mask))
    return FileSource(files, root, chosen, records)


def _sources(
    files: Files, root: str, inside: list[str], folder: str, stems: set[str]
) -> dict[str, str]:
    """Source by lower-case file stem, for the table's case may differ: NORMAL-1, Normal-1.png."""
    wanted = {f"{folder}.metadata{suffix}".lower() for suffix in (".csv", ".xlsx")}
    sources = {}
    for table in (name for name in inside if name.lower() in wanted):
        rows = read_table(files, root + table)
        named = {
            _stem(row["file name"]): row.get("source") or row.get("url", "")
            for row in rows
            if "file name" in row and row.keys() & {"source", "url"}
        }
        if not stems & named.keys():
            columns = ", ".join(sorted({column for row in rows for column in row})) or "none"
            log.say(
                f"{files.path}: {table} gives the source of no image; it needs the columns FILE "
                f"NAME, with the images' names, and SOURCE or URL, and has {columns}"
            )
        sources |= named
    return sources


def _stem(file_name: str) -> str:
    """File names in the tables come without a suffix, mostly, and may hold dots."""
    return (PurePosixPath(file_name).stem if images.is_image(file_name) else file_name).lower()


def _root(files: Files) -> str:
    """What stands before the class folders: the shallowest place with two or more of them."""
    classes: dict[str, set[str]] = defaultdict(set)
    for name in filter(images.is_image, files.names):
        parts = name.split("/")
        for i, part in enumerate(parts[:-1]):
            if part.lower() in _CLASS_OF:
                classes["".join(f"{above}/" for above in parts[:i])].add(_CLASS_OF[part.lower()])
    roots = [place for place, found in classes.items() if len(found) > 1]
    shallowest = min((place.count("/") for place in roots), default=0)
    roots = sorted(place for place in roots if place.count("/") == shallowest)
    if not roots:
        raise _absent(files.path)
    if len(roots) > 1:
        raise _several(files.path, roots)
    return roots[0]


def _several(path: Path, roots: Sequence[str]) -> UserError:
    return UserError(
        f"{path} holds the database's classes in several places ({', '.join(roots)}); name one of "
        "them, or read divided data by --config.data.name=folder."
    )


def _absent(path: Path) -> UserError:
    return UserError(
        f"{path} does not hold the COVID-19 Radiography Database: no two of its folders "
        f"{', '.join(CLASSES)} with images are in it; get it from {URL}, or read another data set "
        "by --config.data.name=folder."
    )


def _locate(path: Path) -> Path:
    """The folder or archive of the database, where `path` is it or holds it."""
    if not path.is_dir():
        return path
    level = [path]
    for _ in range(_DEPTH + 1):
        below = {folder: _folders(folder) for folder in level}
        found = [
            folder
            for folder, children in below.items()
            if len({_CLASS_OF.get(child.name.lower()) for child in children} - {None}) > 1
        ]
        if len(found) > 1:
            raise _several(path, [f"{folder.relative_to(path)}/" for folder in found])
        if found:
            return found[0]
        level = [child for children in below.values() for child in children]
    try:
        archives = [file for file in sorted(path.iterdir()) if _holds_database(file)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions."
        ) from error
    if len(archives) > 1:
        raise UserError(
            f"{path} holds several archives of the database "
            f"({', '.join(archive.name for archive in archives)}); name one of them."
        )
    if not archives:
        raise _absent(path)
    return archives[0]


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(path / e.name for e in entries if e.is_dir() and e.name[0] != ".")
    except OSError:  # not ours to read
        return []


def _holds_database(file: Path) -> bool:
    if file.suffix.lower() != ".zip" or not file.is_file():
        return False
    try:
        _root(open_files(file))
    except UserError:  # another archive beside it is no error
        return False
    return True
