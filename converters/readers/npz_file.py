"""NumPy's `.npz`: a ZIP archive with one `.npy` array per name, read without pickles.

`np.load` trusts an array's header and allocates what it says.  Here every size is compared with the
bytes of the member, and those with the file, before anything is allocated.  The formats are those
of numpy.lib.format, versions 1.0 and 2.0.
"""

import io
import math
import os
import zipfile

import numpy as np

from detlab.converters.readers import archives, contents


class NpzError(contents.ReadError):
    """The file is damaged, malicious, not an `.npz`, or holds anything but numbers."""


# All arrays together may be this much larger than the file.  Deflate shrinks zeros a thousandfold
# but trained weights hardly at all; the allowance is for small files of equal values.
_MAX_COMPRESSION = 20
_ALLOWANCE = 64 << 20  # bytes

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: str | os.PathLike) -> contents.Contents:
    """Reads all arrays of an `.npz` file; names are those of the members, without ".npy".

    Args:
      path: a file that np.savez or np.savez_compressed wrote, with arrays of numbers or bools.
    Returns:
      its contents, without class names; arrays are read-only, in this machine's byte order.
    Raises:
      NpzError: one sentence that names the file and says what is wrong with it.
    """
    with contents.reading(path, "npz file", NpzError):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(512)
            if not head.startswith(b"PK"):
                raise NpzError(f"not an .npz file; it looks like {contents.looks_like(head)}")
            archive = archives.open_zip(file, size)
            _check(archive.infolist(), size)
            tensors = {
                info.filename.removesuffix(".npy"): _array(info.filename, archive.read(info))
                for info in archive.infolist()
            }
            return contents.Contents("npz", tensors, None, {})


def _check(members: list[zipfile.ZipInfo], size: int) -> None:
    """Checks the members before any of them is read."""
    if not members:
        raise NpzError("an archive without arrays")
    names = set()
    for info in members:
        name = info.filename
        if not name.endswith(".npy"):
            raise NpzError(f"member {name!r} is not an array, so this is not a plain .npz file")
        if name in names:
            raise NpzError(f"two arrays have the name {name!r}")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NpzError(f"array {name!r} is compressed in a way that NumPy does not use")
        names.add(name)
    total = sum(info.file_size for info in members)
    if total > _MAX_COMPRESSION * size + _ALLOWANCE:
        raise NpzError(f"claims arrays of {total} bytes in a file of {size}")


def _array(name: str, data: bytes) -> np.ndarray:
    """The array of one `.npy` member; a view of `data`."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise NpzError(f"array {name!r} has the unknown version {version}")
    shape, is_fortran, dtype = _HEADERS[version](stream)
    if dtype.kind not in "biufc":  # objects would be pickles; NumPy stores bfloat16 as void
        raise NpzError(f"array {name!r} has type {dtype}, which is not numeric")
    start = stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise NpzError(
            f"array {name!r} has {len(data) - start} bytes, which does not fit its shape {shape}"
            f" and type {dtype}"
        )
    array = np.frombuffer(data, dtype, offset=start)
    if dtype.kind == "b":
        array = array.view(np.uint8) != 0  # any byte but 0 and 1 would be neither True nor False
    array = array.reshape(shape, order="F" if is_fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
