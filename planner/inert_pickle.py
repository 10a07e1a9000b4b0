"""Reads the pickle of a state dict without running anything of it.

An unpickler that knows the few opcodes and names of a state dict, each name an inert stand-in, and refuses every other before it
could be called. torch's own weights-only loader is as strict but makes tensors of their data, and cannot say where it stands.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .headers import MAX_SIDES

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
MAX_READS = 1_000_000
"""Opcodes and their operands: about thirty a tensor, each of them at most a small object of some sixty bytes."""

MAX_ARGUMENTS = 8

_OPCODES = frozenset(
    getattr(pickle, name)[0]
    for name in (
        "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP",
        "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
        "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
        "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
        "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
        "GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD",
    )
)  # fmt: skip
"""What makes plain values, and calls of the names below. Not here: sets, whose items are hashed, and what makes objects."""


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A member of the archive: the `key` in its name, and what its bytes are."""

    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as the pickle describes it; `offset` and `stride` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not _naturals((offset,)) or not _naturals(shape) or not _naturals(stride) or len(shape) != len(stride):
        raise pickle.UnpicklingError("a tensor whose shape and strides disagree")
    return StoredTensor(storage, offset, shape, stride)


def _naturals(value: Any) -> bool:
    """Whether a value is a short tuple of natural numbers of a sensible size."""
    short = isinstance(value, tuple) and len(value) <= MAX_SIDES
    return short and all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


def _ordered() -> dict[Any, Any]:
    return {}


def _key(value: Any) -> Any:
    """A key of a map, if it is plain: hashing nested tuples can take for ever."""
    if isinstance(value, str | int | float | None):
        return value
    raise pickle.UnpicklingError("a map whose keys are not plain")


class _Opcodes(io.BytesIO):
    """A pickle's bytes, of which only so many pieces are handed out."""

    left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("more values than the header of any model has")
        return super().read(size)


class _Unpickler(pickle._Unpickler):
    """The one in Python, whose memo is a dictionary: the one in C takes gigabytes where five bytes name a large index."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if function not in (_rebuild_tensor, _rebuild_parameter, _ordered):
            raise pickle.UnpicklingError("a call of something that is not a function")
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise pickle.UnpicklingError("a call with strange arguments")
        self.stack[-1] = function(*arguments)

    def load_frame(self) -> None:
        """Frames only say how much to read ahead; read in them, opcodes would not be counted."""
        self.read(8)

    def load_build(self) -> None:
        """A state dict carries notes about its modules' versions, which nobody needs; nothing else has a state."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("a state for something that has none")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set((key, value))

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._set(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._set(items)

    def _set(self, items: Any) -> None:
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("an entry of something that is not a map")
        for i in range(0, len(items), 2):
            self.stack[-1][_key(items[i])] = items[i + 1]

    def load_append(self) -> None:
        value = self.stack.pop()
        self._list().append(value)

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise pickle.UnpicklingError("an item of something that is not a list")
        return self.stack[-1]

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return _ordered
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return _rebuild_parameter
            case "torch", storage if storage in _STORAGES:
                return _StorageType(_STORAGES[storage])
        raise pickle.UnpicklingError(f"it wants to load '{module}.{name}'")

    def persistent_load(self, pid: Any) -> Storage:
        match pid:
            case ("storage", _StorageType(dtype=dtype), str(key), *_):
                return Storage(dtype, key)
        raise pickle.UnpicklingError("an unknown kind of storage")

    _own: ClassVar[dict[int, Callable[[Any], None]]] = {
        pickle.FRAME[0]: load_frame,
        pickle.REDUCE[0]: load_reduce,
        pickle.BUILD[0]: load_build,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
    }
    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if code in _OPCODES} | _own


def read_state(raw: bytes) -> Any:
    """What a pickle describes, its tensors as StoredTensor. Raises anything where it is no plain state dict."""
    return _Unpickler(_Opcodes(raw)).load()
