"""What the first bytes of a file say about its picture, and about why it is none."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import turned
from PIL import Image

from detlab.data import headers, records

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def encoded(extension, image=PICTURE):
    return cv2.imencode(extension, image)[1].tobytes()


def fault_of(data):
    with pytest.raises(records.DataError) as raised:
        records.decode_image(data, "it", "fetch it again")
    assert raised.value.can_leave_out
    return str(raised.value)


def huge(width, height):
    """The header of a grey PNG."""
    data = encoded(".png", PICTURE[..., 0])
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def floats(dtype):
    return encoded(".tif", PICTURE[..., 0].astype(dtype))


CONVERT = "which OpenCV does not read; convert it to JPEG or PNG"
AGAIN = "fetch it again"
CAUSES = {
    ": it is empty; " + AGAIN: b"",
    ": it begins with nothing but zero bytes, as after a broken download; " + AGAIN: bytes(999),
    ": it is a Git LFS pointer, not the picture; fetch the picture with `git lfs pull`": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ),
    ": it is a git-annex pointer, not the picture; fetch the picture with `git annex get`": (
        b"/annex/objects/SHA256E-s12345--4d7a.jpg\n"
    ),
    f": it is HEIC, {CONVERT}": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    f": it is JPEG XL, {CONVERT}": b"\xff\x0a" + bytes(range(200)),
    f": it is camera raw, {CONVERT}": b"II*\0\x10\0\0\0CR\2\0" + bytes(range(200)),
    f": it is TGA, {CONVERT}": b"\0\0\2" + bytes(9) + b"\x60\0\x40\0\x18\x20" + bytes(200),
    f": it is a cursor (CUR), {CONVERT}": b"\0\0\2\0\1\0\x20\x20" + bytes(200),
    f": it is a Photoshop file, {CONVERT}": b"8BPS\0\1" + bytes(200),
    f": it is PDF, {CONVERT}": b"%PDF-1.7\n" + bytes(range(200)),
    f": it is DICOM, {CONVERT}": b"x" * 128 + b"DICM" + bytes(200),
    f": it is an SVG drawing, {CONVERT}": b'<?xml version="1.0"?>\n<svg width="9"></svg>',
    f": it is a zip archive, {CONVERT}": b"PK\3\4" + bytes(range(200)),
    ": it is a video; extract its frames as images": b"\0\0\0\x18ftypisom\0\0\2\0isommp42",
    ": it is a web page (HTML), as servers send instead of a missing picture; " + AGAIN: (
        b"\n<!DOCTYPE html><html><title>404</title>"
    ),
    ": it holds text that begins with 'Not found: p0.jpg'; " + AGAIN: b"Not found: p0.jpg\nbye",
    ": it holds text that begins with '\u732b 0.5'; " + AGAIN: "猫 0.5\n".encode("utf-16"),
    ": it is damaged or incomplete (GIF); " + AGAIN: b"GIF89a" + bytes(range(100)),
    ": it is damaged or incomplete (BMP); " + AGAIN: encoded(".bmp")[:-99],
    ": it is damaged or incomplete (TIFF); " + AGAIN: encoded(".tif")[:-99],
    ": it is damaged or incomplete (a portable map); " + AGAIN: encoded(".ppm")[:-99],
    ": it is a TIFF of 32-bit floating-point numbers; convert it to 8 or 16 bits without sign": (
        floats(np.float32)
    ),
    ": it is a TIFF of 32-bit signed numbers; convert it to 8 or 16 bits without sign": (
        floats(np.int32)
    ),
    ": it is 40000x30000 px, more than the 1073741824 px that OpenCV accepts; make it smaller, or "
    "set the environment variable OPENCV_IO_MAX_IMAGE_PIXELS to 1200000000 or more": (
        huge(40000, 30000)
    ),
    ": it has more than the 1048576 columns that OpenCV accepts; make it smaller, or set the "
    "environment variable OPENCV_IO_MAX_IMAGE_WIDTH to more": b"P5\n2000000 2\n255\n" + bytes(9),
    ": it has more than the 1073741824 px that OpenCV accepts; make it smaller, or set the "
    "environment variable OPENCV_IO_MAX_IMAGE_PIXELS to more": b"P6\n40000 30000\n255\n" + bytes(9),
    "; " + AGAIN: encoded(".jpg")[300:],
}


@pytest.mark.parametrize("ending", CAUSES)
def test_what_is_no_picture_gets_its_true_cause_and_remedy(ending):
    assert fault_of(CAUSES[ending]) == f"it cannot be decoded{ending}"


@pytest.mark.parametrize("kept", [0.3, 0.99])
@pytest.mark.parametrize("extension", [".webp", ".jpg", ".png"])
def test_a_file_that_ends_early_is_truncated(extension, kept):
    data = encoded(extension)
    assert fault_of(data[: int(len(data) * kept)]) == f"it is truncated; {AGAIN}"


def test_a_format_that_this_opencv_lacks_is_named(monkeypatch):
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  Media:\n    WEBP:   build\n")
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    assert headers.fault(b"GIF89a" + bytes(9)) == (
        ": it is GIF, which OpenCV 4.10.0 was built without",
        "convert it to JPEG or PNG",
    )


def pillow(name, image, **options):
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


SMOOTH = cv2.GaussianBlur(PICTURE, (0, 0), 5)
RGB = SMOOTH[..., ::-1].copy()  # `encoded` takes SMOOTH as BGR
PILLOW = Image.fromarray(RGB)


@pytest.mark.parametrize(
    "data",
    [
        encoded(".png", SMOOTH.astype(np.uint16) * 257),
        encoded(".tif", SMOOTH.astype(np.uint16) * 257),
        pillow("JPEG", PILLOW.convert("CMYK"), quality=100),
        pillow("TIFF", PILLOW.convert("CMYK")),
        pillow("TIFF", PILLOW, compression="tiff_lzw"),
        pillow("PNG", PILLOW.convert("P", palette=Image.Palette.ADAPTIVE)),
        pillow("GIF", PILLOW),
        encoded(".png", np.dstack([SMOOTH, SMOOTH[..., :1]])),
        encoded(".ppm", SMOOTH),
        encoded(".jp2", SMOOTH),
        pillow("AVIF", PILLOW, quality=95),
    ],
    ids="png16 tiff16 cmyk-jpeg cmyk-tiff lzw palette gif alpha ppm jpeg2000 avif".split(),
)
def test_other_kinds_of_pixels_become_8_bit_rgb(data):
    image = records.decode_image(data, "it", AGAIN)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - RGB).mean() < 4  # of a picture with a spread of 12


@pytest.mark.parametrize("order", "<>")
def test_both_byte_orders_of_exif_are_read(order):
    for orientation in range(1, 9):
        data = turned.encoded(turned.upright(), orientation, order=order)
        assert headers.orientation(data) == orientation


@pytest.mark.parametrize(
    "tags",
    [turned.tags(9), turned.tags(0), turned.tags(6)[:20], b"", b"II*\0\xff\xff\xff\xff", b"XX*\0"],
)
def test_malformed_exif_leaves_the_picture_as_it_is(tags):
    data = encoded(".jpg")
    segment = b"Exif\0\0" + tags
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert headers.orientation(data) == 1
    assert records.decode_image(data, "it", AGAIN).shape == (40, 60, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_by_its_own_properties(orientation):
    options = Image.Exif()
    options[0x0112] = orientation
    data = pillow(
        "AVIF", Image.fromarray(turned.stored(turned.upright(), orientation)), exif=options
    )
    image = records.decode_image(data, "it", AGAIN)
    assert image.shape == (40, 60, 3)
    assert np.abs(image.astype(int) - turned.upright()).mean() < 5


@pytest.mark.parametrize("name", [b"irot", b"imir"])
def test_a_heif_that_ends_in_its_orientation_is_taken_as_it_is_stored(name):
    data = b"\0\0\0\x18ftypavif\0\0\0\0mif1avif\0\0\0\x09" + name
    assert headers.orientation(data) == 1
    assert headers.orientation(data + b"\1") == {b"irot": 8, b"imir": 2}[name]
