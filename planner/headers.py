"""What stands in a checkpoint file, and where: names, dtypes, shapes and byte ranges, never data."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .dtypes import ITEM_SIZES
from .json_text import loads

MAX_HEADER = 100_000_000
"""The safetensors library's own limit on a header's bytes."""

MAX_VALUES = 3_000_000
"""Values in a header, about ten a tensor: what they take in memory is bounded, however small they are written."""

MAX_FILE = 1 << 42
"""Larger than any file of weights; a file that is all hole can claim more, and every tile of it is planned."""

MAX_NAME = 1000

MAX_SIDES = 64
"""Far more than torch has; a bound on the numbers that a hostile shape multiplies to."""

ReadRange = Callable[[int, int], bytes]
"""Bytes of a file: from offset, this many (fewer at the file's end)."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file; `offset` counts from the file's first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FileHeader:
    """All tensors of a file in the order of their bytes, and a hash of what described them."""

    tensors: tuple[TensorEntry, ...]
    digest: str


def tensor_bytes(dtype: str, shape: tuple[int, ...], where: str) -> int:
    """Bytes of a tensor; refuses dtypes that cannot be merged or copied, by name."""
    if dtype not in ITEM_SIZES:
        kind = "quantised codes whose scales are elsewhere" if dtype.startswith(("F8", "F4", "F6")) else "a type unknown to weft"
        raise CheckpointError(f"{where} has dtype {dtype}, {kind}: use the model's bfloat16 or float16 release")
    return ITEM_SIZES[dtype] * math.prod(shape)


def safetensors_header(read: ReadRange, size: int, label: str, *, any_dtype: bool = False) -> FileHeader:
    """Parse and check a safetensors header of a file of `size` bytes; `label` names the file in messages.

    `any_dtype` takes types that cannot be merged, too, and believes what the header says of their sizes. Raises CheckpointError
    where the header lies about the file or the file is cut short.
    """
    if size > MAX_FILE:
        raise CheckpointError(f"{label}: {size} bytes are more than any file of weights has")
    if size < 8:
        raise CheckpointError(f"{label}: {size} bytes are not a safetensors file (a broken download? fetch it again)")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(f"{label}: not a safetensors file (its header would have {length} bytes)")
    if 8 + length > size:
        raise CheckpointError(f"{label}: cut short inside its header: {size} of at least {8 + length} bytes; fetch it again")
    raw = read(8, length)
    try:
        header = loads(raw, values=MAX_VALUES, pairs=lambda pairs: _unique(pairs, label), file=False)
    except ValueError as error:
        raise CheckpointError(f"{label}: not a safetensors file (its header is {error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{label}: not a safetensors file (its header is not a map)")
    start = 8 + length
    tensors = [_entry(name, spec, start, label, any_dtype) for name, spec in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda entry: (entry.offset, entry.nbytes))
    end = start
    for entry in tensors:
        if entry.offset < end:
            raise CheckpointError(f"{label}: the bytes of tensor '{entry.name}' overlap those of another")
        if entry.offset > end:
            raise CheckpointError(
                f"{label}: {entry.offset - end} bytes before those of tensor '{entry.name}' belong to no tensor"
            )
        end += entry.nbytes
    if end > size:
        raise CheckpointError(f"{label}: cut short: {size} bytes, its header promises {end} (a broken download? fetch it again)")
    if end < size:
        raise CheckpointError(f"{label}: {size - end} bytes more than its header describes: save the model again as safetensors")
    return FileHeader(tuple(tensors), hashlib.sha256(raw).hexdigest()[:32])


def _unique(pairs: list[tuple[str, Any]], label: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise CheckpointError(f"{label}: a name appears twice in its header")
    return found


def _entry(name: str, spec: Any, start: int, label: str, any_dtype: bool) -> TensorEntry:
    check_name(name, label)
    where = f"{label}: tensor '{name}'"
    if not isinstance(spec, Mapping):
        raise CheckpointError(f"{where} is not described by a map")
    dtype, shape, offsets = spec.get("dtype"), _naturals(spec.get("shape")), _naturals(spec.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or len(shape) > MAX_SIDES or offsets is None or len(offsets) != 2:
        raise CheckpointError(f"{where} has no valid dtype, shape and data_offsets")
    believed = any_dtype and dtype not in ITEM_SIZES and offsets[1] >= offsets[0]
    nbytes = offsets[1] - offsets[0] if believed else tensor_bytes(dtype, tuple(shape), where)
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(f"{where} says {offsets[1] - offsets[0]} bytes, but {dtype} {list(shape)} has {nbytes}")
    return TensorEntry(name, dtype, tuple(shape), start + offsets[0], nbytes)


def check_name(name: str, label: str) -> None:
    """Raise CheckpointError for a name that is no tensor's: it would go on into files, journals and terminals."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        short = name if len(name) <= 60 else f"{name[:57]}..."
        raise CheckpointError(f"{label}: '{short}' is not a valid tensor name: it must be 1 to {MAX_NAME} printable characters")


def _naturals(value: Any) -> list[int] | None:
    """The value, if it is a list of natural numbers of a sensible size."""
    good = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 62 for n in value)
    return value if good else None
