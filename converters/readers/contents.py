"""What every reader returns, and the one kind of error that every reader raises."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from detlab import errors

_MAX_CLASS_NAME = 100  # letters


class ReadError(errors.UserError):
    """One sentence that names a weight file and says what is wrong with it."""


class Contents(NamedTuple):
    """Everything that a weight file holds."""

    format: str  # in words: "PyTorch (zip)", "PyTorch (legacy)", "safetensors", "npz", "darknet"
    tensors: dict[str, np.ndarray]  # names and layouts of the file; read-only or strided views
    class_names: tuple[str, ...] | None  # where the file tells them
    meta: dict[str, Any]  # the file's other entries, as JSON could hold them
    # Of a pickled model: path of a module -> its "class" and its settings, as JSON could hold them.
    modules: dict[str, dict[str, Any]] = {}


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str, error_type: type[ReadError]) -> Iterator[None]:
    """Turns whatever goes wrong with a file into one sentence that names it.

    Args:
      path: the file.
      kind: what the file was taken for, for damage that only a parser noticed: "npz file".
      error_type: what is raised, whatever was.
    """
    path = pathlib.Path(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # they would show the file's text as it is
            yield
    except ReadError as error:
        raise error_type(f"{path}: {printable(error)}.") from None
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # Damaged bytes can break the parsers of the libraries below in any way.
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise error_type(f"{path}: damaged {kind} ({reason}).") from error


def printable(value: Any, limit: int = 300) -> str:
    """Text of a file on one line: control characters, which could steer a terminal, escaped."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_class_names(value: Any) -> tuple[str, ...] | None:
    """Names from a list, or from a dict {0: name, 1: name, ...}; None for anything else.

    They are printed and drawn wherever the weights are used, so each is made `printable` here.
    """
    if isinstance(value, dict):
        value = [value.get(i) for i in range(len(value))]
    if not isinstance(value, (list, tuple)) or not value:
        return None
    if not all(isinstance(name, str) for name in value):
        return None
    # Once for each name: a little file can have a million times the same.
    shown = {name: printable(name, _MAX_CLASS_NAME) for name in set(value)}
    return tuple(shown[name] for name in value)


_SIGNATURES = (
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file, to be unpacked first"),
    (b"BZh", "a bzip2 file, to be unpacked first"),
    (b"\xfd7zXZ", "an xz file, to be unpacked first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
    (b"PK\x03\x04", "a ZIP archive (.npz, or PyTorch's)"),
    (b"PK", "an empty or damaged ZIP archive"),
    (b"\x80", "a pickle (PyTorch's legacy format)"),
)


def looks_like(head: bytes) -> str:
    """What a file with these first bytes (262 or more, if it has them) probably is."""
    if not head:
        return "an empty file"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive (PyTorch before 0.1.10, or one to be unpacked first)"
    if head.lstrip()[:1] == b"<":
        return "a web page: the download went wrong"
    if head[8:9] == b"{":
        return "a safetensors file"
    if is_darknet(head):
        return "a darknet .weights file"
    text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:64])
    return "a text file" if text else "no known format"


def is_darknet(head: bytes) -> bool:
    """Whether the bytes can be a darknet header: int32 version 0.1 or 0.2 and any revision.

    Such files have no signature; the header of parser.c (`save_weights_upto`) is what they share.
    """
    major, minor, revision = (int.from_bytes(head[i : i + 4], "little") for i in (0, 4, 8))
    return len(head) >= 20 and major == 0 and minor in (1, 2) and revision < 100
