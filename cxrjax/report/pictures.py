"""Pictures made small enough to lie inside a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cxrjax.errors import UserError

ROOM = 3_400_000  # bytes for all pictures of a page: in base64 a third more, below 5 MB
_WIDEST = 1300  # pixels: a page's width on a dense screen
_TALLEST = 2.5  # times its width: sheets of hundreds of films are cut below, not shrunk away
_SMALLEST = 200  # pixels wide: narrower, nothing can be read


class Picture(NamedTuple):
    """A PNG as it goes into the page."""

    data: bytes
    width: int  # pixels
    height: int
    cut: bool  # whether the lower part was left out


def load(paths: Mapping[str, Path], room: int = ROOM) -> dict[str, Picture]:
    """The pictures that exist, together within `room` bytes: the largest give way first.

    Raises:
      UserError: for a file that is no picture.
    """
    found = {name: _open(path) for name, path in paths.items() if path.is_file()}
    limit = fair_limit([len(picture.data) for picture in found.values()], room)
    return {name: _within(picture, limit) for name, picture in found.items()}


def fair_limit(sizes: list[int], room: float) -> float:
    """The size to which the largest must shrink for all to fit; infinity where all fit as is."""
    for k, size in enumerate(sorted(sizes)):
        if size > (share := room / (len(sizes) - k)):
            return share
        room -= size
    return math.inf


def _open(path: Path) -> Picture:
    """A picture no wider or taller than a page shows."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            tall = int(image.width * _TALLEST)
            cut = image.height > tall
            if image.format == "PNG" and image.width <= _WIDEST and not cut:
                return Picture(data, image.width, image.height, False)
            image = image.convert("RGB").crop((0, 0, image.width, min(image.height, tall)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} cannot be read as a picture ({error}); delete it or make it anew."
        ) from error
    image.thumbnail((_WIDEST, tall), Image.Resampling.LANCZOS)
    return Picture(_png(image), image.width, image.height, cut)


def _within(picture: Picture, limit: float) -> Picture:
    """The picture in at most `limit` bytes: in 256 colours, then in fewer pixels."""
    if len(picture.data) <= limit:
        return picture
    original = image = Image.open(io.BytesIO(picture.data)).convert("RGB")
    data = _png(image.quantize(256))
    while len(data) > limit and image.width > _SMALLEST:
        shrink = min(0.9, math.sqrt(limit / len(data)))
        width = max(_SMALLEST, int(image.width * shrink))
        image = original.resize((width, max(1, original.height * width // original.width)))
        data = _png(image.quantize(256))
    return Picture(data, image.width, image.height, picture.cut)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
