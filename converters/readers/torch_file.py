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
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from detlab.converters.readers import archives, class_names, contents, pickle_machine


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

# Entries of checkpoints that usually hold the weights, in order of preference.  YOLOv5 stores
# averaged weights beside the trained ones and prefers them itself (models/experimental.py).
USUAL = ("ema", "state_dict", "model", "model_state_dict", "model_state", "net", "network")
USUAL += ("weights", "params", "module", "detector")
# Entries that hold tensors, but no weights.
_STATES = re.compile(r"optim|sched|scaler|(^|_)(amp|rng|random)(_|$)", re.IGNORECASE)
_MAX_ENTRY_DEPTH = 3  # of nested dicts around the weights
_MAX_PLACES = 16  # entries that may be the weights

# What class names are called in a pickled model, and beside a state dict.
_NAMES = ("names", "class_names", "CLASSES", "classes")
_NAMES_BESIDE = ("categories", "class_to_idx", "idx_to_class", "label_map", "labels")
_MAX_NAMES_DEPTH = 4  # of the module that has them

_MAX_META_VALUES = 100_000  # in all entries beside the weights
_MAX_META_LETTERS = 32 << 20
_MAX_META_DEPTH = 16


def read(
    path: str | os.PathLike, choose: Callable[[Mapping[str, Sequence[str]]], str] | None = None
) -> contents.Contents:
    """Reads a state dict, or the state dict of a checkpoint, from a `.pth` or `.pt` file.

    A checkpoint is a dict that holds the weights in one of its entries, or deeper.  They are a dict
    of tensors, or a pickled module whose parameters and persistent buffers are collected.  A prefix
    "module." that all names share (DataParallel) is removed.

    `modules` describes the parts of a pickled module, as in `modules["model.1.act"]["class"]`.

    `meta` has the other entries.  Entries that contain tensors, such as an optimizer's, are only
    described ("dict with 5 tensors"), and so are objects of unknown classes.  `class_names` come
    from mmdet's `meta`, from `names` of a pickled YOLOv5, or from an entry of such a name.

    Args:
      path: a file in PyTorch's ZIP or legacy format, little-endian.
      choose: from the names of the tensors in each entry that can hold the weights ("a/b" is b in
        a, "" the whole file; the likeliest first) to the entry to read.  None: the first.
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
            places = _places(root)
            names = {_slashed(place): list(found.refs) for place, found in places.items()}
            chosen = choose(names) if choose else next(iter(names))
            ((place, found),) = [(p, f) for p, f in places.items() if _slashed(p) == chosen]
            known, note = _class_names(root, place, found.weights)
            return contents.Contents(
                words,
                _materialise(found.refs, load, size),
                known,
                _plain({**_others(root, place), **found.rest}),
                _plain(_settings(found.weights)),
                {name: len(refs) for name, refs in names.items() if name},
                (note,) if note else (),
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


class _Found(NamedTuple):
    """What can be the weights of a file."""

    weights: Any  # a dict with tensors, or a module
    refs: dict[str, pickle_machine.TensorRef]  # by name
    rest: dict  # its other entries


def _places(root: Any) -> dict[tuple[str, ...], _Found]:
    """The entries that can be the weights, by the keys that lead to them, the likeliest first."""
    weights: dict[tuple[str, ...], Any] = {}
    seen = set()  # a file can refer to one dict many times

    def walk(value: Any, place: tuple[str, ...]) -> None:
        if id(value) in seen or len(weights) == _MAX_PLACES:
            return
        seen.add(id(value))
        if _is_module(value) or (isinstance(value, dict) and _has_tensors(value)):
            weights[place] = value
        if isinstance(value, pickle_machine.Inert) and not _is_module(value):
            value = value.state  # such as an object that holds averages
        if isinstance(value, dict) and len(place) < _MAX_ENTRY_DEPTH:
            for key, inner in value.items():
                if isinstance(key, str) and not _STATES.search(key):
                    walk(inner, (*place, key))

    walk(root, ())
    found, failure = {}, None
    for place, value in weights.items():
        try:
            found[place] = _Found(value, *_state_dict(value))
        except TorchFileError as error:
            failure = failure or error
    if not found:
        raise failure or TorchFileError(_without_tensors(root))
    most = max(len(one.refs) for one in found.values())

    def rank(place: tuple[str, ...]) -> tuple:
        count = len(found[place].refs)
        usual = bool(place) and place[0] in USUAL and 2 * count >= most
        return (USUAL.index(place[0]) if usual else len(USUAL), -count)

    return {place: found[place] for place in sorted(found, key=rank)}


def _slashed(place: tuple[str, ...]) -> str:
    return "/".join(place)


def _others(root: Any, place: tuple[str, ...]) -> dict:
    """The entries beside the weights."""
    if not place or not isinstance(root, dict):
        return {}
    (key, *deeper), others = place, {name: v for name, v in root.items() if name != place[0]}
    beside = _others(root[key], tuple(deeper)) if deeper else {}
    return {**others, **({key: beside} if beside else {})}


def _without_tensors(root: Any) -> str:
    """Why nothing in the file can be the weights."""
    if not isinstance(root, dict):
        return f"holds a {_kind(root)}, not a state dict"
    if any("multiarray._reconstruct" in _kind(value) for value in root.values()):
        return "holds NumPy's arrays, not tensors; save them with numpy.savez instead"
    entries = ", ".join(repr(key)[:40] for key in list(root)[:8]) or "none"
    return f"holds no tensors (its entries: {entries})"


def _is_module(value: Any) -> bool:
    """Whether it was pickled from a torch.nn.Module of any class."""
    if not isinstance(value, pickle_machine.Inert) or not isinstance(value.state, dict):
        return False
    return "_modules" in value.state


def _has_tensors(entries: dict) -> bool:
    """Whether a dict holds tensors, also those of kinds that cannot be read."""
    return any(
        isinstance(value, pickle_machine.TensorRef)
        or _kind(value).startswith("torch._utils._rebuild")
        for value in entries.values()
    )


def _state_dict(weights: Any) -> tuple[dict[str, pickle_machine.TensorRef], dict]:
    """Named tensors of a state dict or module, and its other entries."""
    named = _module_tensors(weights) if _is_module(weights) else weights
    refs, rest = {}, {}
    for key, value in named.items():
        if isinstance(value, pickle_machine.TensorRef) and isinstance(key, str):
            refs[key] = value
        elif _kind(value).startswith("torch._utils._rebuild"):
            raise TorchFileError(f"entry {key!r} is a {value.name}, not a tensor of a known kind")
        else:
            rest[key] = value
    if not refs:
        raise TorchFileError(_without_tensors(named))
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
    if list(children) == ["module"] and _is_module(children["module"]):  # as in `_state_dict`
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


def _modules(
    root: pickle_machine.Inert, depth: int = _MAX_DEPTH
) -> Iterator[tuple[tuple, pickle_machine.Inert]]:
    """(path, module) of a pickled torch.nn.Module and the modules in it, down to a depth."""
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
        if len(path) == depth < _MAX_DEPTH:
            return
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


def _class_names(
    root: Any, place: tuple[str, ...], weights: Any
) -> tuple[tuple[str, ...] | None, str]:
    """Class names, and a sentence about those that cannot be read.

    They are those of the model (YOLOv5's `names`), of mmdet's `meta` (2.x: CLASSES, 3.x:
    dataset_meta), or of an entry beside the weights.
    """
    values, less_sure = [*_names_of_modules(weights)], []
    around = root
    for key in ("", *place):
        around = around.get(key) if key and isinstance(around, dict) else around
        meta = _entries(around, "meta")
        dataset = _entries(meta, "dataset_meta")
        values += [meta.get("CLASSES"), dataset.get("classes"), dataset.get("CLASSES")]
        if isinstance(around, dict):
            values += [around.get(name) for name in _NAMES]
            values += [value for other in around.values() for value in _names_of_modules(other)]
            hyper = _entries(around, "hyper_parameters")  # of Lightning
            less_sure += [around.get(name) for name in _NAMES_BESIDE]
            less_sure += [hyper.get(name) for name in (*_NAMES, *_NAMES_BESIDE)]
    for value in (*values, *less_sure):
        if names := class_names.of(value):
            return names, ""
    kinds = (dict, set, list, tuple, str, pickle_machine.Inert)
    unread = next((v for v in values if isinstance(v, kinds) and v), None)
    if not unread:
        return None, ""
    return None, (
        f"its class names are a {_kind(unread)} that is no list of names, so they are left out;"
        " give them with --names FILE"
    )


def _names_of_modules(weights: Any) -> Iterator[Any]:
    """What a pickled module, or one that it wraps, calls the names of its classes."""
    if _is_module(weights):
        for _, module in _modules(weights, _MAX_NAMES_DEPTH):
            for name in _NAMES:
                yield module.state.get(name)


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
