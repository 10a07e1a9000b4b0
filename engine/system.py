"""Everything that Linux and macOS do differently: what only one of them offers has a fallback beside it.

Windows is not supported: it has neither folders that can be synced nor names that can be replaced while they are open.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import shutil
import sys
from pathlib import Path

from ..errors import DiskError, OutputError, WeftError
from ..planner.sizes import format_size

FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a full disk answers, or one on which this user may have no more."""

READ_CHUNK = 8 << 20
"""Bytes of one read call: long enough for the disk, short enough to be interrupted."""


def read_into(file: int, offset: int, target: memoryview, *, drop: bool) -> None:
    """Fill `target` from `offset`; the pages that this brought into the page cache leave it again if `drop`.

    Raises EOFError where the file ends early, OSError as the system does.
    """
    done = 0
    while done < len(target):
        piece = target[done : done + READ_CHUNK]
        count, cached = _read(file, piece, offset + done)
        if count == 0:
            raise EOFError(f"the file ends at byte {offset + done}")
        if drop and not cached:
            _drop_pages(file, offset + done, count)
        done += count


def _read(file: int, target: memoryview, offset: int) -> tuple[int, bool]:
    """Bytes read, and whether all of them were in the page cache already."""
    if hasattr(os, "RWF_NOWAIT"):
        try:
            count = os.preadv(file, [target], offset, os.RWF_NOWAIT)
            if count > 0:
                return count, True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    return os.preadv(file, [target], offset), False


def _drop_pages(file: int, offset: int, nbytes: int) -> None:
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_DONTNEED)


def write_at(file: int, offset: int, data: memoryview) -> None:
    """Write all of `data` at `offset`, whatever a single call accepts."""
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done : done + READ_CHUNK], offset + done)


def pread(file: int, offset: int, nbytes: int) -> bytes:
    """Bytes of a file from `offset` on; fewer than `nbytes` only where it ends."""
    found = bytearray()
    while len(found) < nbytes:
        piece = os.pread(file, nbytes - len(found), offset + len(found))
        if not piece:
            break
        found += piece
    return bytes(found)


def reserve_disk(file: int, size: int) -> None:
    """Make the file `size` bytes long with blocks of its own, so that a full disk is known now and not hours later."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(file, size)


def sync_data(file: int) -> None:
    """Return when the file's bytes, and how to find them, are on the disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(file)
    else:
        sync_all(file)


def sync_all(file: int) -> None:
    """Return when a file's bytes and times, or a folder's names, are on the disk and not only in the disk's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS, whose fsync leaves them in that cache; only some file systems have it
        with contextlib.suppress(OSError):
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)
            return
    os.fsync(file)


def sync_folder(folder: Path) -> None:
    """Return when the folder's names are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        sync_all(handle)
    finally:
        os.close(handle)


def anonymous_memory(nbytes: int) -> mmap.mmap:
    """Zeroed memory that becomes resident as it is touched, in huge pages where the system has them."""
    size = max(nbytes, mmap.PAGESIZE)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has no huge pages
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def release_memory(memory: mmap.mmap) -> None:
    """Give back what `memory` holds, at once and whoever has views of it: what they see from now on is zeros.

    It cannot be unmapped before the last view is gone, and a view may be in the traceback of an error that somebody keeps.
    """
    if hasattr(memory, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            memory.madvise(mmap.MADV_DONTNEED)


def resident_memory() -> int:
    """Bytes of this process that are in memory now (its peak, where the system tells only that)."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    return _peak_of_all_time()


def reset_peak_memory() -> None:
    """Let `peak_memory` count from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most bytes of this process that were in memory at once."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return _peak_of_all_time()


def _peak_of_all_time() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def free_disk(folder: Path) -> int:
    """Free bytes on the disk that holds `folder`, or would hold it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_disk(folder: Path, needed: int) -> None:
    """Raise DiskError, saying how much is missing, where `needed` bytes more do not fit."""
    free = free_disk(folder)
    if needed > free:
        missing = needed - free
        raise DiskError(
            f"{folder}: the disk has {format_size(free)} free, {format_size(needed)} are needed: "
            f"{format_size(missing)} are missing",
            missing,
        )


def write_error(error: OSError, name: str) -> WeftError:
    """What to tell of an error while file or folder `name` was written."""
    if error.errno in FULL:
        return DiskError(f"{name}: the disk is full; free some space and give the same command again to continue", 0)
    return OutputError(f"{name}: {error.strerror or error}; give the same command again to continue")
