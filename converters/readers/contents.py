"""What every reader returns, and the base of the errors that readers raise."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from detlab import errors

_MAX_REASON = 800  # characters of an error


class ReadError(errors.UserError):
    """One sentence that names a weight file and says what is wrong with it."""


class Contents(NamedTuple):
    """Everything that a weight file holds."""

    format: str  # in words: "PyTorch (zip)", "PyTorch (legacy)", "safetensors", "npz", "darknet"
    tensors: dict[str, np.ndarray]  # names and layouts of the file; read-only or strided views
    class_names: tuple[str, ...] | None  # if the file has them
    meta: dict[str, Any]  # the file's other entries, JSON-compatible
    # For a pickled model: path of a module -> its "class" and its settings, JSON-compatible.
    modules: dict[str, dict[str, Any]] = {}
    entries: dict[str, int] = {}  # of a checkpoint that hold tensors -> how many
    notes: tuple[str, ...] = ()  # sentences for the user: what was chosen, and what was left out


@contextlib.contextmanager
def reading(path: str | os.PathLike, kind: str, error_type: type[ReadError]) -> Iterator[None]:
    """Turns every error while reading a file into one sentence that names it.

    Args:
      path: the file.
      kind: the format that was assumed, such as "npz file", for errors of parsers.
      error_type: the type to raise instead of any other.
    """
    path = pathlib.Path(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # they would show text of the file unescaped
            yield
    except ReadError as error:
        raise error_type(f"{path}: {printable(error, _MAX_REASON)}.") from None
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # On damaged bytes the libraries' parsers can fail in any way.
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise error_type(
            f"{path}: damaged {kind} ({reason}); download or copy it again."
        ) from error


def printable(value: Any, limit: int = 300) -> str:
    """Text of a file on one line; control characters, which could steer a terminal, are escaped."""
    text = str(value)
    text = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_SIGNATURES = (
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file (unpack it first)"),
    (b"BZh", "a bzip2 file (unpack it first)"),
    (b"\xfd7zXZ", "an xz file (unpack it first)"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer (fetch the file itself with `git lfs pull`)"),
    (b"PK\x03\x04", "a ZIP archive (.npz, or PyTorch's)"),
    (b"PK", "an empty or damaged ZIP archive"),
    (b"\x80", "a pickle (PyTorch's legacy format)"),
)


def looks_like(head: bytes) -> str:
    """What a file probably is, by its first bytes (262 or more, if it has them)."""
    if not head:
        return "an empty file"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive (of PyTorch before 0.1.10, or one to unpack first)"
    if head.lstrip()[:1] == b"<":
        return "a web page (download the file again)"
    if head[8:9] == b"{":
        return "a safetensors file"
    if is_darknet(head):
        return "a darknet .weights file"
    text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:64])
    return "a text file" if text else "no known format"


def is_darknet(head: bytes) -> bool:
    """Whether the bytes can be a darknet header: int32 version 0.1 or 0.2, revision below 100.

    These files have no signature, only the header of parser.c (`save_weights_upto`).
    """
    major, minor, revision = (int.from_bytes(head[i : i + 4], "little") for i in (0, 4, 8))
    return len(head) >= 20 and major == 0 and minor in (1, 2) and revision < 100
