"""Decoding: every format to the right grey values, everything else to BrokenImage."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
)

from cxrjax.data.images import BrokenImage, decode, header, is_image, resize

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
GREY = np.add.outer(np.arange(40) * 4, np.arange(50)).astype(np.uint8)


def packed(pixels, form="PNG", mode=None, **options):
    picture = Image.fromarray(pixels)
    file = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, form, **options)
    return file.getvalue()


def dicom(stored, *, meta=True, **tags):
    file_meta = FileMetaDataset()
    file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if meta else ImplicitVRLittleEndian
    file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=file_meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = stored.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    if meta:
        return file.getvalue()
    data = file.getvalue()  # the bare data set: behind preamble, magic and meta group
    length = struct.unpack("<I", data[140:144])[0]
    return data[144 + length :]


@pytest.mark.parametrize(
    "data",
    [
        packed(GREY),
        packed(GREY, mode="RGB"),
        packed(GREY, mode="RGBA"),
        packed(GREY, mode="LA"),
        packed(GREY, mode="P"),
        packed(GREY, "WEBP", lossless=True),
    ],
    ids=["grey", "rgb", "rgba", "la", "palette", "webp"],
)
def test_lossless_pictures_keep_their_grey_levels(data):
    image = decode(data, "x.png")
    assert image.dtype == np.uint8 and image.shape == (40, 50)
    np.testing.assert_array_equal(image, GREY)


@pytest.mark.parametrize("options", [{"form": "JPEG", "quality": 95}, {"form": "WEBP"}])
def test_lossy_pictures_come_close(options):
    image = decode(packed(GREY, **options), "x").astype(int)
    assert np.abs(image - GREY).mean() < 2


def test_bilevel_cmyk_and_rgb_luma():
    bits = packed(GREY, mode="1")
    assert set(np.unique(decode(bits, "x"))) == {0, 255}
    assert np.abs(decode(packed(GREY, "JPEG", mode="CMYK"), "x").astype(int) - GREY).mean() < 3
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert set(decode(packed(red), "x").ravel()) == {76}  # 0.299 of full scale


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_turned_as_their_exif_data_say(form):
    """The tag's eight values: which row and column of the scene come first (TIFF 6.0, p. 36)."""
    turned = [GREY, GREY[:, ::-1], GREY[::-1, ::-1], GREY[::-1], GREY.T, np.rot90(GREY, -1),
              GREY[::-1, ::-1].T, np.rot90(GREY)]  # fmt: skip
    for value, expected in enumerate(turned, 1):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = value
        image = decode(packed(GREY, form, exif=exif, quality=95), "x")
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).mean() < 2
    deep = packed(GREY.astype(np.uint16), exif=exif)
    np.testing.assert_array_equal(decode(deep, "x"), np.rot90(GREY))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_turn_nothing():
    for exif in (b"Exif\0\0XX\0*\0\0\0\x08", b"Exif\0\0MM\0*\0\0\xff\xff"):
        data = packed(GREY, "WEBP", lossless=True, exif=exif)
        np.testing.assert_array_equal(decode(data, "x"), GREY)


def test_transparency_shows_black():
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[:2, :, 3], pixels[2:, :, 3] = 0, 255
    image = decode(packed(pixels), "x")
    assert (image[:2] == 0).all() and (image[2:] == 200).all()


