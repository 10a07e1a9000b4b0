"""The output folder: whose it is, and what state it is in (docs/format.md describes every state)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import OutputError
from ..planner.plan import Plan
from ..planner.shards import OutputPlace, Shard, is_shard_name
from .directory import Directory
from .journal import Record
from .lock import LOCK, OWNER, exclusive, is_locked
from .manifest import MANIFEST, Manifest, read_manifest
from .shard_writer import PARTIAL, holds
from .system import FULL

WORK = ".weft"
"""Folder inside the output folder that is there while something is being made."""

NEW = ".new"
"""Ending of a small file that waits in the work folder for its place."""

JOURNAL, INTENT = "journal.sqlite", "swap"
"""Files in the work folder: what is durable, and what is being put in place, while it is."""

TRIES = 5
"""How often a folder is looked at again that another run has just ended with."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """An output folder as anyone may look at it. Raises OutputError where it may not be read, or its work folder is none."""

    root: Path

    @property
    def work(self) -> Path:
        """Where the journal and the lock are."""
        return self.root / WORK

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.work / JOURNAL

    @property
    def intent(self) -> Path:
        """The file that says what is being put in place, while it is."""
        return self.work / INTENT

    @property
    def lock(self) -> Path:
        """The lock's file."""
        return self.work / LOCK

    @property
    def unfinished(self) -> bool:
        """Whether there is a work folder."""
        status = _status(self.work)
        if status is None or stat.S_ISDIR(status.st_mode):
            return status is not None
        what = "link" if stat.S_ISLNK(status.st_mode) else "file"
        raise OutputError(f"{self.work} is a {what}, not a folder of weft's: delete it and give the command again")

    @property
    def recording(self) -> bool:
        """Whether there is a journal."""
        return self.unfinished and _status(self.journal) is not None

    @property
    def swapping(self) -> bool:
        """Whether files are being put in place."""
        return self.unfinished and _status(self.intent) is not None

    @property
    def locked(self) -> bool:
        """Whether a process writes to it."""
        with suppress(FileNotFoundError), looking_at(self.root), ExitStack() as stack:
            root = stack.enter_context(closing(Directory.open(self.root)))
            return is_locked(stack.enter_context(closing(root.folder(WORK))))
        return False

    def manifest(self) -> Manifest | None:
        """The manifest of a complete result, else None: one that is being replaced is none."""
        return None if self.swapping else read_manifest(self.root)

    def place(self, name: str) -> Path:
        """Where a file beside the shards stands. Raises OutputError where links or files have the place of its folders."""
        for folder in folders_of([name]):
            path = self.root / folder
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise OutputError(f"{path}: the result has a folder of this name: move what is there away")
        return self.root / name


