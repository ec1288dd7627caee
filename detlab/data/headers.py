"""Facts in the bytes of an image file: its format, size and orientation, and why it is no image.

Nothing here decodes.  Sources: ITU T.81 annex B (JPEG), the PNG and WebP container specifications,
TIFF 6.0 section 2, EXIF 2.3 section 4.6.4 (orientation), ISO/IEC 23008-12 (HEIF).
"""

import os
import re
import struct
from collections.abc import Iterator

import cv2

JPEG = b"\xff\xd8"
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*")

# Suffixes of the formats that OpenCV can decode, if its build has them.  The first ones are the
# most frequent: a reader that does not know the suffix tries them in this order.
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jfif", ".jpe", ".jif", ".mpo",
    ".gif", ".avif", ".jp2", ".j2k", ".dib", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".pam",
    ".pfm", ".sr", ".ras", ".hdr", ".pic", ".exr",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------
# Size and completeness


def size(data: bytes) -> tuple[int, int]:
    """(height, width) in the header of a JPEG or PNG, as stored; zeros if there is none."""
    if data.startswith(PNG) and len(data) >= 24:
        width, height = struct.unpack(">II", data[16:24])
        return height, width
    if data.startswith(JPEG):
        for marker, payload in jpeg_segments(data):
            # SOF0..SOF15 hold the size; C4, C8 and CC in that range are tables.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                return struct.unpack(">HH", data[payload + 1 : payload + 5])
    return 0, 0


def ends_early(data: bytes) -> bool:
    """Whether a file is shorter than it says, or a JPEG or PNG lacks its end marker.

    OpenCV fills the missing part of a JPEG with grey.
    """
    if data.startswith(PNG):
        return b"IEND" not in data
    if data.startswith(JPEG):
        # Only an end marker after the start of the scan counts: thumbnails have their own.
        scan = next((start for marker, start in jpeg_segments(data) if marker == 0xDA), None)
        # The marker is near the end of most files, so the search starts there.
        return scan is None or data.rfind(b"\xff\xd9", scan) < 0
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return len(data) < 8 + struct.unpack("<I", data[4:8])[0]
    return False


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, offset of the payload) of each JPEG segment up to the first scan (ITU T.81, B.1)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:  # 9: a frame header up to its size
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        yield marker, at + 4
        if marker == 0xDA:
            return
        at += 2 + struct.unpack(">H", data[at + 2 : at + 4])[0]


# ------------------------------------------------------------------------------------------------
# Orientation


def orientation(data: bytes) -> int:
    """How to turn the stored picture upright: EXIF's 1..8, of which 1 leaves it as it is.

    Args:
      data: a JPEG, PNG, WebP, TIFF or AVIF, bytes or a memory map; other formats give 1.  The
        beginning of a file is enough if the tag lies in it.
    """
    if data[4:8] == b"ftyp":
        return _heif_orientation(data[:_META])
    value = _tiff_values(_exif(data)).get(0x0112, 1)
    return value if 1 <= value <= 8 else 1


_META = 1 << 14  # bytes at the start of an AVIF that hold its properties


def _heif_orientation(data):
    """The orientation that the properties irot and imir of a HEIF file say; EXIF has no say there.

    The picture is rotated, then mirrored.
    """
    rotation, mirror = (
        re.search(rb"\0\0\0\x09" + name + rb"(.)", data, re.DOTALL) for name in (b"irot", b"imir")
    )
    angle = rotation[1][0] & 3 if rotation else 0  # quarter turns anticlockwise
    plain, left_right, top_bottom = ((1, 2, 4), (8, 7, 5), (3, 4, 2), (6, 5, 7))[angle]
    if not mirror:
        return plain
    return left_right if mirror[1][0] & 1 else top_bottom


def is_tiff(data: bytes) -> bool:
    """Whether a file is a TIFF, by its first bytes."""
    return data[:4] in TIFF


def _exif(data):
    """The tags of EXIF, in the form of a TIFF file; b"" if there are none."""
    if data[:2] == JPEG:
        for marker, at in jpeg_segments(data):
            if marker == 0xE1 and data[at : at + 6] == b"Exif\0\0":
                return data[at + 6 : at - 2 + struct.unpack(">H", data[at - 2 : at])[0]]
    elif data[:8] == PNG:
        for name, at, length in _chunks(data, 8, ">I4s", trailer=4):
            if name == b"eXIf":
                return data[at : at + length]
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        for name, at, length in _chunks(data, 12, "<4sI", trailer=0):
            if name == b"EXIF":
                return data[at : at + length].removeprefix(b"Exif\0\0")
    elif is_tiff(data):
        return data
    return b""


