"""Labelled image files where they lie, in a folder or a zip archive, read without unpacking."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import threading
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from cxrjax.data import images
from cxrjax.data.images import BrokenImage
from cxrjax.errors import UserError
from cxrjax.threads import in_order

MAX_FILE_BYTES = 64 * 2**20  # a radiograph of 30 megapixels at 16 bit, uncompressed, is below it
_QUIET = 2000  # no progress bar for hashing fewer files than this
_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")


@dataclass(frozen=True)
class Record:
    """What is known of one image besides its pixels."""

    name: str  # stable id: posix path relative to the root of the data set
    label: int  # position in the source's classes
    split: str | None = None  # train, validation or test, when the data come so divided
    patient: str | None = None
    source: str | None = None  # hospital, collection or URL it came from
    mask: str | None = None  # lung mask: posix path relative to the root


class Source(Protocol):
    """Labelled images that can be read one by one, from several threads at once."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a record's label is a position in them."""
        ...

    @property
    def records(self) -> tuple[Record, ...]: ...

    def fingerprint(self) -> str:
        """Hex digest of file bytes, labels and metadata; the same wherever the data lie."""
        ...

    def read(self, i: int, size: int) -> np.ndarray:
        """Image `i` as grey uint8 [size, size]. Raises BrokenImage."""
        ...

    def read_mask(self, i: int, size: int) -> np.ndarray | None:
        """Lung mask of image `i`, uint8 [size, size] of 0 and 255, if it has one."""
        ...


class Files(Protocol):
    """Files by posix path relative to a folder or to the top of an archive."""

    path: Path
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """Raises BrokenImage when the file cannot be read or exceeds MAX_FILE_BYTES."""
        ...


class FileSource:
    """Images in a folder or an archive, with the labels that their path gave them."""

    def __init__(self, files: Files, root: str, classes: Sequence[str], records: Iterable[Record]):
        """
        Args:
          files: where to read.
          root: what stands before every record's name among the files' names, "" or "folder/".
          classes: class names in the order of the labels.
          records: any order; kept sorted by name.
        """
        self.classes = tuple(classes)
        self.records = tuple(sorted(records, key=lambda record: record.name))
        self._files = files
        self._root = root

    def __str__(self) -> str:
        return str(self._files.path)

    def fingerprint(self) -> str:
        """SHA-256 over each record and the bytes of its files.

        Independent of the place, of a wrapping folder and of whether the data set is packed. A
        file that cannot be read counts as such; reading it says why.
        """

        def line(i: int) -> bytes:
            r = self.records[i]
            digests = [self._digest(r.name), self._digest(r.mask) if r.mask else None]
            fields = [r.name, r.label, r.split, r.patient, r.source, r.mask]
            return json.dumps(fields + digests).encode() + b"\n"

        digest = hashlib.sha256(json.dumps(self.classes).encode() + b"\n")
        n = len(self.records)
        for hashed in in_order(line, n, what="checking files" if n > _QUIET else "", unit="files"):
            digest.update(hashed)
        return digest.hexdigest()

    def read(self, i: int, size: int) -> np.ndarray:
        """Image `i`, grey uint8 [size, size], resized with antialiasing. Raises BrokenImage."""
        return self.read_sizes(i, (size,))[0]

    def read_sizes(self, i: int, sizes: Sequence[int]) -> list[np.ndarray]:
        """As `read`, once for each size, decoded once for all. Raises BrokenImage."""
        name = self.records[i].name
        film = images.decode(self._files.read(self._root + name), name)
        return [images.resize(film, size) for size in sizes]

    def header(self, i: int) -> images.Header:
        """How the file of image `i` is stored. Raises BrokenImage."""
        name = self.records[i].name
        return images.header(self._files.read(self._root + name), name)

    def read_mask(self, i: int, size: int) -> np.ndarray | None:
        """Mask of image `i`, uint8 [size, size] of 0 and 255, or None. Raises BrokenImage."""
        name = self.records[i].mask
        if name is None:
            return None
        mask = images.decode_mask(self._files.read(self._root + name), name)
        return np.where(images.resize(mask, size) > 127, np.uint8(255), np.uint8(0))

    def _digest(self, name: str) -> str:
        try:
            return hashlib.sha256(self._files.read(self._root + name)).hexdigest()
        except BrokenImage:
            return "unreadable"


def open_files(path: Path) -> Files:
    """The files of a folder or a zip archive, hidden ones left out.

    Raises:
      UserError: when there is no such path or it is neither, or a folder in it cannot be read.
    """
    try:
        if path.is_dir():
            return _Folder(path)
        if not path.exists():
            raise UserError(f"{path} does not exist; name a folder or a zip archive of images.")
        if zipfile.is_zipfile(path):
            return _Archive(path)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{path} is a damaged zip archive ({error}); download it again, or unpack it and name "
            "the folder."
        ) from error
    except OSError as error:
        raise UserError(
            f"{error.filename or path} cannot be read ({error.strerror}); check its permissions."
        ) from error
    if path.name.lower().endswith(_ARCHIVES):
        raise UserError(f"{path} is an archive other than zip; unpack it and name the folder.")
    raise UserError(
        f"{path} is neither a folder nor a complete zip archive; name the folder of the data set, "
        "or download the archive again."
    )


