"""Reads and writes darknet's `.weights` files byte for byte.

A file is a header followed by little-endian float32 values without names; the cfg says what they
are.  Every `[convolutional]` section without share_index, in the order of the cfg, has biases; with
batch_normalize scales, rolling means and rolling variances; and weights (out, in / groups, k, k).
A `[shortcut]` with weights_type has its weights: one per input, or (inputs, channels).  The header
is three int32 (major, minor, revision) and the number of images seen in training, with 64 bits if
10 major + minor >= 2, else with 32 (AlexeyAB/darknet, src/parser.c, load_weights_upto).

A file that `darknet partial` cut off, such as `darknet53.conv.74`, holds only the first 74 layers
of the cfg; layers without weights count.
"""

import contextlib
import functools
import math
import os
import pathlib
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from detlab.converters.readers import contents
from detlab.converters.writers import whole
from detlab.darknet import cfg as darknet_cfg
from detlab.darknet import networks as darknet_networks


class DarknetError(contents.ReadError):
    """The file is damaged, is not darknet's, or belongs to another network."""


class Header(NamedTuple):
    """Version of the file, and the number of images that the weights were trained on."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0


class Weights(NamedTuple):
    """The contents of a file."""

    header: Header
    # "<number of the layer>.<bias | scale | mean | var | weight>" -> float32, read-only views of
    # one buffer in the order of the file.
    tensors: dict[str, np.ndarray]


_MAX_VERSION = 1000  # from here on weights are transposed; darknet no longer writes such files
_VALUE = np.dtype("<f4")


def read(
    path: str | os.PathLike, network: darknet_cfg.Network, first_layers: int | None = None
) -> Weights:
    """Reads a `.weights` file completely.

    Args:
      path: the file.
      network: the network that the values belong to.
      first_layers: how many layers of the cfg the file holds.  None: the number at the end of a
        name such as `yolov4.conv.137`, or all layers for other names.
    Raises:
      DarknetError: one sentence that names the file: it cannot be read, its header is not
        darknet's, values are missing, left over or not finite, or variances are negative.
      CfgError: the network cannot work, see `darknet_cfg.shapes`.
    """
    path = pathlib.Path(path)
    first_layers = _first_layers(path, network, first_layers)
    shapes = tensor_shapes(network, first_layers)
    with contents.reading(path, "darknet .weights file", DarknetError):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header, start = _header(file.read(20))
            # Compared before memory of either size is allocated.
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
    """Writes a `.weights` file that darknet and `read` accept, or nothing after an error.

    Args:
      path: the file; one that exists is replaced once everything is written.
      network: determines the order of the tensors.
      weights: of all layers, or at least of the first ones.
      first_layers: as in `read`; weights of later layers are not written.
    Raises:
      DarknetError: a tensor is missing, has the wrong shape or belongs to no layer, values are
        not finite, variances are negative, a number of the header does not fit, or the file
        cannot be written.
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
    """Names and shapes of the tensors of the first layers (None: all), in the order of a file."""
    found = {}
    channels = network.net.channels
    layers = list(zip(network.layers, darknet_cfg.shapes(network), strict=True))
    for number, (layer, shape) in enumerate(layers[:first_layers]):
        if isinstance(layer, darknet_cfg.Convolutional) and layer.share_index is None:
            vectors = ("bias", "scale", "mean", "var") if layer.batch_normalize else ("bias",)
            found |= {f"{number}.{name}": (layer.filters,) for name in vectors}
            kernel = (layer.filters, channels // layer.groups, layer.size, layer.size)
            found[f"{number}.weight"] = kernel
        if isinstance(layer, darknet_cfg.Shortcut) and layer.weights_type != "none":
            each = (shape.channels,) if layer.weights_type == "per_channel" else ()
            found[f"{number}.weight"] = (len(layer.layers) + 1, *each)
        channels = shape.channels
    return found


def num_floats(network: darknet_cfg.Network, first_layers: int | None = None) -> int:
    """How many values follow the header in a file of the network."""
    return sum(math.prod(shape) for shape in tensor_shapes(network, first_layers).values())


def num_values(path: str | os.PathLike) -> int:
    """How many values a `.weights` file holds behind its header.

    Raises:
      DarknetError: the file cannot be read, or its header is not darknet's.
    """
    with contents.reading(path, "darknet .weights file", DarknetError):
        with open(path, "rb") as file:
            _, start = _header(file.read(20))
            return (os.fstat(file.fileno()).st_size - start) // _VALUE.itemsize


def classes_that_fit(
    network: darknet_cfg.Network, count: int, first_layers: int | None = None
) -> int | None:
    """The number of classes with which the network has `count` values; None if there is none.

    If the first layers hold no [yolo], that is the network's own number of classes.
    """
    return _classes_of_line(_line(network, first_layers), count)


def _line(network: darknet_cfg.Network, first_layers: int | None) -> tuple[int, ...]:
    """The network's own classes, its values with one class, and how many each class adds.

    () if it has fewer layers.
    """
    if first_layers is not None and first_layers > len(network.layers):
        return ()
    one, two = (num_floats(darknet_networks.with_classes(network, n), first_layers) for n in (1, 2))
    return network.layers[darknet_networks.heads(network)[-1]].classes, one, two - one


@functools.cache
def _standard_line(text: Callable[[], str], first_layers: int | None) -> tuple[int, ...]:
    return _line(darknet_cfg.parse(text()), first_layers)


def _classes_of_line(line: tuple[int, ...], count: int) -> int | None:
    if not line:
        return None
    own, one, each = line
    if each == 0:
        return own if count == one else None
    classes, rest = divmod(count - one, each)
    return classes + 1 if classes >= 0 and rest == 0 else None


def layers_that_fit(network: darknet_cfg.Network, count: int) -> int | None:
    """How many of the first layers have `count` values; None if there is no such number."""
    total = 0
    for name, shape in tensor_shapes(network).items():
        total += math.prod(shape)
        if total == count and name.endswith(".weight"):
            return int(name.partition(".")[0]) + 1
    return None


def standard_that_fit(count: int, first_layers: int | None = None) -> dict[str, int]:
    """The standard networks that have `count` values -> with how many classes they have them."""
    found = {
        name: _classes_of_line(_standard_line(text, first_layers), count)
        for name, text in darknet_networks.STANDARD.items()
    }
    return {name: classes for name, classes in found.items() if classes is not None}


def named_layers(path: str | os.PathLike) -> int | None:
    """The number of layers at the end of a name such as `yolov4.conv.137`; None for other names."""
    cut_off = re.search(r"\.conv\.([0-9]{1,9})$", pathlib.Path(path).name)
    return int(cut_off[1]) if cut_off else None


def _first_layers(path: pathlib.Path, network: darknet_cfg.Network, given: int | None) -> int:
    count = named_layers(path) if given is None else given
    count = len(network.layers) if count is None else count
    if not 1 <= count <= len(network.layers):
        raise DarknetError(
            f"{path}: the first {count} layers were requested, but {network.name} has"
            f" {len(network.layers)}."
        )
    return count


# ---- `read` and `write` add the name of the file to the errors below. ----


def _blocks(network: darknet_cfg.Network, weights: Weights, first_layers: int) -> list:
    """The parts of a file, all of them checked: the header and the tensors of its layers."""
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
                f"the tensor {name} has shape {tensor.shape}, but {network.name} needs {shape}"
            )
        with np.errstate(over="ignore"):  # `_check_values` reports values that overflow
            blocks.append(np.ascontiguousarray(tensor, _VALUE))
        _check_values(name, blocks[-1])
    return blocks


