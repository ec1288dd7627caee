"""Weights of darknet's `.weights` files, read and written byte for byte.

A file is a header and then float32 values, little-endian, with no names: what they are follows
from the cfg.  For every `[convolutional]` section in the order of the cfg: biases; with
batch_normalize scales, rolling means and rolling variances; weights (out, in / groups, k, k).
The header is three int32, major, minor and revision, and the number of images seen in training,
of 64 bits if 10 major + minor >= 2, else of 32 (AlexeyAB/darknet, src/parser.c,
load_weights_upto).

A file that darknet has cut off (`darknet partial`), such as `darknet53.conv.74`, holds the first
74 layers of the cfg alone; layers without weights count.
"""

import math
import os
import pathlib
import re
import struct
from typing import NamedTuple

import numpy as np

from detlab.converters.readers import contents
from detlab.converters.writers import whole
from detlab.darknet import cfg as darknet_cfg


class DarknetError(contents.ReadError):
    """The file is damaged, not of darknet, or of another network."""


class Header(NamedTuple):
    """Version of the file, and the number of images that the weights were trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0


class Weights(NamedTuple):
    """What a file holds."""

    header: Header
    # "<number of the layer>.<bias | scale | mean | var | weight>" -> float32, read-only views of
    # one buffer in the order of the file.
    tensors: dict[str, np.ndarray]


_MAX_VERSION = 1000  # from here on old darknet means transposed weights, which it no longer writes
_VALUE = np.dtype("<f4")


def read(
    path: str | os.PathLike, network: darknet_cfg.Network, first_layers: int | None = None
) -> Weights:
    """Reads a `.weights` file completely.

    Args:
      path: the file.
      network: what its values belong to.
      first_layers: how many layers of the cfg the file holds.  None is the number at the end of a
        name such as `yolov4.conv.137`, and all layers for other names.
    Raises:
      DarknetError: one sentence with the file's name: it cannot be read, its header is none of
        darknet's, values are missing or left over, or values are not finite or no variances.
      CfgError: the network cannot work, see `darknet_cfg.shapes`.
    """
    path = pathlib.Path(path)
    first_layers = _first_layers(path, network, first_layers)
    shapes = tensor_shapes(network, first_layers)
    with contents.reading(path, "darknet .weights file", DarknetError):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(file.read(20))
            # Compared before anything of either size is read.
            _check_size(network, first_layers, size - start)
            file.seek(start)
            values = np.frombuffer(file.read(size - start), _VALUE)
        tensors, position = {}, 0
        for name, shape in shapes.items():
            end = position + math.prod(shape)
            tensors[name] = values[position:end].reshape(shape)
            _check_values(name, tensors[name])
            position = end
        return Weights(header, tensors)


def write(
    path: str | os.PathLike,
    network: darknet_cfg.Network,
    weights: Weights,
    first_layers: int | None = None,
) -> None:
    """Writes a `.weights` file that darknet and `read` take; nothing if it would be wrong.

    Args:
      path: the file, replaced if it exists, once all is written.
      network: decides on the order.
      weights: of all layers, or of the first ones at least.
      first_layers: as in `read`; weights of later layers are left out.
    Raises:
      DarknetError: a tensor is missing, has the wrong shape or belongs to no layer, values are
        not finite or no variances, a number of the header does not fit, or the file cannot be
        written.
    """
    path = pathlib.Path(path)
    first_layers = _first_layers(path, network, first_layers)
    try:
        blocks = _blocks(network, weights, first_layers)
        with whole.replacing(path) as part, part.open("wb") as file:
            for block in blocks:
                file.write(block)
    except DarknetError as error:
        raise DarknetError(f"{path}: {error}.") from None
    except OSError as error:
        raise DarknetError(f"{path}: cannot be written: {error.strerror or error}.") from error


def tensor_shapes(
    network: darknet_cfg.Network, first_layers: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the first layers' tensors, all if None, in the order of a file."""
    found = {}
    channels = network.net.channels
    layers = list(zip(network.layers, darknet_cfg.shapes(network), strict=True))
    for number, (layer, shape) in enumerate(layers[:first_layers]):
        if isinstance(layer, darknet_cfg.Convolutional):
            vectors = ("bias", "scale", "mean", "var") if layer.batch_normalize else ("bias",)
            found |= {f"{number}.{name}": (layer.filters,) for name in vectors}
            kernel = (layer.filters, channels // layer.groups, layer.size, layer.size)
            found[f"{number}.weight"] = kernel
        channels = shape.channels
    return found


def num_floats(network: darknet_cfg.Network, first_layers: int | None = None) -> int:
    """How many values a file of the network holds behind its header."""
    return sum(math.prod(shape) for shape in tensor_shapes(network, first_layers).values())


def _first_layers(path: pathlib.Path, network: darknet_cfg.Network, given: int | None) -> int:
    count = given
    if given is None:
        cut_off = re.search(r"\.conv\.([0-9]{1,9})$", path.name)
        count = int(cut_off[1]) if cut_off else len(network.layers)
    if not 1 <= count <= len(network.layers):
        raise DarknetError(
            f"{path}: the first {count} layers are asked for, and {network.name} has"
            f" {len(network.layers)}."
        )
    return count


# ---- Errors from here on lack the name of the file, which `read` and `write` add. ----


def _blocks(network: darknet_cfg.Network, weights: Weights, first_layers: int) -> list:
    """What a file consists of: the header and the tensors of its layers, all of them judged."""
    known = tensor_shapes(network)
    for name in weights.tensors:
        if name not in known:
            raise DarknetError(f"{network.name} has no place for the tensor {name!r}")
    blocks = [_packed_header(weights.header)]
    for name, shape in tensor_shapes(network, first_layers).items():
        if name not in weights.tensors:
            raise DarknetError(f"the tensor {name} of {network.name} is missing")
        tensor = np.asarray(weights.tensors[name])
        if tensor.shape != shape:
            raise DarknetError(
                f"the tensor {name} has shape {tensor.shape}, and {shape} in {network.name}"
            )
        with np.errstate(over="ignore"):  # what overflows is found as not finite
            blocks.append(np.ascontiguousarray(tensor, _VALUE))
        _check_values(name, blocks[-1])
    return blocks


def _seen_format(major: int, minor: int) -> str:
    return "<Q" if 10 * major + minor >= 2 else "<I"


def _header(head: bytes) -> tuple[Header, int]:
    """The header, and where it ends."""
    if len(head) < 16:
        kind = "cut short" if head else "empty"
        raise DarknetError(f"{kind}, {len(head)} bytes of a header of 16 or 20")
    version = struct.unpack_from("<3i", head)
    if not all(0 <= number < _MAX_VERSION for number in version):
        is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
        kind = "a text file" if is_text else "no version of darknet at its beginning"
        raise DarknetError(f"not a darknet .weights file: {kind}")
    seen_format = _seen_format(*version[:2])
    end = 12 + struct.calcsize(seen_format)
    if len(head) < end:
        raise DarknetError(f"cut short, {len(head)} bytes of a header of {end}")
    return Header(*version, *struct.unpack_from(seen_format, head, 12)), end


def _packed_header(header: Header) -> bytes:
    if not all(0 <= number < _MAX_VERSION for number in header[:3]):
        raise DarknetError(f"{header} has a version that no darknet has written")
    try:
        seen = struct.pack(_seen_format(header.major, header.minor), header.seen)
        return struct.pack("<3i", *header[:3]) + seen
    except struct.error as error:
        raise DarknetError(f"{header} does not fit into a file: {error}") from error


def _check_size(network: darknet_cfg.Network, first_layers: int, num_bytes: int) -> None:
    count, rest = divmod(num_bytes, _VALUE.itemsize)
    expected = num_floats(network, first_layers)
    if rest == 0 and count == expected:
        return
    if rest:
        ending = f", and {rest} bytes of another"
    elif count < expected:
        ending = f": {expected - count} are missing"
    else:
        ending = f": {count - expected} are left over"
    total, hint = 0, ""
    for name, shape in tensor_shapes(network).items():
        total += math.prod(shape)
        if total == count and rest == 0 and name.endswith(".weight"):
            fitting = int(name.partition(".")[0]) + 1
            hint = f"; they fit the first {fitting} layers (first_layers={fitting})"
    raise DarknetError(
        f"the first {first_layers} of {len(network.layers)} layers of {network.name} have"
        f" {expected} values, and the file holds {count}{ending}{hint}"
    )


def _check_values(name: str, tensor: np.ndarray) -> None:
    if not np.isfinite(tensor).all():
        raise DarknetError(
            f"{name} holds values that are not finite; the file is damaged, or the training has"
            " diverged"
        )
    if name.endswith(".var") and tensor.min() < 0:
        raise DarknetError(
            f"{name} holds variances below 0; the file is damaged, or of another network"
        )
