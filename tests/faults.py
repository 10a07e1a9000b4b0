"""Stands between weft and the operating system in a process of its own, and lets one call go wrong.

Every call of `os` that touches the watched folder, and every statement of the journal's database, passes `_gate` and has a
number. At the one that the fault names, the process is killed, or loses what was not synced and is killed, or the call fails or
does only a part. What is not synced is known from the calls: bytes between a write and the sync of their file, names between a
change and the sync of their folder.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

REAL = {
    name: getattr(os, name)
    for name in (
        "open", "close", "preadv", "pread", "read", "pwrite", "write", "fdatasync", "fsync", "posix_fallocate", "ftruncate",
        "replace", "unlink", "rmdir", "mkdir", "link",
    )
}  # fmt: skip
WRITING = {"open", "pwrite", "write", "fdatasync", "fsync", "posix_fallocate", "ftruncate", "replace", "mkdir", "sql"}
"""Calls that a full disk can refuse."""
PARTIAL = {"preadv", "pread", "read", "pwrite", "write"}
"""Calls that may do less than they are asked."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at call number `at`: "none", "kill", "power", "error" (with `number`, once, or from then on) or "short"."""

    kind: str
    at: int = 0
    after: bool = False
    number: int = 0
    lasting: bool = False
    seed: int = 0


@dataclass
class _Names:
    """A change of a folder's names that can be taken back until the folder is synced."""

    folder: str
    undo: Callable[[], object]


