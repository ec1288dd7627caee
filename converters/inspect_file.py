"""Describes a weight file as text: `python -m converters.convert --inspect FILE`."""

import argparse
import collections
import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from detlab.converters import download, named, sources, unwrap
from detlab.converters.readers import contents, darknet, files
from detlab.darknet import cfg as darknet_cfg

_CHUNK = 1 << 20  # values converted to float64 at a time for the statistics
_MAX_NAMES = 10_000  # characters of all class names together
_MAX_VALUE = 100  # characters of an entry beside the weights; mmdet stores its whole config


def run(flags: argparse.Namespace) -> None:
    """Prints a description of the file that --inspect names."""
    network = darknet_cfg.read(flags.cfg) if flags.cfg else None
    print(describe(download.local(flags.inspect, flags.sha256), network, flags.entry))


def describe(
    path: str | os.PathLike, network: darknet_cfg.Network | None = None, entry: str = ""
) -> str:
    """A summary of a weight file, and one line per tensor.

    Mean and std are over all values of a tensor, in float64; "-" if there are none or they are
    complex.  For a darknet `.weights` file without its network, only the header and the number of
    values are shown, because the position of each tensor follows from the cfg.

    Args:
      path: as in `readers.files.read`.
      network: of a `.weights` file.
      entry: which weights of the file, see `unwrap.read`.
    Returns:
      lines of text; control characters from the file are escaped.
    Raises:
      ReadError: one sentence that names the file.
    """
    if network is None and (lines := _darknet_header(path)):
        return "\n".join(lines)
    if network is None:
        file = unwrap.read(path, named.SOURCES, entry)  # as they would be converted
    else:
        file = files.read(path, network)
        told = darknet_cfg.repeated(network), darknet_cfg.misspelled(network)
        file = file._replace(notes=tuple(filter(None, told)))
    return "\n".join([*_summary(path, file), "", *_table(file.tensors)])


def _darknet_header(path: str | os.PathLike) -> list[str]:
    """Lines about a darknet file without its cfg; [] for other files."""
    with contents.reading(path, "weight file", contents.ReadError):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(20)
    if not contents.is_darknet(head):
        return []
    version = struct.unpack_from("<3i", head)
    # `seen` has 64 bits since version 0.2, see readers/darknet.py.
    start = 20 if version[1] >= 2 else 16
    header = darknet.Header(*version, seen=int.from_bytes(head[12:start], "little"))
    count, part = (size - start) // 4, darknet.named_layers(path)
    fits = [
        f"{name} with {n} classes" for name, n in darknet.standard_that_fit(count, part).items()
    ]
    if part is not None:
        fits = [f"the first {part} layers of {name}" for name in fits]
    return [
        str(path),
        *_entries({"format": f"darknet, {size} bytes", **header._asdict()}),
        *_entries({"fits": " or ".join(fits) or "no standard network of darknet"}),
        *_entries({"values": f"{(size - start) / 4:g} (add --cfg for names and shapes)"}),
    ]


def _summary(path: str | os.PathLike, file: contents.Contents) -> Iterator[str]:
    num_values = sum(array.size for array in file.tensors.values())
    num_bytes = sum(array.nbytes for array in file.tensors.values())
    types = collections.Counter(array.dtype.name for array in file.tensors.values())
    yield str(path)
    yield from _entries(
        {
            "format": f"{file.format}, {pathlib.Path(path).stat().st_size} bytes",
            "tensors": f"{len(file.tensors)}, {num_values} values, {num_bytes} bytes",
            "types": ", ".join(f"{count} {name}" for name, count in types.most_common()),
        }
    )
    names = file.class_names or ()
    known = sources.fitting(named.SOURCES, file.tensors)
    kinds = " or ".join(sorted({source.description for source in known}))
    if kinds:
        yield f"{'network':<16}  {kinds}"
    for note in file.notes:
        yield f"{'note':<16}  {note}"
    told = contents.printable(f"{len(names)}: {', '.join(names[:_MAX_NAMES])}", _MAX_NAMES)
    yield f"{'classes':<16}  {told if names else 'not in the file'}"
    for key, value in file.meta.items():
        # One level of nesting, such as mmdet's `meta`, is flattened.
        inner = value if isinstance(value, dict) and value else {"": value}
        yield from _entries({f"{key}.{k}".rstrip("."): v for k, v in inner.items()})


def _entries(values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{contents.printable(key, 40):<16}  {contents.printable(value, _MAX_VALUE)}"


def _table(tensors: dict[str, np.ndarray]) -> list[str]:
    rows = [("name", "type", "shape", "mean", "std")]
    for name, array in tensors.items():
        shape = " x ".join(str(size) for size in array.shape) or "scalar"
        rows.append((contents.printable(name), array.dtype.name, shape, *_statistics(array)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        f"{name:<{widths[0]}}  {dtype:<{widths[1]}}  {shape:<{widths[2]}}  {mean:>11}  {std:>11}"
        for name, dtype, shape, mean, std in rows
    ]


def _statistics(array: np.ndarray) -> tuple[str, str]:
    """Mean and standard deviation as text, without a float64 copy of a large array."""
    if array.size == 0 or array.dtype.kind == "c":
        return "-", "-"
    flat = array.reshape(-1)

    def mean_of(function) -> float:
        starts = range(0, array.size, _CHUNK)
        total = sum(function(flat[i : i + _CHUNK].astype(np.float64)).sum() for i in starts)
        return total / array.size

    with np.errstate(all="ignore"):  # inf and nan are shown as they are
        mean = mean_of(lambda values: values)
        std = math.sqrt(mean_of(lambda values: np.square(values - mean)))
    return f"{mean:.5g}", f"{std:.5g}"
