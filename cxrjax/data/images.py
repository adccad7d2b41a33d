"""Bytes of a PNG, JPEG, WebP or DICOM file to a grey uint8 image, and images to another size."""

from __future__ import annotations

import contextlib
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", *DICOM_SUFFIXES)
MAX_PIXELS = 100_000_000  # a digital radiograph has 10 to 20 million; a bomb claims billions
_FORMATS = ("PNG", "JPEG", "WEBP")
_STARTS = (b"\x89PNG", b"\xff\xd8")
_DEPTHS = (8, 10, 12, 14, 16)  # bits per pixel that detectors deliver in 16-bit files


class BrokenImage(Exception):
    """A file that should be an image and cannot be read as one."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def is_image(name: str) -> bool:
    """Whether the suffix, in any case, is that of a format read here."""
    return name.lower().endswith(SUFFIXES)


def decode(data: bytes, name: str) -> np.ndarray:
    """A file's bytes as a grey image at its own size, uint8 [H, W].

    Colour becomes luma (ITU-R 601), transparency shows black, and a picture is turned as its EXIF
    data say. Deeper pixels are scaled, never clipped: the full scale of a 16-bit PNG is the
    smallest of 8, 10, 12, 14 and 16 bits that holds its largest value, since detectors store 12
    bits in 16. DICOM goes through its modality transform and its first window (PS3.3 C.11.2), else
    from the 0.5th to the 99.5th percentile; MONOCHROME1 is inverted, so that bone is bright.

    Args:
      data: the whole file. What it is is read from its content.
      name: the file's name, for the error, and its suffix for DICOM files without a preamble.
    Raises:
      BrokenImage: whatever else the bytes are.
    """
    if not data:
        raise BrokenImage(name, "the file is empty")
    try:
        if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
            return _decode_dicom(data, name)
        return _decode_picture(data, name)
    except BrokenImage:
        raise
    except UnidentifiedImageError as error:
        known = data.startswith(_STARTS) or data[8:12] == b"WEBP"
        reason = "damaged or cut short" if known else "its content is not PNG, JPEG, WebP or DICOM"
        raise BrokenImage(name, reason) from error
    except Image.DecompressionBombError as error:
        raise BrokenImage(name, "claims more pixels than any radiograph") from error
    except Exception as error:  # decoders raise all kinds of exceptions at foreign bytes
        reason = " ".join(str(error).split())[:200]
        raise BrokenImage(name, f"damaged: {reason or type(error).__name__}") from error


def decode_mask(data: bytes, name: str) -> np.ndarray:
    """A mask's bytes as uint8 [H, W]: what is above 127 belongs to it.

    Label maps of 0 and 1 (or 1 and 2 for the two lungs) hold nothing above 127: all that is not 0
    in them becomes 255.

    Args, raises: as for `decode`.
    """
    mask = decode(data, name)
    if mask.max() > 127:
        return mask
    return np.where(mask > 0, np.uint8(255), np.uint8(0))


class Header(NamedTuple):
    """How a picture is stored, which no disease can change."""

    kind: str  # PNG, JPEG, WEBP or DICOM
    mode: str  # Pillow's, e.g. L or RGB; the photometric interpretation of DICOM
    width: int  # pixels, before it is turned as EXIF data say
    height: int
    quantisation: float  # mean of the JPEG's quantisation tables: the higher the coarser; else 0


def header(data: bytes, name: str) -> Header:
    """Reads how a file's image is stored, without decoding it.

    Args:
      data, name: as for `decode`.
    Raises:
      BrokenImage: whatever else the bytes are.
    """
    try:
        if data[128:132] == b"DICM" or name.lower().endswith(DICOM_SUFFIXES):
            kept = _read_dicom(data, name, stop_before_pixels=True)
            mode = str(kept.get("PhotometricInterpretation", ""))
            return Header("DICOM", mode, int(kept.Columns), int(kept.Rows), 0.0)
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            tables = getattr(picture, "quantization", None) or {0: [0]}
            coarse = float(np.mean([np.mean(table) for table in tables.values()]))
            return Header(str(picture.format), picture.mode, *picture.size, coarse)
    except BrokenImage:
        raise
    except Exception as error:  # as in `decode`
        reason = " ".join(str(error).split())[:200]
        raise BrokenImage(name, f"damaged: {reason or type(error).__name__}") from error


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """`image`, uint8 [H, W], stretched to uint8 [size, size], bilinear with antialiasing."""
    if image.shape == (size, size):
        return image
    resized = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise BrokenImage(name, f"has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise BrokenImage(
            name, f"{width}x{height} pixels exceed the limit of {MAX_PIXELS // 1_000_000} million"
        )


def _decode_picture(data: bytes, name: str) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
        width, height = picture.size
        _check_size(width, height, name)
        # Cameras put a preview behind the picture of a JPEG, which makes it MPO.
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        if frames > 1:
            raise BrokenImage(name, f"holds {frames} frames, not one radiograph")
        picture.load()  # what is wrong with the pixels is told, other than of the EXIF data
        _check_depth(data, picture, name)
        with contextlib.suppress(Exception):  # damaged ones say nothing of sound pixels
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I"):
            return _scale_depth(np.asarray(picture))
        if picture.has_transparency_data:
            colour = picture.convert("RGBA")
            black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
            return np.asarray(Image.alpha_composite(black, colour).convert("L"))
        return np.asarray(picture.convert("L"))


def _check_depth(data: bytes, picture: Image.Image, name: str) -> None:
    """Refuses PNGs of 16 bits and several channels that leave the upper ones unused.

    Pillow gives their upper byte alone, so 12 bits in 16 would be left with 16 grey levels.
    """
    several, bits = picture.mode in ("LA", "RGB", "RGBA"), data[24:25]  # of the header, IHDR
    if picture.format == "PNG" and several and bits == b"\x10":
        grey = picture.convert("RGB").convert("L")
        if np.asarray(grey).max(initial=0) < 128:
            raise BrokenImage(name, "16 bits a colour, the upper ones unused; save it as grey")


def _scale_depth(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.astype(np.float32)
    largest = pixels.max()
    scale = next((2**bits - 1 for bits in _DEPTHS if largest < 2**bits), 2**16 - 1)
    return np.rint(np.clip(pixels * (255 / scale), 0, 255)).astype(np.uint8)


def _read_dicom(data: bytes, name: str, **options: Any) -> Any:
    """What `dcmread` reads with these options, unless it is deflated: that has no bound."""
    from pydicom import config, dcmread, uid
    from pydicom.filereader import _read_file_meta_info, read_preamble

    # Values outside the standard are common and would each print a warning.
    config.settings.reading_validation_mode = config.IGNORE
    file = io.BytesIO(data)
    read_preamble(file, force=True)  # many exports lack it
    # The reader that `dcmread` itself asks before it unpacks: no file can deceive only one of them.
    if _read_file_meta_info(file).get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
        raise BrokenImage(name, "is a deflated DICOM file; convert it to another transfer syntax")
    file.seek(0)
    return dcmread(file, force=True, **options)


def _decode_dicom(data: bytes, name: str) -> np.ndarray:
    from pydicom import uid
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    dataset = _read_dicom(data, name)
    if "PixelData" not in dataset:
        raise BrokenImage(name, "holds no DICOM image")
    _check_size(int(dataset.Columns), int(dataset.Rows), name)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise BrokenImage(name, f"holds {dataset.NumberOfFrames} frames, not one radiograph")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise BrokenImage(name, "its pixels are colours of a palette; convert it to grey")
    dataset.ensure_file_meta()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little_endian = dataset.original_encoding
        if not little_endian:
            raise BrokenImage(name, "does not say its transfer syntax")
        syntax = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = syntax
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not (decoder := get_decoder(syntax)).is_available:
        needed = (way.partition(" requires ")[2] for way in decoder.missing_dependencies)
        ways = " or ".join(needed).replace("gdcm>", "python-gdcm>")
        raise BrokenImage(name, f"is compressed as {syntax.name}; to read it install {ways}")
    stored = pixel_array(dataset)
    if stored.ndim == 3:
        excess = max(int(dataset.BitsStored) - 8, 0)
        return np.asarray(Image.fromarray((stored >> excess).astype(np.uint8)).convert("L"))
    if stored.ndim != 2:
        raise BrokenImage(name, f"its pixels have the shape {stored.shape}")
    shown = _window(apply_modality_lut(stored, dataset), stored, dataset)
    return 255 - shown if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else shown


def _window(values: np.ndarray, stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Values after the modality transform, [H, W], to uint8 for display."""
    from pydicom.pixels.processing import apply_voi

    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None and width >= 1:
        function = dataset.get("VOILUTFunction") or "LINEAR"
        if function == "SIGMOID":
            unit = 1 / (1 + np.exp(-4 * (values - centre) / width))
        elif function == "LINEAR_EXACT" or width == 1:
            unit = (values - centre) / width + 0.5
        else:
            unit = (values - (centre - 0.5)) / (width - 1) + 0.5
    elif dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        unit = apply_voi(np.rint(values).astype(np.int32), dataset) / (2**bits - 1)
    elif stored.dtype == np.uint8 and np.array_equal(values, stored):
        return stored
    else:
        padding = dataset.get("PixelPaddingValue")
        seen = values if padding is None else values[stored != padding]
        low, high = np.percentile(seen if seen.size else values, (0.5, 99.5))
        unit = (values - low) / max(high - low, 1e-6)
    if not np.isfinite(unit).all():
        raise ValueError("its window or rescale values give no finite pixels")
    return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def _first(value: Any) -> float | None:
    """The first of one or several numbers."""
    numbers = np.ravel(np.asarray([] if value is None or value == "" else value, float))
    return float(numbers[0]) if numbers.size else None
