"""Text files of other programs, and lists in sentences.

Files of other programs have byte order marks, other encodings, or no text at all.
"""

import codecs
import pathlib
from collections.abc import Iterable


def listed(names: Iterable[str], limit: int = 5) -> str:
    """The first names, separated by commas, and how many there are besides."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read(path: str | pathlib.Path, declared: str | None = None) -> str:
    """The text of a file; see `decode`.

    Raises:
      OSError: the file cannot be read.
      ValueError: see `decode`.
    """
    return decode(pathlib.Path(path).read_bytes(), declared)


def decode(data: bytes, declared: str | None = None) -> str:
    """Text without its byte order mark; ends of lines are as in the data.

    The encoding is that of the mark, else UTF-16 or UTF-32 if the first bytes say so (one of two or
    of four is zero), else the declared one, else UTF-8.

    Args:
      data: the content of a file.
      declared: an encoding that the file or its format names, such as "gb2312".
    Raises:
      ValueError: the data are no text in that encoding.  The message is the fault and the remedy,
        in words that follow the name of the file.
    """
    for start, fault in _NO_TEXT.items():
        if data.startswith(start):
            raise ValueError(fault)
    told = _by_mark(data) or _by_zeros(data)
    encoding = told or declared or "utf-8"
    try:
        text = data.decode(encoding)
    except LookupError:
        raise ValueError(f"has the unknown encoding {encoding!r}; save it as UTF-8") from None
    except UnicodeDecodeError as error:
        if b"\0" in data and not told:
            raise ValueError(_BINARY) from None
        byte, line = data[error.start], data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"is not {_name(encoding)} text (byte 0x{byte:02X} in line {line}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(_BINARY)
    return text


# The longer marks come first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_BINARY = "is not text (it has zero bytes); give a text file"
_NO_TEXT = {
    b"version https://git-lfs.github.com/": (
        "is a Git LFS pointer, not the file itself; fetch the file with `git lfs pull`"
    ),
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
}


def _by_mark(data):
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def _by_zeros(data):
    """The encoding of text without a mark whose first two characters are ASCII; None for bytes."""
    zeros = tuple(byte == 0 for byte in data[:4])
    return {
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
    }.get(zeros)


def _name(encoding):
    return encoding.upper().removesuffix("-SIG")
