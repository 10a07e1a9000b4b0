"""One process at a time writes to a folder: it holds a lock on a file in it, which ends with the process.

File systems without such locks (NFS and Lustre, as often mounted) get a file that says who holds it. It does not end with
the process: one that is left is removed where its process is known to be gone, else the message names it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..planner.json_text import loads
from .directory import Directory

LOCK, OWNER = "lock", "lock.owner"
"""The file that is locked, and the one that says who holds it where files cannot be locked."""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EIO}
"""What file systems without locks answer."""

_MOST = 1 << 16
"""Bytes that are read of an owner's file."""


@contextmanager
def exclusive(folder: Directory, busy: str) -> Iterator[bool]:
    """Hold the lock of a folder; False, and no lock, where the folder has been removed by now.

    Raises OutputError: `busy` where another process holds it, or what is wrong with the lock's file.
    """
    handle = _open(folder, os.O_RDWR | os.O_CREAT)
    if handle is None:
        yield False
        return
    try:
        owned = _take(folder, handle, busy)
        try:
            yield _still_there(folder, handle)
        finally:
            if owned:
                with suppress(OSError, OutputError):
                    folder.unlink(OWNER)
    finally:
        os.close(handle)


def is_locked(folder: Directory) -> bool:
    """Whether a process holds the lock of a folder."""
    try:
        handle = _open(folder, os.O_RDONLY)
        if handle is not None and not _can_be_had(handle):
            return True
    except (OSError, OutputError):
        return False
    owner = _owner(folder)
    return owner is not None and not _gone(owner)


def _can_be_had(handle: int) -> bool:
    """Whether nobody holds the lock on a file, which is closed; so it seems where files cannot be locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(handle)
    return True


def _open(folder: Directory, flags: int) -> int | None:
    """The lock's file; None where there is none, or no folder any more."""
    path = folder.path / LOCK
    try:
        kind = folder.kind(LOCK)
        if kind in (None, "file", "shared file"):  # nothing is ever written to it
            return os.open(LOCK, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=folder.handle)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise OutputError(f"{path}: {error.strerror}: delete it, or let its owner give the command") from None
    raise OutputError(f"{path} is a {kind}: delete it and give the command again")


def _take(folder: Directory, handle: int, busy: str) -> bool:
    """Take the lock; whether that made an owner's file. One that looks (`is_locked`) holds it for a moment only."""
    for _ in range(3):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _own(folder, busy)
            return True
        else:
            _check_owner(folder, busy)  # on a machine from which the same folder cannot be locked
            return False
    raise OutputError(busy)


def _still_there(folder: Directory, handle: int) -> bool:
    """Whether the file that is locked is the one that the folder has: else another has just ended and removed it."""
    with suppress(OSError):
        there = os.stat(LOCK, dir_fd=folder.handle, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(handle))
    return False


def _own(folder: Directory, busy: str) -> None:
    """Make the file that says that this process holds the folder."""
    text = json.dumps(_this_process()).encode()
    for _ in range(3):
        _check_owner(folder, busy)
        try:
            made = os.open(OWNER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder.handle)
        except FileExistsError:
            continue
        try:
            os.write(made, text)
            os.fsync(made)
        finally:
            os.close(made)
        return
    raise OutputError(busy)


def _check_owner(folder: Directory, busy: str) -> None:
    """Raise OutputError where an owner's file counts; remove one whose process is gone."""
    owner = _owner(folder)
    if owner is None:
        return
    if not _gone(owner):
        who = f"process {owner['pid']} on {owner['host']}" if owner else "not by whom"
        raise OutputError(f"{busy}, says {folder.path / OWNER} ({who}): if that is no longer true, delete it")
    # Moved away first: of two that find it, one gets it, and neither removes what the other has made since.
    aside = f"{OWNER}.{os.getpid()}"
    with suppress(FileNotFoundError):
        folder.replace(OWNER, folder, aside)
        if _read(folder, aside) != owner:
            with suppress(FileExistsError):
                os.link(aside, OWNER, src_dir_fd=folder.handle, dst_dir_fd=folder.handle)
        folder.unlink(aside)


def _owner(folder: Directory) -> dict[str, Any] | None:
    """Who holds the folder by a file; empty where the file does not say."""
    return _read(folder, OWNER) if folder.kind(OWNER) is not None else None


def _read(folder: Directory, name: str) -> dict[str, Any]:
    with suppress(ValueError, OSError):
        value = loads(folder.read(name, _MOST) or b"")
        if isinstance(value, dict) and {key: type(item) for key, item in value.items()} == _FIELDS and value["pid"] > 0:
            return value
    return {}


_FIELDS = {"host": str, "machine": str, "pid": int, "started": str}


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """What tells machines, their starts and their containers apart where two have one host name; empty where nothing does."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _started(pid: int) -> str:
    """When a process began, so that a later one of the same number is not taken for it; empty where the system does not tell."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def _gone(owner: dict[str, Any]) -> bool:
    """Whether an owner is certainly no more."""
    if not owner or (owner["host"], owner["machine"]) != (socket.gethostname(), _machine()):
        return False
    try:
        os.kill(owner["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return bool(owner["started"]) and owner["started"] != _started(owner["pid"])