@pytest.mark.parametrize(("top", "scale"), [(65535, 65535), (4000, 4095), (255, 255), (300, 1023)])
def test_sixteen_bits_are_scaled_not_clipped(top, scale):
    deep = np.linspace(0, top, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    expected = np.rint(deep / scale * 255).astype(np.uint8)
    np.testing.assert_array_equal(decode(packed(deep), "x.png"), expected)


def test_dicom_eight_bits_without_window_is_left_alone():
    np.testing.assert_array_equal(decode(dicom(GREY), "x.dcm"), GREY)
    np.testing.assert_array_equal(decode(dicom(GREY), "named-otherwise"), GREY)
    np.testing.assert_array_equal(decode(dicom(GREY, meta=False), "x.DCM"), GREY)


def test_dicom_monochrome1_is_inverted():
    data = dicom(GREY, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode(data, "x.dcm"), 255 - GREY)


def test_dicom_window_applies_after_rescale():
    """Linear window of PS3.3 C.11.2.1.2.1: y = ((x - (c - 0.5)) / (w - 1) + 0.5) * 255."""
    stored = np.arange(-2000, 2000, 10, dtype=np.int16).reshape(20, 20)
    data = dicom(
        stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[40, 500], WindowWidth=[400, 9]
    )
    x = stored * 2.0 - 100
    expected = np.clip(((x - 39.5) / 399 + 0.5) * 255, 0, 255)
    assert np.abs(decode(data, "x.dcm") - expected).max() <= 0.5 + 1e-6
    inverted = decode(
        dicom(stored, WindowCenter=0, WindowWidth=100, PhotometricInterpretation="MONOCHROME1"), "x"
    )
    assert inverted[0, 0] == 255 and inverted[-1, -1] == 0


def test_dicom_sigmoid_and_exact_windows():
    stored = np.arange(0, 400, dtype=np.uint16).reshape(20, 20)
    for function, expected in {
        "SIGMOID": 255 / (1 + np.exp(-4 * (stored - 200.0) / 100)),
        "LINEAR_EXACT": np.clip((stored - 200.0) / 100 + 0.5, 0, 1) * 255,
    }.items():
        data = dicom(stored, WindowCenter=200, WindowWidth=100, VOILUTFunction=function)
        assert np.abs(decode(data, "x.dcm") - expected).max() <= 0.5 + 1e-6


def test_dicom_without_window_uses_percentiles_and_leaves_padding_out():
    stored = np.linspace(1000, 3000, 10_000).astype(np.int16).reshape(100, 100)
    stored[0] = -2000
    image = decode(dicom(stored, PixelPaddingValue=-2000), "x.dcm").astype(int)
    seen = stored[stored != -2000]
    low, high = np.percentile(seen, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1) * 255
    assert np.abs(image - expected).max() <= 0.5 + 1e-6
    assert (image[0] == 0).all() and image.max() == 255


def test_dicom_lookup_table_serves_where_there_is_no_window():
    table = np.linspace(4095, 0, 256).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 12], table.tolist()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "US"
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = decode(dicom(stored, VOILUTSequence=Sequence([item])), "x.dcm")
    np.testing.assert_array_equal(image, np.rint(table[stored] / 4095 * 255))