@dataclass(frozen=True, slots=True)
class HeldFolder(OutputFolder):
    """An output folder that this process writes to, and no other, by the descriptors of the folder and of its work folder.

    What is made in a work folder that was removed meanwhile, and perhaps made anew by another process, so fails.
    """

    top: Directory
    inner: Directory

    def write(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, whole or in pieces, whose place is beside the shards; it gets there with them."""
        self.inner.write(waiting(name), [data] if isinstance(data, bytes) else data)

    def withdraw(self) -> None:
        """Leave no trace where nothing was begun."""
        if self.inner.kind(JOURNAL) or self.inner.kind(INTENT):
            return
        self.inner.unlink(OWNER)
        self.inner.unlink(LOCK)
        with suppress(OSError):  # something else stands there
            self.top.remove_folder(WORK)
            self.root.rmdir()

    @property
    def removed(self) -> bool:
        """Whether the work folder is gone, or another one stands in its place."""
        try:
            there = os.stat(WORK, dir_fd=self.top.handle, follow_symlinks=False)
        except FileNotFoundError:
            return True
        return not os.path.samestat(there, os.fstat(self.inner.handle))

    def abandon(self) -> None:
        """Remove partial shards after the work folder: without it the folder would not be ours to write."""
        if self.top.kind(WORK) is None:
            drop_partials(self.top, ())

    def close(self) -> None:
        """What the folder should hold is there: remove what only unfinished work needs."""
        drop_partials(self.top, ())
        self.inner.clear(last=(INTENT, OWNER, LOCK))
        self.top.remove_folder(WORK)
        self.top.sync()


def waiting(name: str) -> str:
    """The name under which a file beside the shards waits in the work folder for its place; there are no folders in it."""
    return f"{name.replace('/', ':')}{NEW}"


def folders_of(names: Iterable[str]) -> list[str]:
    """The folders in which files of a result stand, outer ones first."""
    return sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."})


@contextmanager
def looking_at(root: Path) -> Iterator[None]:
    """What the system says against looking at a folder becomes an OutputError. What is gone stays what it is, and a full disk."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in FULL:
            raise
        raise OutputError(f"{root}: {error.strerror or error}") from None


@contextmanager
def hold(root: Path) -> Iterator[HeldFolder]:
    """Make `root` ours, or continue what it holds, and let no other process write to it meanwhile.

    Raises OutputError where it holds anything that this version of weft did not write, or another process writes to it; then
    nothing in it is touched.
    """
    busy = f"{root}: another weft is writing to this folder"
    for _ in range(TRIES):  # another may just be ending there, and remove what is claimed
        try:
            folder = _claim(root)
        except FileNotFoundError:
            continue
        with closing(folder.top), closing(folder.inner), exclusive(folder.inner, busy) as held:
            if held:
                yield folder
                return
    raise OutputError(busy)


def _claim(root: Path) -> HeldFolder:
    folder = OutputFolder(root)
    if _status(root) is not None and not root.is_dir():
        raise OutputError(f"{root} is a file: name a folder for the result")
    if root.is_dir() and not folder.unfinished and any(root.iterdir()) and folder.manifest() is None:
        if (root / MANIFEST).is_file():
            raise OutputError(f"{root}: its {MANIFEST} is damaged or of another version of weft: name a new folder")
        raise OutputError(f"{root} holds files that weft did not write: name a new or empty folder")
    with looking_at(root):
        root.mkdir(parents=True, exist_ok=True)
        top = Directory.open(root)
    try:
        return HeldFolder(root, top, top.folder(WORK, create=True))
    except BaseException:
        top.close()
        raise


def _status(path: Path) -> os.stat_result | None:
    """What stands at a path, of a link the link itself; None where nothing does. Raises OutputError where that cannot be seen."""
    try:
        return path.lstat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise OutputError(f"{path}: {error.strerror or error}") from None


def refuse_inputs(plan: Plan, root: Path) -> None:
    """Raise OutputError where `root` is one of the models that are read: its result would replace an input."""
    for file in plan.downloaded_files():
        path = plan.stores[file.model].path(file.name)
        if path is not None and root.is_dir() and path.parent.resolve() == root.resolve():
            raise OutputError(f"{root} is itself one of the models that are merged: name another folder for the result")


def missing(root: Path, manifest: Manifest) -> str | None:
    """The first file that is not there as the manifest says, by name and size; `weft verify` looks at the bytes."""
    for name, shard in manifest.shards.items():
        path = root / name
        if not path.is_file() or path.stat().st_size != shard.nbytes:
            return name
    return next((name for name in manifest.files if not (root / name).is_file()), None)


def partials(folder: Directory) -> dict[str, int]:
    """The names of shards in a folder that are not complete, of any layout, and their lengths."""
    names = [name for name in folder.names() if name.endswith(PARTIAL) and is_shard_name(name.removesuffix(PARTIAL))]
    return {name: folder.size(name) for name in names}


def drop_partials(folder: Directory, wanted: Iterable[str]) -> None:
    """Remove partial shards of another layout."""
    names = {name + PARTIAL for name in wanted}
    for name in partials(folder):
        if name not in names:
            folder.unlink(name)


def begun(folder: Directory, shard: Shard) -> bool:
    """Whether a partial shard is there that a run would continue."""
    handle = folder.own(shard.name + PARTIAL)
    if handle is None:
        return False
    try:
        return holds(handle, shard)
    finally:
        os.close(handle)


def durable(
    records: Mapping[str, Record],
    names: Sequence[tuple[str, str]],
    places: Sequence[OutputPlace],
    shards: Sequence[Shard],
    fresh: Sequence[bool],
) -> dict[int, Record]:
    """By recipe number, the tensors that the journal proves done: same proof, same place, in a shard that was not begun anew.

    `names` are pairs of a recipe's name and its proof (`engine/proof`).
    """
    found = {}
    for number, ((name, digest), place) in enumerate(zip(names, places, strict=True)):
        record = records.get(name)
        shard = shards[place.shard].name
        if record is None or fresh[place.shard]:
            continue
        if (record.digest, record.shard, record.offset, record.nbytes) == (digest, shard, place.offset, place.nbytes):
            found[number] = record
    return found
