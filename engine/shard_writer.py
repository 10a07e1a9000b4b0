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

import numpy as np

from ..planner.graph import PAGE
from ..planner.shards import Shard
from .directory import Directory
from .handles import Handles
from .system import anonymous_memory, pread, reserve_disk, sync_data, write_at

PARTIAL = ".partial"
"""Ending of a shard that is not complete: no loader takes it for a model."""

BOUNCE = 1 << 20
"""Bytes of an aligned buffer: long enough for the disk's full speed."""


class ShardWriter:
    """The shards of one run, in an open folder, until `close`. Existing partial shards with the same header are continued.

    Few of them are open at once (`limit` descriptors, or a share of what the system grants).
    """

    def __init__(self, folder: Directory, shards: Sequence[Shard], limit: int | None = None) -> None:
        self._folder, self._shards = folder, shards
        self._files: Handles[tuple[int, bool]] = Handles(self._open, leave=sync_data, limit=limit)
        self._bounces: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._made: list[os.stat_result] = []
        self._direct = set(range(len(shards))) if hasattr(os, "O_DIRECT") else set()
        self.fresh: list[bool] = []
        for shard in shards:
            handle, fresh = _prepare(folder, shard)
            self._made.append(os.fstat(handle))
            self.fresh.append(fresh)
            os.close(handle)

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Write `data` at `offset` of a shard; may be called from any thread, in any order."""
        first = min(-offset % PAGE, len(data))
        last = first + (len(data) - first) // PAGE * PAGE
        through = data
        if shard in self._direct and last > first:
            try:
                with self._files.use((shard, True)) as handle:
                    self._write_pages(handle, offset + first, data[first:last])
                through = data[:first]
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct.discard(shard)  # the file system has no such way, or has promised what it cannot do
        with self._files.use((shard, False)) as handle:
            write_at(handle, offset, through)
            if through is not data:
                write_at(handle, offset + last, data[last:])

    def _open(self, key: tuple[int, bool]) -> int:
        """A shard's file, which must be the one that was prepared: through the page cache, or past it.

        Merged tensors are written once and not read again: copies of them in the page cache would cost half of the time and push
        out the inputs, which are read from there.
        """
        shard, direct = key
        try:
            flags = os.O_WRONLY | os.O_DIRECT if direct else os.O_RDWR
            handle = self._folder.own(self._shards[shard].name + PARTIAL, flags)
        except OSError as error:
            raise OSError(errno.EINVAL if direct else error.errno, error.strerror) from None
        if handle is None or not os.path.samestat(os.fstat(handle), self._made[shard]):
            if handle is not None:
                os.close(handle)
            raise OSError(errno.ESTALE, "removed or replaced while weft wrote to it")
        return handle

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
            with self._files.use((shard, False)) as handle:
                sync_data(handle)

    def close(self) -> None:
        """Close all files; what was synced stays."""
        self._files.close()


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, dtype=np.uint8).ctypes.data)


def holds(handle: int, shard: Shard) -> bool:
    """Whether a file has the length and the header of a shard."""
    return os.fstat(handle).st_size == shard.size and pread(handle, 0, len(shard.header)) == shard.header


def _prepare(folder: Directory, shard: Shard) -> tuple[int, bool]:
    """A shard's file with its header in place, and whether it holds nothing else yet."""
    name = shard.name + PARTIAL
    handle = folder.own(name, os.O_RDWR)
    if handle is not None:
        if holds(handle, shard):
            return handle, False
        os.close(handle)
    handle = folder.create(name)
    try:
        reserve_disk(handle, shard.size)
        write_at(handle, 0, memoryview(shard.header))
        sync_data(handle)
    except BaseException:
        os.close(handle)
        raise
    return handle, True
