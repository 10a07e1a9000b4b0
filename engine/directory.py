"""A folder that weft writes to, by its descriptor. What others put into it, links above all, leads nowhere else.

A link to a folder is followed only where a user named it (`Directory.open`). Every name below is looked up in the folder that the
descriptor stands for, and no part of it may be a link; what is to be written is a new file, or one that has no second name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from .system import pread, sync_all, write_at

_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_CAREFUL = os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe would be waited for


@dataclass(frozen=True, slots=True)
class Directory:
    """An open folder; `path` is for messages and for libraries that know only names. Names may lead into subfolders: "a/b".

    Methods raise OutputError, naming the path, where a folder stands in the place of a file or the reverse, else OSError.
    """

    path: Path
    handle: int

    @classmethod
    def open(cls, path: Path) -> Directory:
        """The folder of this name. Raises OSError where there is none."""
        return cls(path, os.open(path, _FOLDER))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.handle)

    def folder(self, name: str, *, create: bool = False) -> Directory:
        """A folder directly in this one."""
        if create:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.handle)
                self.sync()
        try:
            return Directory(self.path / name, os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self.handle))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise self.wrong(name) from None
            raise

    def kind(self, name: str) -> str | None:
        """What stands there: "file", "shared file" (of two names), "folder", "link", "pipe or device" or None."""
        try:
            with self._parent(name) as (parent, last):
                status = os.stat(last, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return _kind(status)

    def own(self, name: str, flags: int = os.O_RDONLY) -> int | None:
        """A handle of a file that is there and has no other name; None where there is none, or something else."""
        try:
            with self._parent(name) as (parent, last):
                handle = os.open(last, flags | _CAREFUL, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                return None
            raise
        if _kind(os.fstat(handle)) == "file":
            return handle
        os.close(handle)
        return None

    def read(self, name: str, most: int) -> bytes | None:
        """The bytes of a file of its own, `most` of them at most; None where there is none."""
        handle = self.own(name)
        if handle is None:
            return None
        try:
            return pread(handle, 0, min(os.fstat(handle).st_size, most))
        finally:
            os.close(handle)

    def create(self, name: str) -> int:
        """A handle, to read and write, of a new file in the place of whatever stands there."""
        self.unlink(name)
        with self._parent(name, create=True) as (parent, last):
            return os.open(last, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent)

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a new file and return when its bytes are on the disk; its name is there once its folder is synced."""
        handle = self.create(name)
        try:
            offset = 0
            for part in parts:
                write_at(handle, offset, memoryview(part))
                offset += len(part)
            sync_all(handle)
        finally:
            os.close(handle)

    def unlink(self, name: str) -> None:
        """Remove a file, a link or whatever else is no folder; nothing where there is nothing."""
        try:
            with self._parent(name) as (parent, last):
                os.unlink(last, dir_fd=parent)
                if parent != self.handle:
                    sync_all(parent)  # nobody else has a handle of a subfolder
        except FileNotFoundError:
            return
        except OSError:  # macOS has another error number for folders than Linux
            if self.kind(name) == "folder":
                raise self.wrong(name) from None
            raise

    def replace(self, name: str, target: Directory, new: str) -> None:
        """Move a file to a place in another folder, over what stands there."""
        with self._parent(name) as (parent, last), target._parent(new, create=True) as (place, last_new):
            try:
                os.replace(last, last_new, src_dir_fd=parent, dst_dir_fd=place)
                if place != target.handle:
                    sync_all(place)  # nobody else has a handle of a subfolder
            except (IsADirectoryError, NotADirectoryError):
                raise target.wrong(new) from None

    def names(self) -> list[str]:
        """What stands directly in it, in order."""
        return sorted(os.listdir(self.handle))  # noqa: PTH208 (a path has no descriptor)

    def size(self, name: str) -> int:
        """The length of what stands there, of a link its own. Raises OSError where nothing does."""
        with self._parent(name) as (parent, last):
            return os.stat(last, dir_fd=parent, follow_symlinks=False).st_size

    def clear(self, last: Collection[str] = ()) -> None:
        """Remove everything in it, these names in this order at the end. Links are removed, not followed."""
        ordered = [*(name for name in self.names() if name not in last), *(name for name in last if self.kind(name))]
        for name in ordered:
            if self.kind(name) != "folder":
                self.unlink(name)
                continue
            inner = self.folder(name)
            try:
                inner.clear()
            finally:
                inner.close()
            os.rmdir(name, dir_fd=self.handle)

    def remove_folder(self, name: str) -> None:
        """Remove an empty folder."""
        with self._parent(name) as (parent, last):
            os.rmdir(last, dir_fd=parent)

    def sync(self) -> None:
        """Return when its names are on the disk."""
        sync_all(self.handle)

    def wrong(self, name: str) -> OutputError:
        """What to say where something stands that weft does not write."""
        path, kind = self.path / name, self.kind(name)
        return OutputError(f"{path} is a {kind or 'file'}: delete it and give the command again")

    @contextmanager
    def _parent(self, name: str, *, create: bool = False) -> Iterator[tuple[int, str]]:
        """The descriptor of the folder in which a name's last part stands, and that part."""
        *folders, last = name.split("/")
        here = self
        try:
            for part in folders:
                inner = here.folder(part, create=create)
                if here is not self:
                    here.close()
                here = inner
            yield here.handle, last
        finally:
            if here is not self:
                here.close()


def _kind(status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        return "file" if status.st_nlink == 1 else "shared file"
    if stat.S_ISDIR(status.st_mode):
        return "folder"
    return "link" if stat.S_ISLNK(status.st_mode) else "pipe or device"
