"""The output folder: whose it is, and what state it is in (docs/format.md describes every state)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import OutputError
from ..planner.plan import Plan
from ..planner.shards import OutputPlace, Shard, is_shard_name
from .journal import Record
from .manifest import MANIFEST, Manifest, read_manifest
from .shard_writer import PARTIAL
from .system import sync_folder, write_file

WORK = ".weft"
"""Folder inside the output folder that is there while something is being made."""

NEW = ".new"
"""Ending of a small file that waits in the work folder for its place."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """An output folder that is ours to write."""

    root: Path

    @property
    def work(self) -> Path:
        """Where the journal and the lock are."""
        return self.root / WORK

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.work / "journal.sqlite"

    @property
    def lock(self) -> Path:
        """The lock's file."""
        return self.work / "lock"

    @property
    def intent(self) -> Path:
        """The file that says what is being put in place, while it is."""
        return self.work / "swap"

    def manifest(self) -> Manifest | None:
        """The manifest of a complete result, else None: one that is being replaced is none."""
        return None if self.intent.exists() else read_manifest(self.root)

    def waiting(self, name: str) -> Path:
        """Where a file beside the shards waits for its place; the work folder has no folders in it."""
        return self.work / f"{name.replace('/', ':')}{NEW}"

    def write(self, name: str, data: bytes | Iterable[bytes]) -> None:
        """Write a file, whole or in pieces, whose place is beside the shards; it gets there with them."""
        write_file(self.waiting(name), data)

    def place(self, name: str) -> Path:
        """Where a file beside the shards stands. Raises OutputError where links or files have the place of its folders."""
        for folder in folders_of([name]):
            path = self.root / folder
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise OutputError(f"{path}: the result has a folder of this name: move what stands there away")
        return self.root / name

    def withdraw(self) -> None:
        """Leave no trace where nothing was begun; call with the lock held."""
        if self.journal.exists() or self.intent.exists():
            return
        self.lock.unlink(missing_ok=True)
        with suppress(OSError):  # something else stands there
            self.work.rmdir()
            self.root.rmdir()

    def close(self) -> None:
        """What the folder should hold is there: remove what only unfinished work needs."""
        for path in partial_shards(self.root):
            path.unlink()
        for path in sorted(self.work.iterdir(), key=lambda path: (path == self.lock, path == self.intent)):
            path.unlink()
        self.work.rmdir()
        sync_folder(self.root)


def folders_of(names: Iterable[str]) -> list[str]:
    """The folders in which files of a result stand, outer ones first."""
    return sorted({str(folder) for name in names for folder in PurePosixPath(name).parents} - {"."})


def claim(root: Path) -> OutputFolder:
    """Make `root` ours, or continue what it holds.

    Raises OutputError where it holds anything that this version of weft did not write; then nothing in it is touched.
    """
    folder = OutputFolder(root)
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is a file: name a folder for the result")
    if root.is_dir() and not folder.work.is_dir() and any(root.iterdir()) and folder.manifest() is None:
        if (root / MANIFEST).is_file():
            raise OutputError(f"{root}: its {MANIFEST} is damaged or of another version of weft: name a new folder")
        raise OutputError(f"{root} holds files that weft did not write: name a new or empty folder")
    try:
        folder.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: {error.strerror or error}") from None
    return folder


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


def partial_shards(root: Path) -> list[Path]:
    """Shards that are not complete, of any layout."""
    found = sorted(root.glob(f"*{PARTIAL}"))
    return [path for path in found if is_shard_name(path.name.removesuffix(PARTIAL))]


def drop_partials(folder: OutputFolder, wanted: Iterable[str]) -> None:
    """Remove partial shards of another layout."""
    names = {name + PARTIAL for name in wanted}
    for path in partial_shards(folder.root):
        if path.name not in names:
            path.unlink()


def begun(root: Path, shard: Shard) -> bool:
    """Whether a partial shard is there that a run would continue."""
    path = root / (shard.name + PARTIAL)
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == shard.size and file.read(len(shard.header)) == shard.header
    except OSError:
        return False


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
