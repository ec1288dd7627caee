"""Class names in the forms in which people store them, and from text files."""

import re
import struct
from collections.abc import Iterable
from typing import Any

from detlab import errors
from detlab import text as text_lib
from detlab.converters.readers import contents, pickle_machine

_MAX_LETTERS = 100  # of a name
_MAX_ITEM = 4096  # bytes of a NumPy text


def of(value: Any) -> tuple[str, ...] | None:
    """Names from a list or a dict, in the order of its keys; None for anything else.

    A dict has numbers as keys, also as text ("0", "1") and counted from any number, or it gives the
    number of each name ({"cat": 0, "dog": 1}).  A list may hold COCO's categories, which are put in
    the order of their ids.  Names that are numbers, bytes or NumPy's text
    become text.  The names are printed and drawn wherever the weights are used, so they are made
    `contents.printable`.

    Args:
      value: as `pickle_machine` returns it: plain values, or inert objects of NumPy.
    """
    names = _listed(value)
    if not names:
        return None
    shown: dict[Any, str] = {}  # once per distinct name: a file can repeat one a million times
    found = []
    for name in names:
        if isinstance(name, pickle_machine.Inert):
            key = id(name)
        elif _is_plain(name):
            key = (type(name), name)
        else:
            return None
        if key not in shown:
            text = _text(name)
            if text is None:
                return None
            shown[key] = contents.printable(text, _MAX_LETTERS)
        found.append(shown[key])
    return tuple(found)


def read(path: str, count: int) -> tuple[str, ...]:
    """The class names in a text file, one per line; blank lines are dropped.

    Args:
      path: the value of --names.
      count: the number of classes of the network.
    Raises:
      UserError: the file cannot be read, is not text, or has another number of names.
    """
    try:
        text = text_lib.read(path)
    except OSError as error:
        reason = error.strerror or error
        raise errors.UserError(f"--names {path} cannot be read: {reason}.") from error
    except ValueError as error:
        raise errors.UserError(f"--names {path} {error}.") from error
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text)]
    names = tuple(line for line in lines if line)
    if len(names) == count:
        return of(names)
    listed = [line for line in names if re.match(r"names\s*[=:]", line)]
    if listed:
        raise errors.UserError(
            f"--names {path} describes a data set ({contents.printable(listed[0], 80)}); give a"
            " text file with one name per line."
        )
    raise errors.UserError(
        f"--names {path} has {len(names)} names, but the network has {count} classes; give one"
        " name per line."
    )


def _listed(value: Any) -> list | None:
    """The names of a list or dict in their order, not yet as text."""
    if isinstance(value, pickle_machine.Inert):
        value = _array(value) or value.items or value.entries
    if isinstance(value, dict):
        numbers = [_number(key) for key in value]
        if None not in numbers and len(set(numbers)) == len(numbers):
            return _by_number(numbers, value.values())
        numbers = [_number(number) for number in value.values()]
        if None in numbers or len(set(numbers)) < len(numbers):
            return None
        return _by_number(numbers, value)
    if not isinstance(value, (list, tuple)):
        return None
    if all(isinstance(item, dict) and "name" in item for item in value):  # COCO's categories
        ids = [_number(item.get("id")) for item in value]
        names = [item["name"] for item in value]
        return names if None in ids else _by_number(ids, names)
    return list(value)


def _by_number(numbers: Iterable[int], names: Iterable) -> list:
    pairs = sorted(zip(numbers, names, strict=True), key=lambda pair: pair[0])
    return [name for _, name in pairs]


def _number(key: Any) -> int | None:
    if isinstance(key, pickle_machine.Inert):
        key = _scalar(key)
    if isinstance(key, float) and key.is_integer():
        return int(key)
    if isinstance(key, str) and re.fullmatch(r"\s*[0-9]{1,9}\s*", key):
        return int(key)
    return key if type(key) is int else None


def _is_plain(name: Any) -> bool:
    """Whether a name is one value whose hash no file can make slow."""
    if isinstance(name, int):
        return name.bit_length() < 61
    return isinstance(name, (str, bytes, float, type(None)))


def _text(name: Any) -> str | None:
    """A name as text; None if it is an object other than NumPy's scalars and bytes."""
    if isinstance(name, pickle_machine.Inert):
        name = _bytes(name) if name.name == "_codecs.encode" else _scalar(name)
        if name is None:
            return None
    if isinstance(name, bytes):
        try:
            return name.decode()
        except UnicodeDecodeError:
            return name.decode("latin-1")
    return str(name)


# ---- NumPy's objects in a pickle: inert calls of its functions, see numpy/_core/multiarray. ----


def _is(value: Any, name: str) -> bool:
    if not isinstance(value, pickle_machine.Inert):
        return False
    return re.sub(r"^numpy\._?core\.", "numpy.", value.name) == f"numpy.{name}"


def _scalar(value: pickle_machine.Inert) -> Any:
    """The value of a NumPy scalar; None for other objects."""
    if not _is(value, "multiarray.scalar") or len(value.args) != 2:
        return None
    items = _unpacked(value.args[0], value.args[1], 1)
    return items[0] if items else None


def _array(value: pickle_machine.Inert) -> list | None:
    """The items of a NumPy array with one axis; None for other objects."""
    if _is(value, "numeric._frombuffer") and len(value.args) == 4:  # protocol 5
        data, dtype, shape, _ = value.args
    elif _is(value, "multiarray._reconstruct") and isinstance(value.state, tuple):
        if len(value.state) != 5:
            return None
        _, shape, dtype, _, data = value.state
    else:
        return None
    if not isinstance(shape, tuple) or len(shape) != 1:
        return None
    # An array of objects has a list of them.
    return data if isinstance(data, list) else _unpacked(dtype, data, shape[0])


def _bytes(value: Any) -> bytes | None:
    """Bytes, which protocol 2 writes as a call that encodes text."""
    if isinstance(value, pickle_machine.Inert) and value.name == "_codecs.encode":
        text = value.args[0] if value.args else None
        return text.encode("latin-1", "replace") if isinstance(text, str) else None
    return bytes(value) if isinstance(value, (bytes, bytearray)) else None


def _unpacked(dtype: Any, data: Any, count: Any) -> list | None:
    """`count` items of a NumPy type from their bytes."""
    data = _bytes(data)
    if not _is(dtype, "dtype") or data is None or type(count) is not int:
        return None
    code = dtype.args[0] if dtype.args and isinstance(dtype.args[0], str) else ""
    state = dtype.state if isinstance(dtype.state, tuple) else ()
    order = ">" if ">" in state[1:2] else "<"
    match = re.fullmatch(r"([USbiuf])([0-9]{1,4})", code)
    if not match:
        return None
    kind, size = match[1], int(match[2]) * (4 if match[1] == "U" else 1)
    if not 0 < size <= _MAX_ITEM or size * count != len(data):
        return None
    items = [data[i : i + size] for i in range(0, len(data), size)]
    if kind == "S":
        return [item.rstrip(b"\0") for item in items]
    if kind == "U":
        encoding = "utf-32-be" if order == ">" else "utf-32-le"
        return [item.decode(encoding, "replace").rstrip("\0") for item in items]
    codes = {"i": {1: "b", 2: "h", 4: "i", 8: "q"}, "u": {1: "B", 2: "H", 4: "I", 8: "Q"}}
    codes |= {"f": {2: "e", 4: "f", 8: "d"}, "b": {1: "?"}}
    if size not in codes[kind]:
        return None
    return [struct.unpack(order + codes[kind][size], item)[0] for item in items]
