"""Tensors of PyTorch's `.pth` and `.pt` files, read without PyTorch and without executing them.

`torch.save` writes either a ZIP archive (since 1.6; `*/data.pkl` and one member per storage) or
the legacy stream (five pickles, then the storages).  Both hold a pickle, which is a program for a
stack machine.  `_Machine` below runs that program without Python's unpickler: opcodes are parsed
by `pickletools`, no name is ever imported and no object of the file is ever called.  A name that
is not in `_REBUILD` makes an `Inert`, which only records what it was given.

Sizes in the file are claims: each is compared with the bytes that are there before anything of
that size is allocated.  The formats are those of torch/serialization.py (2.x).
"""

import io
import math
import os
import pathlib
import pickletools
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from detlab import errors


class TorchFileError(errors.UserError):
    """The file is damaged, malicious, not of PyTorch, or holds no state dict."""


class StateFile(NamedTuple):
    """What a file holds: the state dict, and everything beside it."""

    tensors: dict[str, np.ndarray]  # PyTorch's names and layouts; read-only or strided views
    meta: dict[str, Any]  # other entries of the checkpoint; unknown objects in it are `Inert`


class Inert:
    """Stand-in for an object of a class that is not known here; it has data and no behaviour."""

    def __init__(self, name: str, args: tuple):
        self.name = name  # module and class, as "models.yolo.Model"
        self.args = args
        self.state = None  # what the pickle would have given to __setstate__ or __dict__
        self.items = []  # of subclasses of list and set
        self.entries = {}  # of subclasses of dict

    def __repr__(self):
        return f"<inert {self.name}>"


class TensorRef(NamedTuple):
    """A tensor that was declared but not yet read: a strided window of a storage."""

    storage: "_Storage"
    offset: int  # in elements
    size: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _Storage(NamedTuple):
    """One block of elements, which tensors share."""

    key: str
    dtype: np.dtype
    num_elements: int


class _Global(NamedTuple):
    """A name that the pickle wants imported; it is not."""

    name: str


_DTYPES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_DIMENSIONS = 32
_MAX_NAME = 1000  # letters of a parameter or class
_MAX_DEPTH = 64  # of nested modules
_MAX_MODULES = 100_000

# Views may show a storage more than once (tied weights, expanded tensors), so all arrays together
# may be larger than the file, but not without limit: a file of 1 kB could declare a terabyte.
_VIEWS_PER_FILE_SIZE = 8
_VIEWS_ALLOWANCE = 64 << 20  # bytes