def test_dicom_colour_and_frames():
    colour = np.repeat(GREY[..., None], 3, -1)
    tags = dict(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    np.testing.assert_array_equal(decode(dicom(colour, **tags), "x.dcm"), GREY)
    with pytest.raises(BrokenImage, match="2 frames"):
        decode(dicom(np.stack([GREY, GREY])[0], NumberOfFrames=2), "x.dcm")
    with pytest.raises(BrokenImage, match="palette"):
        decode(dicom(GREY, PhotometricInterpretation="PALETTE COLOR"), "x.dcm")


@pytest.mark.skipif(get_decoder(JPEGLosslessSV1).is_available, reason="there is a decoder")
def test_compressed_dicom_without_a_decoder_says_what_to_install():
    dataset = dcmread(io.BytesIO(dicom(GREY)))
    dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    dataset.PixelData = encapsulate([b"\xff\xd8" + bytes(100)])
    file = io.BytesIO()
    dataset.save_as(file)
    with pytest.raises(BrokenImage, match=r"compressed as JPEG Lossless.*install python-gdcm>="):
        decode(file.getvalue(), "x.dcm")


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused_and_previews_passed_over(form):
    other = [Image.fromarray(255 - GREY)]
    with pytest.raises(BrokenImage, match="2 frames"):
        decode(packed(GREY, form, save_all=True, append_images=other), "x")
    with_preview = packed(GREY, "MPO", save_all=True, append_images=other, quality=95)
    np.testing.assert_array_equal(
        decode(with_preview, "x"), decode(packed(GREY, "JPEG", quality=95), "x")
    )


def png(width, height, lines, bits=8, colour=0):
    """A PNG by hand, of unfiltered lines."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def deep_png(pixels, colour):
    """PNG of 16 bits a channel, uint16 [H, W, C], which Pillow cannot write."""
    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    return png(width, height, lines, 16, colour)


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_is_read_unless_its_upper_bits_are_unused(colour, channels):
    full = np.repeat(GREY[..., None].astype(np.uint16) << 8, channels, -1)
    if colour != 2:
        full[..., -1] = 65535  # opaque
    np.testing.assert_array_equal(decode(deep_png(full, colour), "x.png"), GREY)
    twelve = full.copy()
    twelve[..., : 3 if channels > 2 else 1] >>= 4
    with pytest.raises(BrokenImage, match="the upper ones unused; save it as grey"):
        decode(deep_png(twelve, colour), "x.png")


def png_claiming(width, height):
    return png(width, height, b"\0" * 1000)


def webp_claiming(width, height):
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"", "x.png", "empty"),
        (b"only a note to myself\n" * 20, "notes.png", "not PNG"),
        (b"only a note to myself\n" * 20, "notes.dcm", "no DICOM image"),
        (packed(NOISE)[:-60], "x.png", "damaged: .*truncated"),
        (packed(NOISE)[:20], "x.png", "damaged"),
        (packed(NOISE, "JPEG")[:-200], "x.jpg", "damaged: .*truncated"),
        (packed(NOISE, "JPEG")[:200], "x.jpg", "damaged"),
        (packed(NOISE, "WEBP")[:-100], "x.webp", "damaged"),
        (dicom(GREY)[:-500], "x.dcm", "damaged"),
        (packed(GREY, "GIF"), "x.png", "not PNG"),
        (packed(GREY, "TIFF"), "x.png", "not PNG"),
        (png_claiming(60_000, 60_000), "x.png", "more pixels|exceed"),
        (png_claiming(11_000, 10_000), "x.png", "exceed the limit of 100 million"),
        (webp_claiming(16_000, 16_000), "x.webp", "pixels|damaged"),
        (dicom(GREY, Rows=60_000, Columns=60_000), "x.dcm", "exceed"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_broken_files_say_why(data, name, reason):
    with pytest.raises(BrokenImage, match=reason) as caught:
        decode(data, name)
    assert caught.value.name == name
    assert "\n" not in str(caught.value) and len(caught.value.reason) < 250


@pytest.mark.parametrize("read", [decode, header])
@pytest.mark.parametrize("padding", [0, 6000])
def test_deflated_dicom_is_refused_before_it_unpacks(read, padding, monkeypatch):
    """Wherever the transfer syntax stands, and whether the header or the pixels are asked for."""
    dataset = dcmread(io.BytesIO(dicom(GREY)))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.file_meta.FileMetaInformationVersion = b"\0\1" + b"\0" * padding
    file = io.BytesIO()
    dataset.save_as(file)
    assert (file.getvalue().index(DeflatedExplicitVRLittleEndian.encode()) > 4096) == bool(padding)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(BrokenImage, match=r"^x.dcm: is a deflated"):
        read(file.getvalue(), "x.dcm")


SEEDS = [
    packed(GREY),
    packed(GREY, mode="P"),
    packed(GREY.astype(np.uint16) * 200),
    packed(GREY, "JPEG"),
    packed(GREY, "WEBP"),
    dicom(GREY, WindowCenter=100, WindowWidth=50),
    dicom(GREY, meta=False),
]


@settings(max_examples=250, deadline=None)
@given(
    base=st.sampled_from([b"", *SEEDS]),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=8)), max_size=6),
    tail=st.binary(max_size=40),
    cut=st.integers(0, 5000),
    name=st.sampled_from(["x.png", "x.dcm", "x"]),
)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_give_an_image_or_broken_image(base, edits, tail, cut, name):
    data = bytearray(base + tail)
    for at, new in edits:
        at %= len(data) + 1
        data[at : at + len(new)] = new
    try:
        image = decode(bytes(data[:cut] if cut < 4000 else data), name)
    except BrokenImage as broken:
        assert broken.name == name and broken.reason
    else:
        assert image.dtype == np.uint8 and image.ndim == 2 and image.size


def test_resize_averages_instead_of_dropping_pixels():
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = resize(stripes, 16)
    assert small.shape == (16, 16) and small.dtype == np.uint8
    assert np.abs(small[:, 1:-1].astype(int) - 127).max() <= 1
    assert resize(GREY, 30).shape == (30, 30)
    assert resize(small, 16) is small
    flat = resize(np.full((299, 299), 77, np.uint8), 224)
    assert (flat == 77).all()


def test_suffixes():
    assert all(map(is_image, ("a.PNG", "a/b.JpEg", "x.dcm", "x.webp", "x.jpg")))
    assert not any(map(is_image, ("a.txt", "png", "a.png.txt", "metadata.csv")))
