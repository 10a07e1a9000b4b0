"""One stretch of memory for all buffers of a run, in which the schedule decided every place before tasks run."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..ops.backends.formats import RAW
from ..planner.dtypes import ITEM_SIZES
from .device import pin, unpin
from .system import anonymous_memory, release_memory

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a safetensors dtype."""
    import torch

    found: torch.dtype = getattr(torch, _TORCH_NAMES[dtype])
    return found


class Pool:
    """Memory of `nbytes`, seen as bytes by readers and writers and as tensors by workers. Pinned for copies to a GPU if asked.

    A pool that only moves bytes needs no torch.
    """

    def __init__(self, nbytes: int, *, pinned: bool = False) -> None:
        self._memory = anonymous_memory(nbytes)
        self._view = memoryview(self._memory)
        self._pinned = False
        if pinned:
            pin(self._bytes)
            self._pinned = True

    def bytes(self, offset: int, nbytes: int) -> memoryview:
        """A buffer's bytes."""
        return self._view[offset : offset + nbytes]

    def tensor(self, offset: int, dtype: str, count: int) -> torch.Tensor:
        """A buffer as a flat tensor of `count` elements of a safetensors dtype."""
        kind = torch_dtype(dtype)
        return self._bytes[offset : offset + count * kind.itemsize].view(kind)

    def array(self, offset: int, dtype: str, count: int) -> NDArray[Any]:
        """A buffer as a flat array of `count` elements' raw bits."""
        kind = np.dtype(RAW[ITEM_SIZES[dtype]])
        return np.frombuffer(self._memory, kind, count, offset) if count else np.empty(0, kind)

    def close(self) -> None:
        """Give the memory back; nothing uses it any more. May be called again."""
        if self._pinned:
            self._pinned = False
            unpin(self._bytes)
        release_memory(self._memory)

    @cached_property
    def _bytes(self) -> torch.Tensor:
        import torch

        return torch.frombuffer(self._memory, dtype=torch.uint8)
