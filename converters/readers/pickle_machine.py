"""Evaluates PyTorch's pickles without executing any code from them.

A pickle is a program for a stack machine.  `Machine` runs that program without Python's unpickler:
`pickletools` parses the opcodes, no name is ever imported and no object from the file is ever
called.  A name that is not in `_REBUILD` makes an `Inert`, which only records its arguments.

The persistent ids and the rebuilding functions are those of torch/serialization.py and
torch/_utils.py (2.x).
"""

import io
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from detlab.converters.readers import contents


class PickleError(contents.ReadError):
    """The pickle is damaged, malicious, or uses what no weight file needs."""


class Inert:
    """Stand-in for an object of an unknown class; it has data and no behaviour."""

    def __init__(self, name: str, args: tuple):
        self.name = name  # module and class, as "models.yolo.Model"
        self.args = args
        self.state = None  # what the pickle would have given to __setstate__ or __dict__
        self.items = []  # of subclasses of list and set
        self.entries = {}  # of subclasses of dict

    def __repr__(self):
        return f"<inert {self.name}>"


class Storage(NamedTuple):
    """A block of elements that tensors share."""

    key: str
    dtype: np.dtype
    num_elements: int


class TensorRef(NamedTuple):
    """A tensor that was declared but not yet read: a strided window of a storage."""

    storage: Storage
    dtype: np.dtype  # of the storage, except that untyped storages hold bytes
    offset: int  # in elements
    size: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class _Global(NamedTuple):
    """A name that the pickle asks to import; it is never imported."""

    name: str


STORAGE_DTYPES = {
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
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),  # the tensor has the type
}

# Types newer than the storage classes; their tensors have untyped storages.
_YOUNG_DTYPES = {
    "torch.uint16": np.dtype(np.uint16),
    "torch.uint32": np.dtype(np.uint32),
    "torch.uint64": np.dtype(np.uint64),
    "torch.float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "torch.float8_e4m3fnuz": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "torch.float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "torch.float8_e5m2fnuz": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "torch.float8_e8m0fnu": np.dtype(ml_dtypes.float8_e8m0fnu),
}

# Names used by attacks.  Here they would be as inert as any other, but a file that has one is
# malicious, and the user should know.
_HARMFUL_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "importlib", "runpy", "shutil", "socket", "pty"),
    "ctypes",
}
_HARMFUL_BUILTINS = {"eval", "exec", "compile", "open", "__import__", "breakpoint", "input"}

_MAX_OPCODES = 2_000_000  # in one pickle; a YOLOv5 has 34,000
_MAX_MEMO_INDEX = 1 << 32  # torch.save counts from 0
_MAX_DIMENSIONS = 32
_MAX_NAME = 1000  # characters in the name of a module or class
_HASH_MODULUS = (1 << 61) - 1  # Python's; smaller integers have distinct hashes


class _Mark:
    """Where the arguments of a tuple, list or dict begin on the stack."""


