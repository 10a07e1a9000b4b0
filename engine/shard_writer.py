"""Writes safetensors shards in place and out of order: header first, then tensors at offsets that the plan fixed.

Whole pages of a file go past the page cache; the pages at a stretch's ends, which it may share with its neighbours, through it:

    file     |  page  |  page  |  page  |  page  |
    stretch        ├─────────────────────────┤
                   │cached│    direct    │cached

Where the data's place in memory is not that of its place in a page, it takes the way over an aligned buffer.
"""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..planner.graph import PAGE
from ..planner.shards import Shard
from .system import anonymous_memory, open_direct, reserve_disk, sync_data, write_at

PARTIAL = ".partial"
"""Ending of a shard that is not complete: no loader takes it for a model."""

BOUNCE = 1 << 20
"""Bytes of an aligned buffer: long enough for the disk's full speed."""


@dataclass(slots=True)
class _File:
    """One shard's handles: through the page cache, and past it where that can be done."""

    cached: int
    direct: int | None


class ShardWriter:
    """The shards of one run, open until `close`. Existing partial shards with the same header are continued."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self._files: list[_File] = []
        self._bounces: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self.fresh: list[bool] = []
        try:
            for shard in shards:
                path = folder / (shard.name + PARTIAL)
                handle, fresh = _open(path, shard)
                self._files.append(_File(handle, open_direct(path)))
                self.fresh.append(fresh)
        except BaseException:
            self.close()
            raise

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of a shard; may be called from any thread, in any order."""
        file = self._files[shard]
        first = min(-offset % PAGE, len(data))
        last = first + (len(data) - first) // PAGE * PAGE
        if file.direct is not None and last > first:
            try:
                self._write_pages(file.direct, offset + first, data[first:last])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                file.direct = None  # the file system has promised what it cannot do
        if file.direct is None or last <= first:
            write_at(file.cached, offset, data)
            return
        write_at(file.cached, offset, data[:first])
        write_at(file.cached, offset + last, data[last:])

    def _write_pages(self, handle: int, offset: int, pages: memoryview) -> None:
        if _address(pages) % PAGE == 0:
            write_at(handle, offset, pages)
            return
        with self._bounce() as bounce:
            for low in range(0, len(pages), BOUNCE):
                piece = pages[low : low + BOUNCE]
                bounce[: len(piece)] = piece
                write_at(handle, offset + low, bounce[: len(piece)])

    @contextmanager
    def _bounce(self) -> Iterator[memoryview]:
        """An aligned buffer: as many are made as threads need one at once."""
        try:
            bounce = self._bounces.get_nowait()
        except queue.Empty:
            bounce = memoryview(anonymous_memory(BOUNCE))
        yield bounce
        self._bounces.put(bounce)

    def sync(self, shards: set[int]) -> None:
        """Return when everything written to these shards is on the disk."""
        for shard in sorted(shards):
            sync_data(self._files[shard].cached)

    def close(self) -> None:
        """Close all files; what was synced stays."""
        while self._files:
            file = self._files.pop()
            os.close(file.cached)
            if file.direct is not None:
                os.close(file.direct)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data)


def _open(path: Path, shard: Shard) -> tuple[int, bool]:
    """A shard's file with its header in place, and whether it holds nothing else yet."""
    flags = os.O_RDWR | os.O_CREAT
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