def _chunks(data, at, head, trailer):
    """(name, offset, length) of the chunks of a PNG or a RIFF file."""
    while at + 8 <= len(data):
        first, second = struct.unpack(head, data[at : at + 8])
        name, length = (first, second) if isinstance(first, bytes) else (second, first)
        yield name, at + 8, length
        # RIFF pads to an even length; PNG has a check sum after each chunk instead.
        at += 8 + length + (trailer or length % 2)


def _tiff_values(data):
    """{tag: its first number} of the first directory of a TIFF; {} if it is malformed."""
    if data[:4] not in TIFF:
        return {}
    order = "<" if data[:2] == b"II" else ">"
    values = {}
    try:
        (start,) = struct.unpack(f"{order}I", data[4:8])
        (count,) = struct.unpack(f"{order}H", data[start : start + 2])
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack(f"{order}HHI", data[at : at + 8])
            width = {3: "H", 4: "I"}.get(kind)  # SHORT, LONG
            if width is None:
                continue
            if number * struct.calcsize(width) > 4:  # the values are elsewhere
                (at,) = struct.unpack(f"{order}I", data[at + 8 : at + 12])
                at -= 8
            values[tag] = struct.unpack_from(f"{order}{width}", data, at + 8)[0]
    except struct.error:  # ends early, or the offsets are wrong
        pass
    return values


# ------------------------------------------------------------------------------------------------
# Formats, and why a file cannot be decoded


def looks_like_image(data: bytes) -> bool:
    """Whether the first bytes of a file, at least 32, are those of an image format."""
    return _format(data) in _DECODED or _format(data) in ("HEIC", "JPEG XL", "camera raw")


def fault(data: bytes, error: str = "") -> tuple[str, str | None]:
    """Why OpenCV cannot decode a file, and the remedy, in words.

    Args:
      data: the content of the file.
      error: what OpenCV said.
    Returns:
      The fault, which follows "cannot be decoded" ("" if it is unknown), and the remedy; None if
      the file is to be fetched again.
    """
    limit = re.search(r"CV_IO_MAX_IMAGE_(PIXELS|WIDTH|HEIGHT)", error)
    if limit:
        return _beyond_limit(data, limit[1])
    if "nsufficient memory" in error or "Failed to allocate" in error:
        return ": its pixels do not fit in memory", "make the picture smaller"
    if not data:
        return ": it is empty", None
    if not any(data[:4096]):
        return ": it begins with nothing but zero bytes, as after a broken download", None
    for start, (words, remedy) in _POINTERS.items():
        if data.startswith(start):
            return f": it is {words}, not the picture", remedy
    name = _format(data)
    if name in _DECODED:
        return _damaged(data, name)
    if name == "video":
        return ": it is a video", "extract its frames as images"
    if name == "HTML":
        return ": it is a web page (HTML), as servers send instead of a missing picture", None
    if name:
        return f": it is {name}, which OpenCV does not read", "convert it to JPEG or PNG"
    text = _text(data[:200])
    return (f": it holds text that begins with {text!r}", None) if text else ("", None)


_POINTERS = {
    b"version https://git-lfs.github.com/": (
        "a Git LFS pointer",
        "fetch the picture with `git lfs pull`",
    ),
    b"/annex/objects/": ("a git-annex pointer", "fetch the picture with `git annex get`"),
    b"../.git/annex/": ("a git-annex pointer", "fetch the picture with `git annex get`"),
}

# Formats that OpenCV decodes -> their line in its build information; "" if every build has them.
_DECODED = {
    "JPEG": "", "PNG": "", "BMP": "", "a portable map": "", "Sun raster": "", "Radiance HDR": "",
    "WebP": "WEBP", "TIFF": "TIFF", "GIF": "GIF", "AVIF": "AVIF", "JPEG 2000": "JPEG 2000",
    "OpenEXR": "OpenEXR",
}  # fmt: skip

