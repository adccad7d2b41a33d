"""What kind of weight file lies there, told from its content: a suffix can lie."""

from __future__ import annotations

import zipfile
from pathlib import Path

from cxrjax.errors import UserError

MAX_BYTES = 1 << 30  # of all tensors of a file together, and of a download
REMEDY = "get the file again, or set --config.model.weights=none"
_BY_SUFFIX = {
    ".h5": "h5",
    ".hdf5": "h5",
    ".keras": "keras",
    ".npz": "npz",
    ".pth": "torch",
    ".pt": "torch",
    ".tar": "torch",  # of .pth.tar, which is no tar archive
}
SUFFIXES = tuple(_BY_SUFFIX)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_TORCH_BEFORE_1_6 = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")  # a pickled magic number


def of(path: Path) -> str:
    """ "h5", "keras", "npz" or "torch": by the content, and by the suffix where that says nothing.

    Raises:
      UserError: when neither is known.
      OSError: when the file cannot be read.
    """
    kind = _by_content(path) or _BY_SUFFIX.get(path.suffix.lower())
    if kind is None:
        raise UserError(
            f"weight file {path} has an unknown ending; it must be one of {', '.join(SUFFIXES)}."
        )
    return kind


def damaged(path: Path, what: str) -> UserError:
    """The error for a file that cannot be read as `what`; a saved web page is called one."""
    with open(path, "rb") as head:
        text = head.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return UserError(f"{path} is a web page, not a weight file; {REMEDY}.")
    return UserError(f"{path} is damaged, cut short or not {what}; {REMEDY}.")


def _by_content(path: Path) -> str | None:
    with open(path, "rb") as file:
        head = file.read(16)
    if head.startswith(_HDF5):
        return "h5"
    if head.startswith(_TORCH_BEFORE_1_6):
        return "torch"
    if not head.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except Exception:  # damaged archives make zipfile raise almost anything
        return None
    if "model.weights.h5" in names:
        return "keras"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    return "npz" if any(name.endswith(".npy") for name in names) else None