def read(path: str | os.PathLike) -> StateFile:
    """Reads a state dict, or the state dict of a checkpoint, from a `.pth` or `.pt` file.

    A checkpoint is a dict with a `state_dict` or `model` entry: a dict of tensors, or a pickled
    module whose parameters and buffers are collected.  A prefix "module." that all names share
    (DataParallel) is removed.

    Args:
      path: a file in PyTorch's ZIP or legacy format, little-endian.
    Raises:
      TorchFileError: one sentence with the file's name, whatever is wrong with it.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
            file.seek(0)
            if head.startswith(b"PK\x03\x04"):
                root, load = _open_zip(file, size)
            elif head.startswith(b"\x80"):
                root, load = _open_legacy(file.read())
            else:
                raise TorchFileError(f"not a PyTorch file, it looks like {_looks_like(head)}")
            return _state_file(root, load, size)
    except TorchFileError as error:
        raise TorchFileError(f"{path}: {str(error)[:300]}.") from None
    except OSError as error:
        raise TorchFileError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        # A mutated pickle or archive can break the parsers of the standard library in any way.
        reason = f"{type(error).__name__}: {error}"[:200]
        raise TorchFileError(f"{path}: damaged PyTorch file ({reason}).") from error


# ---- The two containers.  Each gives the unpickled root and `load(storage)` -> bytes. ----


def _open_zip(file, size: int):
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile:
        raise TorchFileError("a ZIP archive that is cut short or damaged") from None
    members = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        kind = "a NumPy .npz file" if any(n.endswith(".npy") for n in members) else "a ZIP archive"
        raise TorchFileError(f"not a PyTorch file, it looks like {kind} without a data.pkl")
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
                f"member {name!r} claims {info.file_size} bytes in a file of {size}"
            )
        return archive.read(info)

    if f"{folder}byteorder" in members and member("byteorder") != b"little":
        raise TorchFileError("written on a big-endian machine, which is not supported")
    root = _Machine(io.BytesIO(member("data.pkl"))).run()
    return root, lambda storage: member(f"data/{storage.key}")


def _open_legacy(data: bytes):
    stream = io.BytesIO(data)
    if _Machine(stream).run() != _LEGACY_MAGIC:
        raise TorchFileError("a pickle, but not one that torch.save wrote")
    if _Machine(stream).run() != _LEGACY_PROTOCOL:
        raise TorchFileError("an unknown version of the legacy format")
    system = _Machine(stream).run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise TorchFileError("written on a big-endian machine, which is not supported")
    machine = _Machine(stream)
    root = machine.run()
    keys = _Machine(stream).run()
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
            raise TorchFileError(f"cut short or damaged at storage {key!r}")
        windows[key] = (start, position)

    def load(storage: _Storage) -> memoryview:
        if storage.key not in windows:
            raise TorchFileError(f"storage {storage.key!r} is missing")
        start, stop = windows[storage.key]
        return memoryview(data)[start:stop]

    return root, load


_SIGNATURES = (
    (b"\x93NUMPY", "a NumPy .npy file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip file, to be unpacked first"),
    (b"BZh", "a bzip2 file, to be unpacked first"),
    (b"\xfd7zXZ", "an xz file, to be unpacked first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"%PDF", "a PDF document"),
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself"),
    (b"PK", "an empty or damaged ZIP archive"),
)


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive (PyTorch before 0.1.10, or one to be unpacked first)"
    if head.lstrip()[:1] == b"<":
        return "a web page: the download went wrong"
    if head[8:9] == b"{":
        return "a safetensors file"
    printable = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:64])
    return "a text file" if printable else "no known format"


# ---- The pickle machine. ----


class _Mark:
    """Where the arguments of a tuple, list or dict begin on the stack."""


class _Machine:
    """Runs one pickle, protocols 0 to 5, without importing or calling anything.

    Memory and time are linear in the length of the pickle: values are only shared, never copied,
    and the memo is a dict, so a huge memo index costs nothing.
    """

    def __init__(self, stream: io.BytesIO):
        self.stream = stream  # left just behind the pickle
        self.stack = []
        self.memo = {}
        self.storages = {}  # key -> _Storage

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.stream):
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise TorchFileError("the pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "MARK":
                stack.append(_Mark)
            case "POP":
                stack.pop()
            case "POP_MARK":
                self._pop_to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE":
                stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(name[-1])
                stack.append(tuple(self._pop() for _ in range(length))[::-1])
            case "LIST":
                stack.append(self._pop_to_mark())
            case "DICT":
                items = self._pop_to_mark()
                stack.append({})
                _set_items(stack[-1], items)
            case "FROZENSET":
                stack.append(frozenset(_key(item) for item in self._pop_to_mark()))
            case "APPEND":
                item = self._pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self._pop_to_mark()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = self._pop(), self._pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self._pop_to_mark()
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(_global(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = self._pop(), self._pop()
                stack.append(_global(module, attribute))
            case "REDUCE" | "NEWOBJ":
                args, function = self._pop(), self._pop()
                stack.append(_apply(function, args))
            case "NEWOBJ_EX":
                _, args, function = self._pop(), self._pop(), self._pop()
                stack.append(_apply(function, args))
            case "BUILD":
                state = self._pop()
                if isinstance(stack[-1], Inert):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(self._storage(self._pop()))
            case _ if name in _PUSH_ARGUMENT:
                stack.append(argument)
            case _ if name in _PUSH_NEW:
                stack.append(_PUSH_NEW[name]())
            case _:
                raise TorchFileError(f"the pickle uses {name}, which torch.save never writes")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise TorchFileError("the pickle's stack is damaged")
        return value

    def _pop_to_mark(self) -> list:
        items = []
        while (value := self.stack.pop()) is not _Mark:
            items.append(value)
        return items[::-1]

    def _storage(self, identifier: Any) -> _Storage:
        """A persistent id: ("storage", type, key, device, number of elements[, view])."""
        kind, storage_type, key, _, num_elements, *view = _checked(identifier, tuple)
        if kind != "storage" or view not in ([], [None]):
            raise TorchFileError("a persistent id that is not a plain storage")
        name = _checked(storage_type, _Global).name
        if name not in _DTYPES:
            raise TorchFileError(f"storages of type {name} are not supported")
        storage = _Storage(_checked(key, str), _DTYPES[name], _natural(num_elements))
        return self.storages.setdefault(storage.key, storage)


_PUSH_ARGUMENT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_PUSH_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def _extend(target: Any, items: list) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, set):
        target.update(_key(item) for item in items)
    elif isinstance(target, Inert):
        target.items.extend(items)
    else:
        raise TorchFileError(f"the pickle appends to a {type(target).__name__}")


def _set_items(target: Any, items: list) -> None:
    entries = target.entries if isinstance(target, Inert) else _checked(target, dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        entries[_key(key)] = value


def _global(module: Any, attribute: Any) -> _Global:
    for part in (module, attribute):
        if len(_checked(part, str)) > _MAX_NAME:
            raise TorchFileError(f"the pickle names something in {len(part)} letters")
    return _Global(f"{module}.{attribute}")


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TorchFileError(
            f"the pickle has a {type(value).__name__} where a {kind.__name__} belongs"
        )
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise TorchFileError("the pickle declares an impossible size, offset or stride")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if len(_checked(values, tuple)) > _MAX_DIMENSIONS:
        raise TorchFileError(f"a tensor of {len(values)} dimensions")
    return tuple(_natural(value) for value in values)


def _key(value: Any) -> Any:
    """A value that may be hashed.  Nested tuples may not: hashing shared ones is exponential."""
    scalars = (str, bytes, int, float, bool, type(None), _Global, Inert)
    parts = value if type(value) is tuple else (value,)
    if not all(isinstance(part, scalars) for part in parts):
        raise TorchFileError(f"the pickle uses a {type(value).__name__} as a key")
    return value


# ---- What REDUCE and NEWOBJ may build: a fixed table of pure functions of this file. ----


def _apply(function: Any, args: Any) -> Any:
    name = _checked(function, _Global).name
    args = _checked(args, tuple)
    return _REBUILD[name](*args) if name in _REBUILD else Inert(name, args)


def _rebuild_tensor(storage, offset, size, strides, *_) -> TensorRef:
    """Arguments of torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    size, strides = _naturals(size), _naturals(strides)
    if len(size) != len(strides):
        raise TorchFileError(f"a tensor of size {size} with strides {strides}")
    return TensorRef(_checked(storage, _Storage), _natural(offset), size, strides)


