"""Tensors of PyTorch's `.pth` and `.pt` files, read without PyTorch and without executing them.

`torch.save` writes either a ZIP archive (since 1.6; `*/data.pkl` and one member per storage) or
the legacy stream (five pickles, then the storages).  `pickle_machine` runs the pickles and treats
every object of an unknown class as inert data.

Sizes in the file are claims: each is compared with the bytes that exist before anything of that
size is allocated.  The formats are those of torch/serialization.py (2.x).
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from detlab.converters.readers import archives, contents, pickle_machine


class TorchFileError(contents.ReadError):
    """The file is damaged, malicious, not PyTorch's, or holds no state dict."""


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_NAME = 1000  # characters in the name of a parameter
_MAX_DEPTH = 64  # of nested modules
_MAX_ENTRIES = 100_000  # of all nested modules: parameters, buffers and modules

# Views may show a storage more than once (tied weights, expanded tensors), so all arrays together
# may be larger than the file, but not without limit: a file of 1 kB could declare a terabyte.
_VIEWS_PER_FILE_SIZE = 8
_VIEWS_ALLOWANCE = 64 << 20  # bytes

# Entries of checkpoints that hold the weights.  YOLOv5 stores averaged weights beside the trained
# ones and prefers them itself (models/experimental.py, attempt_load).
_WEIGHTS = ("ema", "state_dict", "model")

_MAX_META_VALUES = 100_000  # in all entries beside the weights
_MAX_META_LETTERS = 32 << 20
_MAX_META_DEPTH = 16


def read(path: str | os.PathLike) -> contents.Contents:
    """Reads a state dict, or the state dict of a checkpoint, from a `.pth` or `.pt` file.

    A checkpoint is a dict with an `ema`, `state_dict` or `model` entry (the first one present is
    used).  The entry is a dict of tensors, or a pickled module whose parameters and persistent
    buffers are collected.  A prefix "module." that all names share (DataParallel) is removed.

    `modules` describes the parts of a pickled module, as in `modules["model.1.act"]["class"]`.

    `meta` has the other entries.  Entries that contain tensors, such as an optimizer's, are only
    described ("dict with 5 tensors"), and so are objects of unknown classes.  `class_names` come
    from mmdet's `meta` or from `names` of a pickled YOLOv5.

    Args:
      path: a file in PyTorch's ZIP or legacy format, little-endian.
    Returns:
      its contents; bfloat16 and float8 arrays have the types of `ml_dtypes`, and tensors that
      share a storage share memory.
    Raises:
      TorchFileError: one sentence that names the file and says what is wrong with it.
    """
    with contents.reading(path, "PyTorch file", TorchFileError):
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK\x03\x04"):
                words, (root, load) = "PyTorch (zip)", _open_zip(file, size)
            elif head.startswith(b"\x80"):
                words, (root, load) = "PyTorch (legacy)", _open_legacy(file.read())
            else:
                raise TorchFileError(
                    f"not a PyTorch file; it looks like {contents.looks_like(head)}"
                )
            weights, others = _split(root)
            refs, rest = _state_dict(weights)
            return contents.Contents(
                words,
                _materialise(refs, load, size),
                _class_names(root, weights),
                _plain({**others, **rest}),
                _plain(_settings(weights)),
            )


# ---- The two containers.  Each returns the unpickled root and `load(storage)` -> bytes. ----


