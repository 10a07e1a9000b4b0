"""One stretch of memory for all buffers of a run, in which the schedule decided every place before tasks run."""

from __future__ import annotations

import torch

from .system import anonymous_memory

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class Pool:
    """Memory of `nbytes`, seen as bytes by readers and writers and as tensors by workers. Pinned for copies to a GPU if asked."""

    def __init__(self, nbytes: int, *, pinned: bool = False) -> None:
        self._memory: object
        if pinned:
            self._bytes = torch.empty(max(nbytes, 1), dtype=torch.uint8, pin_memory=True)
            self._view = memoryview(self._bytes.numpy().data)
        else:
            memory = anonymous_memory(nbytes)
            self._view = memoryview(memory)
            self._bytes = torch.frombuffer(memory, dtype=torch.uint8)

    def bytes(self, offset: int, nbytes: int) -> memoryview:
        """A buffer's bytes."""
        return self._view[offset : offset + nbytes]

    def tensor(self, offset: int, dtype: str, count: int) -> torch.Tensor:
        """A buffer as a flat tensor of `count` elements of a safetensors dtype."""
        kind = TORCH_DTYPES[dtype]
        return self._bytes[offset : offset + count * kind.itemsize].view(kind)