def _rebuild_parameter(data, *_) -> TensorRef:
    return _checked(data, TensorRef)


def _rebuild_from_type(function, _, args, *__) -> TensorRef:
    """A tensor with Python attributes, which are dropped."""
    if _checked(function, _Global).name == "torch._tensor._rebuild_from_type_v2":
        raise TorchFileError("a tensor that is rebuilt from itself")
    return _checked(_apply(function, args), TensorRef)


def _rebuild_size(size) -> tuple[int, ...]:
    return _naturals(size)


def _rebuild_dict(pairs=()) -> dict:
    result = {}
    for pair in _consumed(pairs):
        key, value = _checked(pair, list)
        result[_key(key)] = value
    return result


def _rebuild_set(items=()) -> set:
    return {_key(item) for item in _consumed(items)}


def _consumed(items: list | tuple) -> list:
    """Moves the items out of a list: copies of one list could fill the memory."""
    if not items:
        return []
    moved = list(_checked(items, list))
    items.clear()
    return moved


_REBUILD = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _rebuild_size,
    "collections.OrderedDict": _rebuild_dict,
    "builtins.set": _rebuild_set,
    "__builtin__.set": _rebuild_set,
}


# ---- From the unpickled root to named arrays. ----


def _state_file(root: Any, load, size: int) -> StateFile:
    meta = {}
    named = root
    if isinstance(root, dict):
        for entry in ("state_dict", "model"):
            if isinstance(root.get(entry), (dict, Inert)):
                named = root[entry]
                meta = {key: value for key, value in root.items() if key != entry}
                break
    if isinstance(named, Inert):
        named = _module_tensors(named)
    if not isinstance(named, dict):
        raise TorchFileError(f"holds a {_kind(named)}, not a state dict")
    refs = {}
    for key, value in named.items():
        if isinstance(value, TensorRef) and isinstance(key, str):
            refs[key] = value
        elif isinstance(value, Inert):
            raise TorchFileError(f"entry {key!r} is a {value.name}, not a tensor of a known kind")
        else:
            meta[key] = value
    if not refs:
        entries = ", ".join(repr(key)[:40] for key in list(named)[:8]) or "none"
        raise TorchFileError(f"holds no tensors (its entries: {entries})")
    if all(key.startswith("module.") for key in refs):
        refs = {key.removeprefix("module."): ref for key, ref in refs.items()}
    return StateFile(_materialise(refs, load, size), meta)


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Inert) else type(value).__name__