class Machine:
    """Runs one pickle, protocols 0 to 5, without importing or calling anything.

    Memory and time are linear in the length of the pickle: values are shared, never copied; the
    memo is a dict, so a huge memo index costs nothing; and a file cannot choose keys with equal
    hashes.  One-byte opcodes make objects of hundreds of bytes, so their number is limited too.
    """

    def __init__(self, stream: io.BytesIO):
        self.stream = stream  # `run` stops just after the pickle
        self.stack = []
        self.memo = {}
        self.storages = {}  # key -> Storage

    def run(self) -> Any:
        """Returns the root of the pickle; raises `PickleError` or any parser's error if damaged."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.stream), 1):
            if opcode.name == "STOP":
                return self._pop()
            if count > _MAX_OPCODES:
                raise PickleError(f"the pickle has more than {_MAX_OPCODES} operations")
            self._step(opcode.name, argument)
        raise PickleError("the pickle is cut short; download or copy the file again")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        match name:
            case "PROTO" | "FRAME":
                pass
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                if not 0 <= argument < _MAX_MEMO_INDEX:
                    raise PickleError("the pickle has an impossible memo index")
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
                stack.append(self._persistent(self._pop()))
            case _ if name in _PUSH_ARGUMENT:
                stack.append(argument)
            case _ if name in _PUSH_NEW:
                stack.append(_PUSH_NEW[name]())
            case _:
                raise PickleError(f"the pickle uses {name}, which torch.save never writes")

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise PickleError("the pickle's stack is damaged")
        return value

    def _pop_to_mark(self) -> list:
        items = []
        while (value := self.stack.pop()) is not _Mark:
            items.append(value)
        return items[::-1]

    def _persistent(self, identifier: Any) -> "Storage | _Global":
        """A persistent id: a storage, or (legacy format only) a class with its source code."""
        kind, *fields = checked(identifier, tuple)
        if kind == "module":
            return checked(fields[0], _Global)
        # ("storage", type, key, device, number of elements[, view])
        storage_type, key, _, num_elements, *view = fields
        if kind != "storage" or view not in ([], [None]):
            raise PickleError("a persistent id that is not a plain storage")
        name = checked(storage_type, _Global).name
        if name not in STORAGE_DTYPES:
            raise PickleError(f"storages of type {name} are not supported")
        storage = Storage(checked(key, str), STORAGE_DTYPES[name], _natural(num_elements))
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
        raise PickleError(f"the pickle appends to a {type(target).__name__}")


def _set_items(target: Any, items: list) -> None:
    entries = target.entries if isinstance(target, Inert) else checked(target, dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        entries[_key(key)] = value


def _global(module: Any, attribute: Any) -> _Global:
    for part in (module, attribute):
        if len(checked(part, str)) > _MAX_NAME:
            raise PickleError(f"the pickle has a name of {len(part)} characters, which is too long")
    name = f"{module}.{attribute}"
    is_builtin = module in ("builtins", "__builtin__") and attribute in _HARMFUL_BUILTINS
    # A dotted attribute reaches through the imports of its module: posixpath, os.system.
    modules = (module.split(".")[0], *attribute.split(".")[:-1])
    if is_builtin or not _HARMFUL_MODULES.isdisjoint(modules):
        raise PickleError(
            f"the pickle asks for {name}, as malicious files do; nothing was executed, but do not"
            " trust the file"
        )
    return _Global(name)


def checked(value: Any, kind: type) -> Any:
    """Returns `value` if it is a `kind`, and raises otherwise."""
    if not isinstance(value, kind):
        raise PickleError(
            f"the pickle has a {type(value).__name__} where a {kind.__name__} belongs"
        )
    return value


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise PickleError("the pickle declares an impossible size, offset or stride")
    return value


def _naturals(values: Any) -> tuple[int, ...]:
    if len(checked(values, tuple)) > _MAX_DIMENSIONS:
        raise PickleError(f"a tensor has {len(values)} dimensions, which is too many")
    return tuple(_natural(value) for value in values)


def _key(value: Any) -> Any:
    """Returns `value` if no file can make its hash slow, and raises otherwise.

    Tuples are rejected: any number of integer tuples can have the same hash, and hashing nested
    tuples that share parts takes exponential time.  Huge integers are rejected for the first
    reason.
    """
    scalars = (str, bytes, int, float, bool, type(None), _Global, Inert)
    if not isinstance(value, scalars) or (type(value) is int and abs(value) >= _HASH_MODULUS):
        raise PickleError(f"the pickle uses a {type(value).__name__} as a key")
    return value


# ---- What REDUCE and NEWOBJ may build: a fixed table of pure functions of this file. ----


def _apply(function: Any, args: Any) -> Any:
    name = checked(function, _Global).name
    args = checked(args, tuple)
    return _REBUILD[name](*args) if name in _REBUILD else Inert(name, args)


def _rebuild_tensor(storage, offset, size, strides, *rest) -> TensorRef:
    """Arguments of torch._utils._rebuild_tensor (four) and _rebuild_tensor_v2 (up to seven)."""
    _, _, metadata = (*rest, None, None, None)[:3]
    return _tensor(storage, checked(storage, Storage).dtype, offset, size, strides, metadata)


def _rebuild_untyped_tensor(
    storage, offset, size, strides, _, __, dtype, metadata=None
) -> TensorRef:
    """Arguments of torch._utils._rebuild_tensor_v3; the storage holds bytes."""
    name = checked(dtype, _Global).name
    if name not in _YOUNG_DTYPES:
        raise PickleError(f"tensors of type {name} are not supported")
    return _tensor(storage, _YOUNG_DTYPES[name], offset, size, strides, metadata)


def _tensor(storage, dtype, offset, size, strides, metadata) -> TensorRef:
    size, strides = _naturals(size), _naturals(strides)
    if len(size) != len(strides):
        raise PickleError(f"a tensor has size {size} but strides {strides}")
    if metadata:  # {"conj": True} and {"neg": True}: the storage does not hold the tensor's values
        raise PickleError(
            "a tensor is lazily conjugated or negated; call resolve_conj() or resolve_neg() before"
            " saving it"
        )
    return TensorRef(checked(storage, Storage), dtype, _natural(offset), size, strides)


def _rebuild_parameter(data, *_) -> TensorRef:
    return checked(data, TensorRef)


def _rebuild_from_type(function, _, args, *__) -> TensorRef:
    """A tensor with Python attributes, which are dropped."""
    if checked(function, _Global).name == "torch._tensor._rebuild_from_type_v2":
        raise PickleError("a tensor is rebuilt from itself")
    return checked(_apply(function, args), TensorRef)


def _rebuild_size(size) -> tuple[int, ...]:
    return _naturals(size)


def _rebuild_dict(pairs=()) -> dict:
    result = {}
    for pair in _consumed(pairs):
        key, value = checked(pair, list)
        result[_key(key)] = value
    return result


def _rebuild_set(items=()) -> set:
    return {_key(item) for item in _consumed(items)}


def _consumed(items: list | tuple) -> list:
    """Moves the items out of a list, because copies of one list could fill the memory."""
    if not items:
        return []
    moved = list(checked(items, list))
    items.clear()
    return moved


_REBUILD = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_untyped_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _rebuild_size,
    "collections.OrderedDict": _rebuild_dict,
    "builtins.set": _rebuild_set,
    "__builtin__.set": _rebuild_set,
}