def _seen_format(major: int, minor: int) -> str:
    return "<Q" if 10 * major + minor >= 2 else "<I"


def _header(head: bytes) -> tuple[Header, int]:
    """The header, and where it ends."""
    if len(head) < 16:
        kind = "cut short" if head else "empty"
        raise DarknetError(
            f"{kind}: {len(head)} of the 16 or 20 bytes of a header; download or copy it again"
        )
    version = struct.unpack_from("<3i", head)
    if not all(0 <= number < _MAX_VERSION for number in version):
        is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)
        kind = "it is a text file" if is_text else "it does not start with a darknet version"
        raise DarknetError(f"not a darknet .weights file: {kind}")
    seen_format = _seen_format(*version[:2])
    end = 12 + struct.calcsize(seen_format)
    if len(head) < end:
        raise DarknetError(
            f"cut short: {len(head)} of the {end} bytes of a header; download or copy it again"
        )
    return Header(*version, *struct.unpack_from(seen_format, head, 12)), end


def _packed_header(header: Header) -> bytes:
    if not all(0 <= number < _MAX_VERSION for number in header[:3]):
        raise DarknetError(f"{header} has a version that darknet never writes")
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
        ending = f" and {rest} bytes of another: it is cut short or belongs to another cfg"
    elif count < expected:
        ending = f": {expected - count} are missing, so it is cut short or belongs to another cfg"
    else:
        ending = f": {count - expected} are left over, so it belongs to another cfg"
    hint, fitting = "", layers_that_fit(network, count)
    if rest == 0 and count == num_floats(network):  # of the whole network, under another name
        ending = f": {count - expected} are left over"
        hint = (
            f"; it is a whole file of {network.name}, which is read if its name does not end in"
            f" .conv.{first_layers}"
        )
    elif rest == 0 and fitting:
        hint = (
            f"; its values fit the first {fitting} layers (first_layers={fitting}), which are read"
            f" from a file named NAME.conv.{fitting}"
        )
    elif rest == 0 and (fits := _words_of_fits(network, count, first_layers)):
        hint = f"; {fits}"
    raise DarknetError(
        f"the first {first_layers} of {len(network.layers)} layers of {network.name} have"
        f" {expected} values, but the file holds {count}{ending}{hint}"
    )


def _words_of_fits(network: darknet_cfg.Network, count: int, first_layers: int) -> str:
    """Which networks have `count` values: the same with other classes or channels, or others."""
    part = None if first_layers == len(network.layers) else first_layers
    found = standard_that_fit(count, part)
    if any(isinstance(layer, darknet_cfg.HEADS) for layer in network.layers):
        with contextlib.suppress(darknet_cfg.CfgError):  # not with other classes
            classes = classes_that_fit(network, count, part)
            if classes is not None and network.name not in found:
                found = {network.name: classes, **found}
    known = [f"{name} with {_classes(classes)}" for name, classes in found.items()]
    channels = 1 if network.net.channels == 3 else 3
    other = network._replace(net=network.net._replace(channels=channels))
    with contextlib.suppress(darknet_cfg.CfgError):  # not with other channels
        if not known and num_floats(other, first_layers) == count:
            known = [f"{network.name} with channels={channels}"]
    verb = "have" if len(known) > 1 else "has"
    return f"{' and '.join(known)} {verb} exactly {count}" if known else ""


def _classes(count: int) -> str:
    return f"{count} {'class' if count == 1 else 'classes'}"


def _check_values(name: str, tensor: np.ndarray) -> None:
    if not np.isfinite(tensor).all():
        raise DarknetError(
            f"{name} holds values that are not finite; the file is damaged, or its training"
            " diverged"
        )
    if name.endswith(".var") and tensor.min() < 0:
        raise DarknetError(
            f"{name} holds variances below 0; the file is damaged, or belongs to another network"
        )