def _open_zip(file, size: int):
    archive = archives.open_zip(file, size)
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        kind = "a NumPy .npz file" if any(n.endswith(".npy") for n in members) else "a ZIP archive"
        raise TorchFileError(f"not a PyTorch file; it looks like {kind} without a data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise TorchFileError("a TorchScript program; save its state_dict() with torch.save instead")

    def member(name: str) -> bytes:
        info = members.get(f"{folder}{name}")
        if info is None:
            raise TorchFileError(f"the archive has no member {name!r}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise TorchFileError(f"member {name!r} is compressed, which torch.save never does")
        if info.file_size > size:
            raise TorchFileError(
                f"member {name!r} claims {info.file_size} bytes in a file of {size}; download or"
                " copy it again"
            )
        return archive.read(info)

    if f"{folder}byteorder" in members and member("byteorder") != b"little":
        raise TorchFileError("written on a big-endian machine, which is not supported")
    root = pickle_machine.Machine(io.BytesIO(member("data.pkl"))).run()
    return root, lambda storage: member(f"data/{storage.key}")


def _open_legacy(data: bytes):
    stream = io.BytesIO(data)
    if pickle_machine.Machine(stream).run() != _LEGACY_MAGIC:
        raise TorchFileError("a pickle, but not one that torch.save wrote")
    if pickle_machine.Machine(stream).run() != _LEGACY_PROTOCOL:
        raise TorchFileError("an unknown version of the legacy format")
    system = pickle_machine.Machine(stream).run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("written on a big-endian machine, which is not supported")
    machine = pickle_machine.Machine(stream)
    root = machine.run()
    keys = pickle_machine.Machine(stream).run()
    if not isinstance(keys, list):
        raise TorchFileError("the list of storages is missing")
    windows = {}  # key -> (start, stop) in `data`
    position = stream.tell()
    for key in keys:
        storage = machine.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise TorchFileError("the list of storages names one that no tensor uses")
        # An int64 element count, then the elements.
        start = position + 8
        position = start + storage.num_elements * storage.dtype.itemsize
        count = int.from_bytes(data[start - 8 : start], "little", signed=True)
        if count != storage.num_elements or position > len(data):
            raise TorchFileError(
                f"cut short or damaged at storage {key!r}; download or copy it again"
            )
        windows[key] = (start, position)

    def load(storage: pickle_machine.Storage) -> memoryview:
        if storage.key not in windows:
            raise TorchFileError(f"storage {storage.key!r} is missing")
        start, stop = windows[storage.key]
        return memoryview(data)[start:stop]

    return root, load


# ---- From the unpickled root to named arrays. ----


def _split(root: Any) -> tuple[Any, dict]:
    """The entry of a checkpoint that holds the weights, and all other entries."""
    if isinstance(root, dict):
        for entry in _WEIGHTS:
            value = root.get(entry)
            if _is_module(value) or (isinstance(value, dict) and _has_tensors(value)):
                return value, {key: other for key, other in root.items() if key != entry}
    return root, {}


def _is_module(value: Any) -> bool:
    """Whether it was pickled from a torch.nn.Module of any class."""
    if not isinstance(value, pickle_machine.Inert) or not isinstance(value.state, dict):
        return False
    return "_modules" in value.state


def _has_tensors(entries: dict) -> bool:
    return any(isinstance(value, pickle_machine.TensorRef) for value in entries.values())


def _state_dict(weights: Any) -> tuple[dict[str, pickle_machine.TensorRef], dict]:
    """Named tensors of a state dict or module, and its other entries."""
    if _is_module(weights):
        named = _module_tensors(weights)
    elif isinstance(weights, dict):
        named = weights
    else:
        raise TorchFileError(f"holds a {_kind(weights)}, not a state dict")
    refs, rest = {}, {}
    for key, value in named.items():
        if isinstance(value, pickle_machine.TensorRef) and isinstance(key, str):
            refs[key] = value
        elif isinstance(value, pickle_machine.Inert):
            raise TorchFileError(f"entry {key!r} is a {value.name}, not a tensor of a known kind")
        else:
            rest[key] = value
    if not refs:
        entries = ", ".join(repr(key)[:40] for key in list(named)[:8]) or "none"
        raise TorchFileError(f"holds no tensors (its entries: {entries})")
    if all(key.startswith("module.") for key in refs):
        refs = {key.removeprefix("module."): ref for key, ref in refs.items()}
    return refs, rest


def _kind(value: Any) -> str:
    return value.name if isinstance(value, pickle_machine.Inert) else type(value).__name__


def _module_tensors(root: pickle_machine.Inert) -> dict[str, Any]:
    """Parameters and persistent buffers of a pickled torch.nn.Module, as its state_dict()."""
    tensors = {}
    for path, module in _modules(root):
        hidden = module.state.get("_non_persistent_buffers_set")
        hidden = hidden if isinstance(hidden, set) else set()
        buffers = _entries_of(module, "_buffers").items()
        buffers = {name: value for name, value in buffers if name not in hidden}
        for name, value in (*_entries_of(module, "_parameters").items(), *buffers.items()):
            if value is not None:  # None: a parameter that the module lacks, such as a bias
                tensors[_dotted(*path, name)] = value
    return tensors


def _settings(weights: Any) -> dict[str, dict]:
    """Path of each module in a pickled one -> its class and its plain attributes."""
    if not _is_module(weights):
        return {}
    children = _entries_of(weights, "_modules")
    if list(children) == ["module"] and _is_module(children["module"]):  # DataParallel
        weights = children["module"]

    def is_plain(name: Any, value: Any) -> bool:
        if not isinstance(name, str) or name.startswith("_"):
            return False
        kinds = (bool, int, float, str, tuple)
        return isinstance(value, kinds) and not isinstance(value, pickle_machine.TensorRef)

    return {
        _dotted(*path): {
            **{name: value for name, value in module.state.items() if is_plain(name, value)},
            "class": module.name,
        }
        for path, module in _modules(weights)
        if path
    }


def _modules(root: pickle_machine.Inert) -> Iterator[tuple[tuple, pickle_machine.Inert]]:
    """(path, module) of a pickled torch.nn.Module and all modules in it."""
    num_entries = 0  # including repeated entries and entries that are not tensors

    def walk(module: Any, path: tuple):
        nonlocal num_entries
        if not _is_module(module):
            return
        kinds = ("_parameters", "_buffers", "_modules")
        num_entries += sum(len(_entries_of(module, kind)) for kind in kinds)
        if len(path) > _MAX_DEPTH or num_entries > _MAX_ENTRIES:
            raise TorchFileError("the modules are too many or too deeply nested")
        yield path, module
        for name, child in _entries_of(module, "_modules").items():
            yield from walk(child, (*path, name))

    return walk(root, ())


def _entries_of(module: pickle_machine.Inert, name: str) -> dict:
    found = module.state.get(name)
    return found if isinstance(found, dict) else {}


def _dotted(*names: Any) -> str:
    if sum(len(pickle_machine.checked(name, str)) for name in names) > _MAX_NAME:
        raise TorchFileError("the name of a parameter is too long")
    return ".".join(names)


def _class_names(root: Any, weights: Any) -> tuple[str, ...] | None:
    """Class names: YOLOv5's `names`, or mmdet's `meta` (2.x: CLASSES, 3.x: dataset_meta)."""
    if _is_module(weights):
        inner = weights.state["_modules"]
        inner = inner.get("module") if isinstance(inner, dict) else None  # of DataParallel
        module = inner if _is_module(inner) else weights
        return contents.as_class_names(module.state.get("names"))
    meta = _entries(root, "meta")
    dataset = _entries(meta, "dataset_meta")
    for value in (meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")):
        if names := contents.as_class_names(value):
            return names
    return None


def _entries(parent: Any, key: str) -> dict:
    value = parent.get(key) if isinstance(parent, dict) else None
    return value if isinstance(value, dict) else {}


def _plain(entries: dict) -> dict[str, Any]:
    """The entries in JSON-compatible form; `read` says what happens to the rest."""
    num_values = num_tensors = num_letters = 0

    def text(value: str) -> str:
        nonlocal num_letters
        num_letters += len(value)  # a pickle can repeat a long text at no cost
        if num_letters > _MAX_META_LETTERS:
            raise TorchFileError("the entries beside the weights are too long")
        return value

    def plain(value: Any, depth: int) -> Any:
        nonlocal num_values, num_tensors
        num_values += 1
        num_tensors += isinstance(value, pickle_machine.TensorRef)
        if isinstance(value, str):
            return text(value)
        if value is None or isinstance(value, (bool, float)):
            return value
        if isinstance(value, int) and value.bit_length() < 64:
            return value
        if num_values < _MAX_META_VALUES and depth < _MAX_META_DEPTH:
            if isinstance(value, dict):
                return {text(_text(k)): plain(inner, depth + 1) for k, inner in value.items()}
            if isinstance(value, (list, tuple, set, frozenset)):
                return [plain(inner, depth + 1) for inner in value]
        return _kind(value)

    result = {}
    for key, value in entries.items():
        num_tensors = 0
        copy = plain(value, 0)
        many = f"{_kind(value)} with {num_tensors} tensors"
        result[_text(key)] = many if num_tensors else copy
    return result


def _text(key: Any) -> str:
    return str(key) if isinstance(key, (str, int, float, type(None))) else _kind(key)


def _materialise(
    refs: dict[str, pickle_machine.TensorRef], load, size: int
) -> dict[str, np.ndarray]:
    """The arrays of the references; `load(storage)` returns bytes, `size` is the file's, bytes."""
    total = sum(math.prod(ref.size) * ref.dtype.itemsize for ref in refs.values())
    if total > _VIEWS_PER_FILE_SIZE * size + _VIEWS_ALLOWANCE:
        raise TorchFileError(f"declares tensors of {total} bytes in a file of {size}")
    storages, used = {}, 0
    tensors = {}
    for name, ref in refs.items():
        storage = ref.storage
        if storage.key not in storages:
            data = load(storage)
            used += len(data)
            if len(data) != storage.num_elements * storage.dtype.itemsize or used > size:
                raise TorchFileError(
                    f"storage {storage.key!r} of {name} declares {storage.num_elements} elements"
                    f" but has {len(data)} bytes"
                )
            values = np.frombuffer(data, np.uint8)
            if storage.dtype == np.bool_:
                values = values != 0  # any byte but 0 and 1 would be neither True nor False
            storages[storage.key] = values
        tensors[name] = _view(name, ref, storages[storage.key])
    return tensors


def _view(name: str, ref: pickle_machine.TensorRef, data: np.ndarray) -> np.ndarray:
    if 0 in ref.size:
        return np.zeros(ref.size, ref.dtype)
    itemsize = ref.dtype.itemsize
    last = ref.offset + sum(
        (n - 1) * stride for n, stride in zip(ref.size, ref.strides, strict=True)
    )
    if (last + 1) * itemsize > data.nbytes:
        raise TorchFileError(f"tensor {name} extends beyond its storage")
    return np.ndarray(
        ref.size,
        ref.dtype,
        buffer=data,
        offset=ref.offset * itemsize,
        strides=[stride * itemsize for stride in ref.strides],
    )
