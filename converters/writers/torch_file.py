"""Writes, without PyTorch, state dicts as `.pth` files that it loads with `weights_only=True`.

The ZIP format of torch/serialization.py (1.6 and later): `data.pkl`, a pickle of protocol 2 whose
tensors refer to storages by a persistent id, and `data/<key>`, the bytes of each storage.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from detlab.converters.readers import pickle_machine
from detlab.converters.writers import whole

_STORAGES = {
    dtype: name.removeprefix("torch.")
    for name, dtype in pickle_machine.STORAGE_DTYPES.items()
    if name.count(".") == 1  # not the untyped one
}
_FOLDER = "archive"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a fixed date: the same tensors give the same bytes


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict, a dict of tensors in the order given.

    Needs extra memory for one tensor at a time, if it is not contiguous.

    Args:
      path: the file; one that exists is replaced once everything is written.
      tensors: by name, of type float (bfloat16 from ml_dtypes), int8 to int64, uint8, bool or
        complex.
    Raises:
      ValueError: a tensor has another type; nothing is written.
      OSError: the file cannot be written; one that exists is unchanged.
    """
    program = _program(tensors)
    with whole.replacing(path) as part, zipfile.ZipFile(part, "w") as archive:
        _add(archive, "data.pkl", program)
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(tensors.values()):
            little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
            _add(archive, f"data/{key}", little.reshape(-1).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(f"{_FOLDER}/{name}", _LONG_AGO)
    info.file_size = len(data)  # decides whether ZIP64 is used
    with archive.open(info, "w") as member:
        member.write(data)


def _program(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of {name: _rebuild_tensor_v2(storage, offset, size, strides, ...)}."""
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for key, (name, array) in enumerate(tensors.items()):
        parts += [_text(name), _tensor(name, str(key), array)]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])


def _tensor(name: str, key: str, array: np.ndarray) -> bytes:
    dtype = array.dtype.newbyteorder("=")
    if dtype not in _STORAGES:
        raise ValueError(f"{name} has type {array.dtype}, which the file format cannot store")
    strides = np.cumprod((1, *array.shape[:0:-1]), dtype=np.int64)[::-1] if array.ndim else ()
    storage = (
        pickle.MARK
        + _text("storage")
        + _global("torch", _STORAGES[dtype])
        + _text(key)
        + _text("cpu")
        + _integer(array.size)
        + pickle.TUPLE
        + pickle.BINPERSID
    )
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + storage
        + _integer(0)  # offset
        + _integers(array.shape)
        + _integers(strides)
        + pickle.NEWFALSE  # requires_grad
        + _global("collections", "OrderedDict")  # backward hooks: none
        + pickle.EMPTY_TUPLE
        + pickle.REDUCE
        + pickle.TUPLE
        + pickle.REDUCE
    )


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", value)


def _integers(values) -> bytes:
    return pickle.MARK + b"".join(_integer(int(value)) for value in values) + pickle.TUPLE
