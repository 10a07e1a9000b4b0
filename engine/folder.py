"""The output folder: whose it is, what state it is in, and how files come into it (docs/format.md describes every state)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..planner.shards import OutputPlace, Shard
from .journal import Record
from .shard_writer import PARTIAL
from .system import sync_folder

WORK = ".weft"
"""Folder inside the output folder that is there while the result is not complete."""

MANIFEST = "weft.json"


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

    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest of a complete result, else None."""
        try:
            value = json.loads((self.root / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def write(self, name: str, data: bytes) -> None:
        """Put a small file in place whole: written beside, synced, renamed."""
        temporary = self.work / f"{name}.new"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.root / name)

    def publish(self, shards: Sequence[Shard]) -> None:
        """Give complete shards their names."""
        for shard in shards:
            (self.root / (shard.name + PARTIAL)).replace(self.root / shard.name)
        sync_folder(self.root)

    def withdraw(self) -> None:
        """Leave no trace where nothing was begun; call with the lock held."""
        if self.journal.exists():
            return
        self.lock.unlink(missing_ok=True)
        with suppress(OSError):  # something else stands there
            self.work.rmdir()
            self.root.rmdir()

    def close(self) -> None:
        """The result is complete and its manifest on the disk: remove what only an unfinished one needs."""
        sync_folder(self.root)
        for path in sorted(self.work.iterdir(), key=lambda path: path == self.lock):
            path.unlink()
        self.work.rmdir()
        sync_folder(self.root)


def claim(root: Path, digest: str) -> OutputFolder | None:
    """Make `root` ours, or continue what it holds. None: it holds the complete result of this very plan.

    Raises OutputError where it holds anything else; then nothing in it is touched.
    """
    folder = OutputFolder(root)
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root} is a file: name a folder for the result")
    if root.is_dir() and not folder.work.is_dir() and any(root.iterdir()):
        manifest = folder.manifest()
        if manifest is None:
            raise OutputError(f"{root} holds files that weft did not write: name a new or empty folder")
        if manifest.get("plan") != digest:
            raise OutputError(
                f"{root} holds the complete result of another config, seed or input: name a new folder, or delete it first"
            )
        damaged = _damaged(root, manifest)
        if damaged is None:
            return None
        raise OutputError(f"{root}: {damaged} is missing or has the wrong size: delete the folder and give the command again")
    try:
        folder.work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{root}: {error.strerror or error}") from None
    return folder


def state_of(root: Path, digest: str) -> str:
    """For a dry run: "new", "unfinished", "complete", "another" or "foreign"."""
    folder = OutputFolder(root)
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return "new"
    if folder.work.is_dir():
        return "unfinished"
    manifest = folder.manifest() if root.is_dir() else None
    if manifest is None:
        return "foreign"
    return "complete" if manifest.get("plan") == digest else "another"


def _damaged(root: Path, manifest: Mapping[str, Any]) -> str | None:
    """The first shard that is not there as the manifest says; `weft verify` looks at the bytes."""
    for name, size in dict(manifest.get("shards", {})).items():
        path = root / str(name)
        if not path.is_file() or path.stat().st_size != size:
            return str(name)
    return None


def reopen_shards(folder: OutputFolder, shards: Sequence[Shard]) -> None:
    """Undo the renames of a run that was stopped while it published, and remove partial shards of another layout."""
    (folder.root / MANIFEST).unlink(missing_ok=True)
    wanted = {shard.name for shard in shards}
    for path in folder.root.iterdir():
        name = path.name.removesuffix(PARTIAL)
        if not name.startswith("model") or not name.endswith(".safetensors"):
            continue
        if name not in wanted:
            path.unlink()
        elif not path.name.endswith(PARTIAL):
            path.replace(path.with_name(path.name + PARTIAL))


def durable(
    records: Mapping[str, Record],
    names: Sequence[tuple[str, str]],
    places: Sequence[OutputPlace],
    shards: Sequence[Shard],
    fresh: Sequence[bool],
) -> dict[int, Record]:
    """By recipe number, the tensors that the journal proves done: same digest, same place, in a shard that was not begun anew.

    `names` are pairs of a recipe's name and digest.
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