def _module_tensors(root: Inert) -> dict[str, TensorRef]:
    """Parameters and persistent buffers of a pickled torch.nn.Module, as its state_dict()."""
    tensors = {}
    num_modules = 0

    def entries(module: Inert, name: str) -> dict:
        found = module.state.get(name)
        return found if isinstance(found, dict) else {}

    def collect(module: Any, path: tuple[str, ...]) -> None:
        nonlocal num_modules
        if not isinstance(module, Inert) or not isinstance(module.state, dict):
            return
        num_modules += 1
        if len(path) > _MAX_DEPTH or num_modules > _MAX_MODULES:
            raise TorchFileError("modules are nested without end")
        hidden = module.state.get("_non_persistent_buffers_set")
        hidden = hidden if isinstance(hidden, set) else set()
        buffers = {k: v for k, v in entries(module, "_buffers").items() if k not in hidden}
        for name, value in (*entries(module, "_parameters").items(), *buffers.items()):
            if isinstance(value, TensorRef):
                tensors[_dotted(*path, name)] = value
        for name, child in entries(module, "_modules").items():
            collect(child, (*path, name))

    collect(root, ())
    if not tensors:
        raise TorchFileError(f"holds a {root.name}, in which there are no tensors")
    return tensors


def _dotted(*names: Any) -> str:
    if sum(len(_checked(name, str)) for name in names) > _MAX_NAME:
        raise TorchFileError("the name of a parameter has no end")
    return ".".join(names)


def _materialise(refs: dict[str, TensorRef], load, size: int) -> dict[str, np.ndarray]:
    total = sum(math.prod(ref.size) * ref.storage.dtype.itemsize for ref in refs.values())
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
                    f"storage {storage.key!r} of {name} declares {storage.num_elements} elements "
                    f"and has {len(data)} bytes"
                )
            values = np.frombuffer(data, np.uint8)
            if storage.dtype == np.bool_:
                values = values != 0  # any byte but 0 and 1 would be neither True nor False
            storages[storage.key] = values
        tensors[name] = _view(name, ref, storages[storage.key])
    return tensors


def _view(name: str, ref: TensorRef, data: np.ndarray) -> np.ndarray:
    if 0 in ref.size:
        return np.zeros(ref.size, ref.storage.dtype)
    last = ref.offset + sum((n - 1) * stride for n, stride in zip(ref.size, ref.strides))
    if last >= ref.storage.num_elements:
        raise TorchFileError(f"tensor {name} reaches behind its storage")
    itemsize = ref.storage.dtype.itemsize
    return np.ndarray(
        ref.size,
        ref.storage.dtype,
        buffer=data,
        offset=ref.offset * itemsize,
        strides=[stride * itemsize for stride in ref.strides],
    )
