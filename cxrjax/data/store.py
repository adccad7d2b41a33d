"""The decoded data set on disk: every image once, at one size, memory-mapped by all runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL

from cxrjax import log
from cxrjax.data.images import BrokenImage
from cxrjax.data.kept import REMEDY
from cxrjax.data.sources import Source
from cxrjax.errors import MALFORMED, UserError, writing
from cxrjax.threads import in_order

FORMAT = 3  # raise it whenever a store built by older code would hold other bytes
_BUILDING = "building-"
_ABANDONED = 24 * 3600  # seconds after which a half-built store is nobody's


@dataclass(frozen=True)
class Store:
    """Decoded images, with what is known of each, in the order of their names."""

    root: Path
    key: str  # SHA-256 of content, size and format
    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray  # int32 [N], positions in classes
    given_split: tuple[str | None, ...]
    patients: tuple[str | None, ...]
    sources: tuple[str | None, ...]
    images: np.memmap  # uint8 [N, S, S]
    masks: np.memmap | None  # uint8 [N, S, S], 0 or 255; None when no image has a mask
    has_mask: np.ndarray  # bool [N]; where False, the mask is all 0
    skipped: tuple[tuple[str, str], ...]  # unreadable images left out: name, reason


class _Damaged(Exception):
    """A store that is not what its store.json says."""


def open_store(source: Source, image_size: int, cache: Path, skip_broken: bool) -> Store:
    """The store of a source at one image size; decoded on the first call, mapped on later ones.

    Args:
      source: where the images come from.
      image_size: side of the square images, pixels.
      cache: folder of all stores.
      skip_broken: leave unreadable images out, naming them, instead of raising.
    Raises:
      UserError: when images (or their masks) cannot be read and `skip_broken` is False, when a
        class is left without images, or when the cache cannot be written.
    """
    fingerprint = source.fingerprint()
    # A store with images left out has another key, lest a run that wants all of them take it.
    keys = [_key(fingerprint, image_size, skipping) for skipping in (False, True)]
    for key in keys[: 1 + skip_broken]:
        root = cache / f"store-{key[:20]}"
        if root.exists():
            try:
                return _named_skipped(_open(root, key, image_size))
            except _Damaged as damage:
                log.say(f"the decoded images in {root} are damaged ({damage}); building them anew.")
    with _building(cache, len(source.records) * image_size**2) as folder:
        skipped = _build(source, image_size, folder, skip_broken, keys)
        key = keys[bool(skipped)]
        root = cache / f"store-{key[:20]}"
        _publish(folder, root, key, image_size)
    return _named_skipped(_open(root, key, image_size))


def _key(fingerprint: str, image_size: int, skipping: bool) -> str:
    text = json.dumps([fingerprint, image_size, FORMAT, *(["skipped"] * skipping)])
    return hashlib.sha256(text.encode()).hexdigest()


def _named_skipped(store: Store) -> Store:
    for name, reason in store.skipped:
        log.say(f"left out {name}: {reason}")
    return store


@contextmanager
def _building(cache: Path, needed: int) -> Iterator[Path]:
    """A folder beside the final one to build a store in; gone afterwards whatever happens."""
    with writing(cache, REMEDY):
        cache.mkdir(parents=True, exist_ok=True)
        for left in cache.glob(_BUILDING + "*"):
            if time.time() - _last_change(left) > _ABANDONED:
                shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(cache).free < needed:  # said now rather than after minutes of work
            raise OSError(errno.ENOSPC, "not enough room", str(cache))
        folder = _new_folder(cache)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder(cache: Path) -> Path:
    """Like tempfile.mkdtemp, but as readable to others as their umask lets the store be."""
    folder = cache / f"{_BUILDING}{uuid.uuid4().hex[:16]}"
    folder.mkdir()
    return folder


def _last_change(folder: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # another process has just finished or removed it
        return time.time()


def _build(
    source: Source, size: int, folder: Path, skip_broken: bool, keys: list[str]
) -> list[tuple[str, str]]:
    """Decodes everything into `folder`; returns what was left out as (name, reason)."""
    images, masks = _ArrayFile(folder / "images.npy", size), _ArrayFile(folder / "masks.npy", size)
    blank = np.zeros((size, size), np.uint8)
    kept, has_mask, skipped = [], [], []

    def decode(i: int) -> tuple[np.ndarray, np.ndarray | None] | BrokenImage:
        try:
            return source.read(i, size), source.read_mask(i, size)
        except BrokenImage as broken:
            return broken

    n = len(source.records)
    try:
        decoded = in_order(decode, n, what="decoding images", unit="images")
        for record, result in zip(source.records, decoded, strict=True):
            if isinstance(result, BrokenImage):
                skipped.append((result.name, result.reason))
                continue
            image, mask = result
            images.append(image)
            if mask is not None:
                while masks.count < len(kept):
                    masks.append(blank)
                masks.append(mask)
            elif masks.count:
                masks.append(blank)
            kept.append(record)
            has_mask.append(mask is not None)
        if skipped:
            _refuse(source, kept, skipped, skip_broken)
    finally:
        images.close()
        masks.close()
    description = {
        "format": FORMAT,
        "key": keys[bool(skipped)],
        "image_size": size,
        "classes": source.classes,
        "names": [record.name for record in kept],
        "labels": [record.label for record in kept],
        "given_split": [record.split for record in kept],
        "patients": [record.patient for record in kept],
        "sources": [record.source for record in kept],
        "has_mask": has_mask,
        "skipped": [{"name": name, "reason": reason} for name, reason in skipped],
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__},
    }
    log.write_json(folder / "store.json", description)
    return skipped


def _refuse(source: Source, kept: list, skipped: list, skip_broken: bool) -> None:
    """Raises UserError unless the user wants to go on without the skipped images, and can."""
    total, (name, reason) = len(source.records), skipped[0]
    if not kept:
        raise UserError(
            f"none of the {total} images of {source} can be read (the first: {name}: {reason}); "
            "check that this is the right folder or archive, and download it again."
        )
    if not skip_broken:
        most = "most of the images cannot be read: " if len(skipped) > total / 2 else ""
        raise UserError(
            f"{most}{len(skipped)} of the {total} images of {source} are broken, the first "
            f"{name} ({reason}); mend or remove them, or go on without them by "
            "--config.data.skip_broken=True."
        )
    for label in {record.label for record in source.records} - {record.label for record in kept}:
        raise UserError(
            f"no image of class {source.classes[label]!r} of {source} can be read (one of them: "
            f"{name}: {reason}); mend them or leave the class out by --config.data.classes."
        )


class _ArrayFile:
    """A .npy file of uint8 [N, S, S] written image by image; no file when none is appended.

    Written in order rather than through a memory map: on a full disk a map kills the process.
    """

    def __init__(self, path: Path, size: int):
        self.count = 0
        self._path, self._size = path, size
        self._file: BinaryIO | None = None

    def append(self, image: np.ndarray) -> None:
        if self._file is None:
            self._file = open(self._path, "wb")  # noqa: SIM115 (closed by close)
            self._header(self._file)
        if image.shape != (self._size, self._size) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self._size}x{self._size}, got {image.shape}")
        self._file.write(np.ascontiguousarray(image).data)
        self.count += 1

    def close(self) -> None:
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            self._header(file)
            file.flush()
            os.fsync(file.fileno())

    def _header(self, file: BinaryIO) -> None:
        # NumPy pads the header so that the first axis can grow in place.
        shape = (self.count, self._size, self._size)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)


def _publish(folder: Path, root: Path, key: str, size: int) -> None:
    """Renames a finished store into place; yields to one that another process put there."""
    _sync(folder)
    for _ in range(10):
        try:
            os.rename(folder, root)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        try:
            _open(root, key, size)
            return
        except _Damaged:
            _remove(root)
    _sync(root.parent)


def _remove(root: Path) -> None:
    aside = _new_folder(root.parent)
    try:
        os.rename(root, aside / "damaged")
    except FileNotFoundError:  # another process was quicker
        pass
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(root: Path, key: str, size: int) -> Store:
    try:
        text = (root / "store.json").read_text(encoding="utf-8")
        described: dict[str, Any] = json.loads(text)
        names, labels = tuple(described["names"]), np.array(described["labels"], np.int32)
        classes, n = tuple(described["classes"]), len(described["names"])
        per_image = [described[k] for k in ("labels", "given_split", "patients", "sources")]
        has_mask = np.array(described["has_mask"], bool)
        skipped = tuple((entry["name"], entry["reason"]) for entry in described["skipped"])
        if described["key"] != key or any(len(values) != n for values in [*per_image, has_mask]):
            raise _Damaged("store.json is of another store")
        if n and not 0 <= labels.min() <= labels.max() < len(classes):
            raise _Damaged("store.json has labels without a class")
        shape = (n, size, size)
        images = _map(root / "images.npy", shape)
        masks = _map(root / "masks.npy", shape) if has_mask.any() else None
    except (OSError, *MALFORMED) as error:
        raise _Damaged(" ".join(str(error).split())) from error
    return Store(
        root=root,
        key=key,
        classes=classes,
        names=names,
        labels=labels,
        given_split=tuple(described["given_split"]),
        patients=tuple(described["patients"]),
        sources=tuple(described["sources"]),
        images=images,
        masks=masks,
        has_mask=has_mask,
        skipped=skipped,
    )


def _map(path: Path, shape: tuple[int, int, int]) -> np.memmap:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
        raise _Damaged(f"{path.name} has the shape {array.shape}, not {shape}")
    if path.stat().st_size != array.offset + array.size:
        raise _Damaged(f"{path.name} has {path.stat().st_size} bytes")
    return array
