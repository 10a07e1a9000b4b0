"""The header of a PyTorch .bin file: a zip archive whose `data.pkl` describes tensors and whose other members are their bytes.

Nothing from the file runs (`inert_pickle`), and no tensor data is read, so that a header can be read over HTTP.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from typing import BinaryIO, cast

from ..errors import CheckpointError
from .dtypes import ITEM_SIZES
from .headers import FileHeader, TensorEntry, check_name, tensor_bytes
from .inert_pickle import StoredTensor, read_state

MAX_PICKLE = 32 << 20
MAX_DIRECTORY = 16 << 20
"""Bytes of the archive's list of members, about ninety a tensor; each takes some six hundred bytes of memory."""

SHARED = 4
"""Times that a file's bytes may stand for tensors: tied weights count twice."""


class _Bounded:
    """A file that hands out at most so many bytes at once: zipfile reads an archive's list of members whole, however long."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(MAX_DIRECTORY + 1 if size < 0 else min(size, MAX_DIRECTORY + 1))
        if len(data) > MAX_DIRECTORY:
            raise ValueError("a list of members that is too long")
        return data

    def seekable(self) -> bool:
        return True


def pickle_header(file: BinaryIO, label: str) -> FileHeader:
    """Where each tensor of a .bin file stands. Raises CheckpointError for anything but a plain state dict."""
    try:
        size = file.seek(0, io.SEEK_END)
        archive = zipfile.ZipFile(cast(BinaryIO, _Bounded(file)))
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
    if member.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{label} is compressed: save the model again as safetensors")
    try:
        raw = archive.read(member)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{label}: its data.pkl is damaged ({error}): compare the file with the one it is a copy of"
        ) from None
    try:
        state = read_state(raw)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile pickle can make the unpickler raise anything
        reason = "it does what no state dict does" if isinstance(error, KeyError) else str(error)[:200] or "it is cut short"
        raise CheckpointError(f"{label}: refused: it is more than tensors: {reason}") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{label}: not a state dict (a map from names to tensors)")
    prefix = member.filename.removesuffix("data.pkl")
    entries = [
        _entry(archive, file, size, prefix, name, value, label)
        for name, value in state.items()
        if isinstance(value, StoredTensor)
    ]
    entries.sort(key=lambda entry: entry.offset)
    if sum(entry.nbytes for entry in entries) > SHARED * size:
        raise CheckpointError(
            f"{label}: refused: many tensors share the same bytes: in all more than {SHARED} times the file's size"
        )
    return FileHeader(tuple(entries), hashlib.sha256(raw).hexdigest()[:32])


def _entry(
    archive: zipfile.ZipFile, file: BinaryIO, size: int, prefix: str, name: str, tensor: StoredTensor, label: str
) -> TensorEntry:
    check_name(name, label)
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


def _contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for side, stride in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if side != 1 and stride != expected:
            return False
        expected *= side
    return True
