"""safetensors files, read by their own library, which checks every size and offset.

This reader adds the types that NumPy lacks (bfloat16, float8) and the file's order of tensors, and
rejects names that occur twice with the same bytes, which the library accepts.
"""

import json
import os

import ml_dtypes
import numpy as np
import safetensors

from detlab.converters.readers import class_names, contents


class SafetensorsError(contents.ReadError):
    """The file is damaged, is not safetensors, or has tensors of an unknown type."""


# By the names in the header, without the sub-byte types (F4, F6), which pack several numbers.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),
}


def read(path: str | os.PathLike) -> contents.Contents:
    """Reads a safetensors file.

    Args:
      path: the file.
    Returns:
      its contents.  `meta` is the file's metadata (strings by name) without `class_names`, a JSON
      list of strings that `converters.writers.safetensors_file` writes.
    Raises:
      SafetensorsError: one sentence that names the file and says what is wrong with it.
    """
    with contents.reading(path, "safetensors file", SafetensorsError):
        with open(path, "rb") as file:
            data = file.read()
        if data[8:9] != b"{":
            looks = contents.looks_like(data[:512])
            raise SafetensorsError(f"not a safetensors file; it looks like {looks}")
        try:
            found = dict(safetensors.deserialize(data))
        except safetensors.SafetensorError as error:
            raise SafetensorsError(
                f"a damaged safetensors file ({error}); download or copy it again"
            ) from None
        header = _header(data)
        meta = header.pop("__metadata__", None) or {}
        tensors = {name: _array(name, **found[name]) for name in header}  # in the file's order
        if not tensors:
            raise SafetensorsError("holds no tensors")
        names = _class_names(meta.pop("class_names", "null"))
        return contents.Contents("safetensors", tensors, names, meta)


def _array(name: str, dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    if dtype not in _DTYPES:
        raise SafetensorsError(f"tensor {name!r} has type {dtype}, which is not supported")
    if dtype == "BOOL":  # any byte but 0 and 1 would be neither True nor False
        return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
    return np.frombuffer(data, _DTYPES[dtype]).reshape(shape)


def _header(data: bytes) -> dict:
    """The header of a file that the library has accepted: JSON, after its length."""

    def once(pairs: list) -> dict:
        if len(dict(pairs)) < len(pairs):
            raise SafetensorsError("a name occurs twice in the header")
        return dict(pairs)

    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length], object_pairs_hook=once)


def _class_names(text: str) -> tuple[str, ...] | None:
    try:
        return class_names.of(json.loads(text))
    except ValueError:
        raise SafetensorsError("the class_names in the metadata are not JSON") from None