_STARTS = {
    JPEG: "JPEG",
    PNG: "PNG",
    b"GIF8": "GIF",
    b"II*\0\x10\0\0\0CR": "camera raw",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"#?RGBE": "Radiance HDR",
    b"\x59\xa6\x6a\x95": "Sun raster",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"FUJIFILM": "camera raw",
    b"IIRO": "camera raw",
    b"IIU\0": "camera raw",
    b"8BPS": "a Photoshop file",
    b"gimp xcf": "a GIMP file",
    b"%PDF": "PDF",
    b"%!PS": "PostScript",
    b"\0\0\1\0": "an icon (ICO)",
    b"\0\0\2\0": "a cursor (CUR)",
    b"DDS ": "a texture (DDS)",
    b"qoif": "QOI",
    b"\x0a\x05\x01\x08": "PCX",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"SIMPLE  =": "FITS",
    b"\x1aE\xdf\xa3": "video",
}
_BRANDS = {  # of ISO media files, in bytes 8 to 12
    "avif": "AVIF", "avis": "AVIF", "heic": "HEIC", "heix": "HEIC", "heim": "HEIC", "heis": "HEIC",
    "hevc": "HEIC", "hevx": "HEIC", "mif1": "HEIC", "msf1": "HEIC", "crx ": "camera raw",
}  # fmt: skip

# Type, colour map and depth; where TGA has five zeros, a cursor has the number of its pictures.
_TGA = re.compile(
    rb"\x00(\x00[\x02\x03\x0a\x0b]\x00{5}|\x01[\x01\x09].{5}).{8}[\x01\x08\x0f\x10\x18\x20]",
    re.DOTALL,
)


def _format(data):
    """The format of a file by its first bytes, in words; "" if they are unknown."""
    if data[4:8] == b"ftyp":
        length = min(struct.unpack(">I", data[:4])[0], 128)
        brands = [data[at : at + 4].decode("latin-1") for at in range(8, length, 4)]
        if brands and brands[0] in ("mif1", "msf1") and "avif" in brands:
            return "AVIF"
        return _BRANDS.get(brands[0], "video") if brands else "video"
    if data[:4] == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else "video" if data[8:11] == b"AVI" else ""
    if data[:2] == b"BM" and data[6:10] == bytes(4):
        return "BMP"
    if re.match(rb"P[1-7Ff]\s", data):
        return "a portable map"
    if data[128:132] == b"DICM":
        return "DICOM"
    if _TGA.match(data):
        return "TGA"
    for start, name in _STARTS.items():
        if data.startswith(start):
            return name
    words = data[:400].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if words.startswith((b"<!doctype html", b"<html", b"<head")):
        return "HTML"
    if words.startswith(b"<svg") or (words.startswith(b"<?xml") and b"<svg" in words):
        return "an SVG drawing"
    return ""


def _damaged(data, name):
    """`fault` of a file of a format that OpenCV reads."""
    line = _DECODED[name]
    built = re.search(rf"^\s+{re.escape(line)}:\s+(\S+)", cv2.getBuildInformation(), re.M)
    if line and (built is None or built[1] == "NO"):
        return (
            f": it is {name}, which OpenCV {cv2.__version__} was built without",
            "convert it to JPEG or PNG",
        )
    values = _tiff_values(data) if name == "TIFF" else {}
    bits, kind = values.get(258, 1), values.get(339, 1)  # BitsPerSample, SampleFormat
    if bits > 16 or kind != 1:
        words = {2: "signed", 3: "floating-point"}.get(kind, "whole")
        return (
            f": it is a TIFF of {bits}-bit {words} numbers",
            "convert it to 8 or 16 bits without sign",
        )
    compression = values.get(259, 1)
    if compression not in (1, 2, 3, 4, 5, 7, 8, 32773, 32946):
        return f": it is a TIFF of compression {compression}", "save it with another compression"
    return f": it is damaged or incomplete ({name})", None


def _beyond_limit(data, which):
    """`fault` of a picture with more pixels, columns or rows than OpenCV accepts."""
    variable = f"OPENCV_IO_MAX_IMAGE_{which}"
    limit = os.environ.get(variable) or str(1 << (30 if which == "PIXELS" else 20))
    unit = {"PIXELS": "px", "WIDTH": "columns", "HEIGHT": "rows"}[which]
    height, width = size(data)
    there, least = "it has more", "more"
    if min(height, width) > 0:
        there = f"it is {width}x{height} px, more"
        needed = {"PIXELS": height * width, "WIDTH": width, "HEIGHT": height}[which]
        least = f"{needed} or more"
    return (
        f": {there} than the {limit} {unit} that OpenCV accepts",
        f"make it smaller, or set the environment variable {variable} to {least}",
    )


def _text(data):
    """The first line of a text, at most 40 characters; "" if the bytes are no text."""
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:  # else the last character is cut off
            return ""
        text = data[: error.start].decode("utf-8")
    line = (text.strip().splitlines() or [""])[0][:40]
    return line if line.isprintable() else ""
