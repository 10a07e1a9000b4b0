"""The header of a PyTorch .bin file: a zip archive whose `data.pkl` describes tensors and whose other members are their bytes.

The pickle is read with an unpickler that knows nine names, each an inert stand-in, and refuses every other before it could be
called: nothing from the file runs, and no tensor data is read. torch's own weights-only loader is as strict but cannot say where
in the file a tensor's bytes are, nor read a header over HTTP.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import CheckpointError
from .dtypes import ITEM_SIZES
from .headers import MAX_SIDES, FileHeader, TensorEntry, tensor_bytes

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
MAX_PICKLE = 100_000_000


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    tensor = _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, stride)))
    if len(tensor.shape) != len(tensor.stride) or len(tensor.shape) > MAX_SIDES or min(tensor.shape, default=0) < 0:
        raise pickle.UnpicklingError("a tensor whose shape and strides disagree")
    return tensor


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


class _HeaderUnpickler(pickle._Unpickler):
    """The one in Python, whose memo is a dictionary: the one in C takes gigabytes where five bytes name a large index."""

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _rebuild_tensor
            case "torch._utils", "_rebuild_parameter":
                return _rebuild_parameter
            case "torch", storage if storage in _STORAGES:
                return _StorageType(_STORAGES[storage])
        raise pickle.UnpicklingError(f"it wants to load '{module}.{name}'")

    def persistent_load(self, pid: Any) -> _Storage:
        if isinstance(pid, tuple) and len(pid) >= 3 and pid[0] == "storage" and isinstance(pid[1], _StorageType):
            return _Storage(pid[1].dtype, str(pid[2]))
        raise pickle.UnpicklingError("an unknown kind of storage")


def pickle_header(file: BinaryIO, label: str) -> FileHeader:
    """Where each tensor of a .bin file stands. Raises CheckpointError for anything but a plain state dict."""
    try:
        size = file.seek(0, io.SEEK_END)
        archive = zipfile.ZipFile(file)
        member = next((i for i in archive.infolist() if i.filename.endswith("/data.pkl")), None)
    except CheckpointError:
        raise
    except Exception:  # zipfile raises anything for a damaged archive: struct.error, NotImplementedError, ...
        raise CheckpointError(
            f"{label}: not a PyTorch zip checkpoint: cut short, or of a torch before 1.6: "
            "fetch it again, or save it as safetensors"
        ) from None
    if member is None or member.file_size > MAX_PICKLE:
        raise CheckpointError(f"{label}: not a PyTorch checkpoint (no data.pkl of a sensible size)")
    try:
        raw = archive.read(member)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{label}: its data.pkl is damaged ({error}); fetch it again") from None
    try:
        state = _HeaderUnpickler(io.BytesIO(raw)).load()
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        raise CheckpointError(f"{label}: refused: it is more than tensors: {error}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{label}: not a state dict (a map from names to tensors)")
    prefix = member.filename.removesuffix("data.pkl")
    entries = [
        _entry(archive, file, size, prefix, name, value, label) for name, value in state.items() if isinstance(value, _Tensor)
    ]
    entries.sort(key=lambda entry: entry.offset)
    return FileHeader(tuple(entries), hashlib.sha256(raw).hexdigest()[:32])


def _entry(
    archive: zipfile.ZipFile, file: BinaryIO, size: int, prefix: str, name: str, tensor: _Tensor, label: str
) -> TensorEntry:
    where = f"{label}: tensor '{name}'"
    nbytes = tensor_bytes(tensor.storage.dtype, tensor.shape, where)
    if not _contiguous(tensor):
        raise CheckpointError(f"{where} is stored transposed or strided: save the model again as safetensors")
    try:
        member = archive.getinfo(f"{prefix}data/{tensor.storage.key}")
    except KeyError:
        raise CheckpointError(f"{where}: its data is missing from the archive") from None
    if member.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{where} is compressed: save the model again as safetensors")
    begin = tensor.offset * ITEM_SIZES[tensor.storage.dtype]
    if begin < 0 or begin + nbytes > member.file_size:
        raise CheckpointError(f"{where} reaches past its stored data")
    offset = _data_start(file, member, where) + begin
    if offset + nbytes > size:
        raise CheckpointError(f"{where} reaches past the file's end: cut short; fetch it again")
    return TensorEntry(name, tensor.storage.dtype, tensor.shape, offset, nbytes)


def _data_start(file: BinaryIO, member: zipfile.ZipInfo, where: str) -> int:
    """Offset of a member's bytes: its local header has a name and an extra field of its own lengths."""
    file.seek(member.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise CheckpointError(f"{where}: its place in the archive is damaged")
    name, extra = struct.unpack("<HH", local[26:30])
    return member.header_offset + 30 + int(name) + int(extra)


def _contiguous(tensor: _Tensor) -> bool:
    expected = 1
    for side, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