@dataclass
class Injector:
    """Create, `install`, and do the work; `calls` are the names of the calls that were made."""

    root: Path
    attic: Path
    fault: Fault
    calls: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _paths: dict[int, str] = field(default_factory=dict)
    _bytes: dict[str, list[tuple[int, bytes, int]]] = field(default_factory=dict)
    _names: list[_Names] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def install(self) -> None:
        """From now on all calls pass here. There is no way back: use a process that ends."""
        self.attic.mkdir(exist_ok=True)
        for name in REAL:
            if name != "link":
                setattr(os, name, getattr(self, f"_{name}"))
        connect = sqlite3.connect
        injector = self

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> Any:
                return injector._sql(lambda: super(Connection, self).execute(*arguments))

            def executemany(self, *arguments: Any) -> Any:
                return injector._sql(lambda: super(Connection, self).executemany(*arguments))

            def commit(self) -> None:
                injector._sql(super().commit)

            def __exit__(self, *raised: Any) -> Any:
                try:
                    return injector._sql(lambda: super(Connection, self).__exit__(*raised))
                except sqlite3.Error:
                    self.rollback()
                    raise

        def faulty(*arguments: Any, **named: Any) -> Any:
            return self._sql(lambda: connect(*arguments, factory=Connection, **named))

        sqlite3.connect = faulty

    # The gate.

    def _gate(self, name: str, real: Callable[[], Any], short: Callable[[], Any] | None = None) -> Any:
        with self._lock:
            self.calls.append(name)
            fault, number = self.fault, len(self.calls)
            if fault.kind in ("kill", "power") and number == fault.at:
                if fault.after:
                    real()
                self._die()
            fails = number == fault.at or (fault.lasting and number > fault.at and name in WRITING)
            if fault.kind == "error" and fails and (name in WRITING or fault.number != errno.ENOSPC):
                raise OSError(fault.number, os.strerror(fault.number))
            if fault.kind == "short" and number == fault.at and short is not None:
                return short()
            return real()

    def _sql(self, real: Callable[[], Any]) -> Any:
        try:
            return self._gate("sql", real)
        except sqlite3.Error:
            raise
        except OSError as trouble:
            error = sqlite3.OperationalError(str(trouble))
            error.sqlite_errorcode = sqlite3.SQLITE_FULL if trouble.errno == errno.ENOSPC else sqlite3.SQLITE_IOERR
            raise error from None

    def _die(self) -> NoReturn:
        if self.fault.kind == "power":
            self._lose(random.Random(self.fault.seed))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not killed")

    # What a power cut takes.

    def _lose(self, chance: random.Random) -> None:
        for path, writes in self._bytes.items():
            try:
                handle = REAL["open"](path, os.O_RDWR)
            except OSError:
                continue
            size = os.fstat(handle).st_size
            for offset, old, length in reversed(writes):
                what = chance.choice(("kept", "old", "zero"))
                if what == "kept":
                    continue
                REAL["pwrite"](handle, old + bytes(length - len(old)) if what == "old" else bytes(length), offset)
                if len(old) < length and chance.random() < 0.5:
                    size = min(size, offset + len(old))
            REAL["ftruncate"](handle, size)
            REAL["close"](handle)
        for change in self._names[::-1][: chance.randint(0, len(self._names))]:
            change.undo()

    def _full(self, path: Any, folder: int | None = None) -> str:
        """A name's whole path, also where it is looked up in an open folder."""
        return str(path) if folder is None else f"{self._paths.get(folder, '')}/{path}"

    def _inside(self, path: str) -> bool:
        return f"{path}/".startswith(f"{self.root}/")

    def _changed(self, path: Any, undo: Callable[[], object]) -> None:
        self._names.append(_Names(str(Path(path).parent), undo))

    def _keep(self, path: Any) -> Path | None:
        """Another name for a file that is about to lose its own."""
        if not Path(path).exists():
            return None
        kept = self.attic / str(next(self._numbers))
        REAL["link"](path, kept)
        return kept

    # The calls.

    def _open(self, name: Any, flags: int, *more: Any, dir_fd: int | None = None, **named: Any) -> int:
        path = self._full(name, dir_fd)
        if not self._inside(path):
            return int(REAL["open"](name, flags, *more, dir_fd=dir_fd, **named))

        def real() -> int:
            new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
            if flags & os.O_TRUNC and not new:
                self._note(path, 0, Path(path).stat().st_size)
            handle = int(REAL["open"](name, flags, *more, dir_fd=dir_fd, **named))
            self._paths[handle] = path
            if new:
                self._changed(path, lambda: Path(path).exists() and REAL["unlink"](path))
            return handle

        return int(self._gate("open", real))

    def _close(self, handle: int) -> None:
        with self._lock:
            self._paths.pop(handle, None)
            REAL["close"](handle)

    def _known(self, name: str, handle: int, arguments: tuple[Any, ...], short: Callable[[], Any] | None = None) -> Any:
        def real() -> Any:
            return REAL[name](handle, *arguments)

        return self._gate(name, real, short) if handle in self._paths else real()

    def _preadv(self, handle: int, buffers: list[memoryview], *more: Any) -> Any:
        part = [buffers[0][: max(1, len(buffers[0]) // 3)]]
        return self._known("preadv", handle, (buffers, *more), lambda: REAL["preadv"](handle, part, *more))

    def _pread(self, handle: int, count: int, offset: int) -> Any:
        return self._known("pread", handle, (count, offset), lambda: REAL["pread"](handle, max(1, count // 3), offset))

    def _read(self, handle: int, count: int) -> Any:
        return self._known("read", handle, (count,), lambda: REAL["read"](handle, max(1, count // 3)))

    def _pwrite(self, handle: int, data: Any, offset: int) -> Any:
        if handle in self._paths and len(data):
            with self._lock:
                self._note(self._paths[handle], offset, len(data))
        part = data[: max(1, len(data) // 3)]
        return self._known("pwrite", handle, (data, offset), lambda: REAL["pwrite"](handle, part, offset))

    def _write(self, handle: int, data: Any) -> Any:
        return self._known("write", handle, (data,), lambda: REAL["write"](handle, data[: max(1, len(data) // 3)]))

    def _note(self, path: str, offset: int, length: int) -> None:
        """Remember bytes that are about to be overwritten."""
        handle = REAL["open"](path, os.O_RDONLY)
        self._bytes.setdefault(path, []).append((offset, REAL["pread"](handle, length, offset), length))
        REAL["close"](handle)

    def _posix_fallocate(self, handle: int, offset: int, length: int) -> Any:
        if handle in self._paths:
            with self._lock:
                self._note(self._paths[handle], offset, length)
        return self._known("posix_fallocate", handle, (offset, length))

    def _ftruncate(self, handle: int, length: int) -> Any:
        if handle in self._paths:
            with self._lock:
                self._note(self._paths[handle], 0, max(os.fstat(handle).st_size, length))
        return self._known("ftruncate", handle, (length,))

    def _fdatasync(self, handle: int) -> Any:
        return self._sync("fdatasync", handle)

    def _fsync(self, handle: int) -> Any:
        return self._sync("fsync", handle)

    def _sync(self, name: str, handle: int) -> Any:
        if handle not in self._paths:
            return REAL[name](handle)

        def real() -> Any:
            done = REAL[name](handle)
            path = self._paths[handle]
            self._bytes.pop(path, None)
            self._names = [change for change in self._names if change.folder != path]
            return done

        return self._gate(name, real)

    def _replace(self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> Any:
        old_path, path = self._full(source, src_dir_fd), self._full(target, dst_dir_fd)
        if not self._inside(path):
            return REAL["replace"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        def real() -> None:
            old = self._keep(path)
            REAL["replace"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if old_path in self._bytes:
                self._bytes[path] = self._bytes.pop(old_path)

            def undo() -> None:
                REAL["replace"](path, old_path)
                if old is not None:
                    REAL["replace"](old, path)

            self._changed(path, undo)

        return self._gate("replace", real)

    def _unlink(self, name: Any, *, dir_fd: int | None = None) -> Any:
        path = self._full(name, dir_fd)
        if not self._inside(path):
            return REAL["unlink"](name, dir_fd=dir_fd)

        def real() -> None:
            old = self._keep(path)
            REAL["unlink"](name, dir_fd=dir_fd)
            self._bytes.pop(path, None)
            if old is not None and "journal" not in path:  # the database is its own library's
                self._changed(path, lambda: Path(path).parent.is_dir() and REAL["replace"](old, path))

        return self._gate("unlink", real)

    def _mkdir(self, name: Any, *more: Any, dir_fd: int | None = None) -> Any:
        path = self._full(name, dir_fd)
        if not self._inside(path):
            return REAL["mkdir"](name, *more, dir_fd=dir_fd)

        def real() -> None:
            REAL["mkdir"](name, *more, dir_fd=dir_fd)
            self._changed(path, lambda: self._forget_folder(path))

        return self._gate("mkdir", real)

    @staticmethod
    def _forget_folder(path: Any) -> None:
        for name, real in REAL.items():
            setattr(os, name, real)
        shutil.rmtree(path, ignore_errors=True)

    def _rmdir(self, name: Any, *, dir_fd: int | None = None) -> Any:
        path = self._full(name, dir_fd)
        if not self._inside(path):
            return REAL["rmdir"](name, dir_fd=dir_fd)

        def real() -> None:
            REAL["rmdir"](name, dir_fd=dir_fd)
            self._changed(path, lambda: REAL["mkdir"](path))

        return self._gate("rmdir", real)