class _Folder:
    def __init__(self, path: Path):
        self.path = path
        self.names = tuple(sorted(_walk(path)))

    def read(self, name: str) -> bytes:
        return read_file(self.path / name, name)


def read_file(path: Path, name: str) -> bytes:
    """A file's bytes.

    Args:
      name: for the error.
    Raises:
      BrokenImage: when it cannot be read or exceeds MAX_FILE_BYTES.
    """
    try:
        with open(path, "rb") as file:
            return _within_limit(file.read(MAX_FILE_BYTES + 1), name)
    except OSError as error:
        raise BrokenImage(name, f"cannot be read: {error.strerror}") from error


def _walk(top: Path) -> Iterator[str]:
    """Regular files below `top`, and links that lead nowhere: reading one says so.

    Links are followed, but no folder is entered twice.

    Folders below `top` come before links, so that none loses its files to a link to it; of several
    links to one folder elsewhere, the first by name counts.
    """
    entered = set()
    folders, links = [""], deque()
    while folders or links:
        prefix = folders.pop() if folders else links.popleft()
        status = os.stat(top / prefix)
        identity = (status.st_dev, status.st_ino)
        if identity in entered:
            continue
        entered.add(identity)
        with os.scandir(top / prefix) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if _hidden(entry.name):
                    continue
                if entry.is_dir():
                    inside = links if entry.is_symlink() else folders
                    inside.append(f"{prefix}{entry.name}/")
                elif entry.is_file() or not os.path.exists(entry.path):
                    yield prefix + entry.name


class _Archive:
    """Members are read into memory, never written to disk, so that no path in them can do harm."""

    def __init__(self, path: Path):
        self.path = path
        self._zip = zipfile.ZipFile(path)
        # Reading two members at once is safe, but opening and closing them counts references to
        # the shared file, unguarded.
        self._lock = threading.Lock()
        self._members: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = info.filename.replace("\\", "/").strip("/")
            if not info.is_dir() and not any(map(_hidden, name.split("/"))):
                self._members[name] = info
        self.names = tuple(sorted(self._members))
        if any(info.flag_bits & 1 for info in self._members.values()):
            raise UserError(f"{path} is encrypted; unpack it and name the folder.")

    def read(self, name: str) -> bytes:
        try:
            with self._lock:
                member = self._zip.open(self._members[name])
            try:
                # The size in the header is the archive's claim: count what really comes out.
                return _within_limit(member.read(MAX_FILE_BYTES + 1), name)
            finally:
                with self._lock:
                    member.close()
        except _UNPACKING as error:
            raise BrokenImage(name, f"damaged in the archive: {error}") from error


# Whatever zipfile and its decompressors raise at foreign bytes (LZMAError is an Exception of its
# own, in a module that some Pythons lack; RuntimeError covers NotImplementedError).
_UNPACKING = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)
try:
    from lzma import LZMAError

    _UNPACKING = (*_UNPACKING, LZMAError)
except ImportError:
    pass


def _within_limit(data: bytes, name: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise BrokenImage(name, f"larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def _hidden(part: str) -> bool:
    """Also true of '..' and of the resource forks that macOS packs."""
    return part.startswith(".") or part in ("", "__MACOSX")


def why_missing(location: str) -> str:
    """Why there are no data at a path, "" when there may be."""
    if not location:
        return "no data folder or archive is named"
    try:
        os.stat(location)
    except FileNotFoundError:
        return f"{location} does not exist"
    except (OSError, ValueError) as error:  # no permission; a name too long, or with a zero byte
        return f"{location} cannot be read ({getattr(error, 'strerror', None) or error})"
    return ""


def choose_classes(found: Iterable[str], wanted: Sequence[str], where: object) -> tuple[str, ...]:
    """The wanted classes in their order, or all found ones sorted by name when none is named.

    Raises:
      UserError: when a wanted class is not there, fewer than two are left, or a name is not text.
    """
    there = sorted(set(found))
    for name in wanted:
        if name not in there:
            folded = {other.casefold(): other for other in there}
            near = difflib.get_close_matches(name.casefold(), folded, 1)
            hint = f"did you mean {folded[near[0]]!r}" if near else f"it has {', '.join(there)}"
            raise UserError(
                f"class {name!r} of config.data.classes is not in {where}; {hint}. Name others by "
                "--config.data.classes=A,B; nothing behind the = takes all there are."
            )
    chosen = tuple(wanted) or tuple(there)
    if len(chosen) < 2:
        what = f"only one class ({chosen[0]})" if chosen else "no class"
        raise UserError(
            f"{what} is chosen or found in {where}; a classifier needs two or more: one folder of "
            "images per class."
        )
    for name in chosen:  # they are drawn in figures, unlike the names of images
        if name.encode(errors="ignore").decode() != name:
            raise UserError(f"the folder name {name!a} in {where} is not UTF-8; rename it.")
    return chosen
