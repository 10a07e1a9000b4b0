"""Writes safetensors shards in place and out of order: header first, then tensors at offsets that the plan fixed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..planner.shards import Shard
from .system import reserve_disk, sync_data, write_at

PARTIAL = ".partial"
"""Ending of a shard that is not complete: no loader takes it for a model."""


class ShardWriter:
    """The shards of one run, open until `close`. Existing partial shards with the same header are continued."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._files: list[int] = []
        self.fresh: list[bool] = []
        self._sizes = [shard.size for shard in shards]
        try:
            for shard in shards:
                handle, fresh = _open(folder / (shard.name + PARTIAL), shard)
                self._files.append(handle)
                self.fresh.append(fresh)
        except BaseException:
            self.close()
            raise

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of a shard; may be called from any thread, in any order."""
        write_at(self._files[shard], offset, data)

    def sync(self, shards: set[int]) -> None:
        """Return when everything written to these shards is on the disk."""
        for shard in sorted(shards):
            sync_data(self._files[shard])

    def close(self) -> None:
        """Close all files; what was synced stays."""
        while self._files:
            os.close(self._files.pop())


def _open(path: Path, shard: Shard) -> tuple[int, bool]:
    """A shard's file with its header in place, and whether it holds nothing else yet."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o644)
    try:
        if os.fstat(handle).st_size == shard.size and _starts_with(handle, shard.header):
            return handle, False
        os.ftruncate(handle, 0)
        reserve_disk(handle, shard.size)
        write_at(handle, 0, memoryview(shard.header))
        sync_data(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle, True


def _starts_with(handle: int, header: bytes) -> bool:
    os.lseek(handle, 0, os.SEEK_SET)
    found = b""
    while len(found) < len(header) and (piece := os.read(handle, len(header) - len(found))):
        found += piece
    return found == header
