"""Reads a finished result again and compares it with what its manifest says was written. Shares no code with the writer.

Memory: one chunk of 8 MiB, and a shard's header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ..errors import CheckpointError, OutputError
from ..planner.files import open_file
from ..planner.headers import TensorEntry, safetensors_header
from ..planner.side_files import is_weights
from .folder import OutputFolder, looking_at
from .manifest import MANIFEST, Manifest

CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is not as it was written: a tensor of a shard, or with `tensor` None the file itself."""

    file: str
    tensor: str | None
    what: str

    def text(self) -> str:
        """One line."""
        return f"{self.file}: {self.what}" if self.tensor is None else f"{self.file}: tensor '{self.tensor}': {self.what}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was looked at, and what is wrong.

    `edited` files are not as they were written, but a person may have meant that: small ones that only settings depend on.
    `tensors` are all that must be made again, also those of a file whose header is gone.
    """

    checked: int
    nbytes: int
    damage: tuple[Damage, ...]
    edited: tuple[str, ...]
    tensors: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        return {
            "whole": not self.damage,
            "tensors": self.checked,
            "bytes": self.nbytes,
            "damage": [{"file": item.file, "tensor": item.tensor, "what": item.what} for item in self.damage],
            "differing_files": list(self.edited),
        }


def open_result(out: Path) -> Manifest:
    """The manifest of a complete result. Raises OutputError where there is none."""
    folder = OutputFolder(out)
    with looking_at(out):
        if not out.is_dir():
            raise OutputError(f"{out}: there is no such folder")
        manifest = folder.manifest()
    if manifest is not None:
        return manifest
    if folder.swapping:
        raise OutputError(
            f"{out}: its files were being put in place: `weft verify --repair`, or the same `weft run`, finishes that"
        )
    if folder.unfinished:
        raise OutputError(f"{out} is not finished: give its `weft run` command again first")
    if (out / MANIFEST).exists():
        raise OutputError(f"{out}: its {MANIFEST} is damaged or of another version of weft: nothing to verify by")
    raise OutputError(f"{out}: there is no {MANIFEST}: weft did not write this folder, or not to its end")


def verify(out: Path, watch: Callable[[int], None] = lambda nbytes: None) -> Verdict:
    """Compare every byte of a finished result with the checksums in its manifest; `watch` is told of bytes as they are read.

    Raises OutputError where there is no finished result.
    """
    manifest = open_result(out)
    damage: list[Damage] = []
    seen: set[str] = set()
    nbytes = 0
    for name in manifest.shards:
        found = list(_shard(out, name, manifest, watch))
        for entry, what in found:
            seen.add(entry.name)
            nbytes += entry.nbytes
            if what:
                damage.append(Damage(name, entry.name, what))
        trouble = _file_trouble(out / name, manifest.shards[name].nbytes)
        if trouble or not found:
            damage.append(Damage(name, None, trouble or "its header changed"))
    lost = frozenset(manifest.tensors) - seen
    broken, edited = _small_files(out, manifest)
    if (damage or broken or edited or lost) and OutputFolder(out).manifest() != manifest:
        raise OutputError(f"{out} was written to while it was verified: give the command again when that has ended")
    bad = frozenset(item.tensor for item in damage if item.tensor is not None) | lost
    return Verdict(len(seen), nbytes, (*damage, *broken), edited, bad)


def _shard(out: Path, name: str, manifest: Manifest, watch: Callable[[int], None]) -> Iterator[tuple[TensorEntry, str]]:
    """Each tensor of a shard and what is wrong with it, or ""; nothing where the header is not what was written."""
    known = manifest.shards[name]
    try:
        with open_file(out / name) as file:
            length = 8 + int.from_bytes(file.read(8), "little")
            if length > known.nbytes:
                return
            file.seek(0)
            header = _exactly(file, length)
            if xxhash.xxh3_128_hexdigest(header) != known.header:
                return

            def read(offset: int, count: int) -> bytes:
                return header[offset : offset + count]

            for entry in safetensors_header(read, known.nbytes, name).tensors:
                recorded = manifest.tensors.get(entry.name)
                yield entry, "not in the manifest" if recorded is None else _tensor(file, entry, recorded.checksum, watch)
    except (OSError, CheckpointError):
        return


def _tensor(file: BinaryIO, entry: TensorEntry, checksum: str, watch: Callable[[int], None]) -> str:
    seen = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(CHUNK, max(entry.nbytes, 1))))
    try:
        file.seek(entry.offset)
        left = entry.nbytes
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])  # type: ignore[attr-defined]
            if not count:
                return "cut off: the file ends inside it"
            seen.update(buffer[:count])
            left -= count
            watch(count)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "" if seen.hexdigest() == checksum else "its bytes changed"


def _exactly(file: BinaryIO, count: int) -> bytes:
    """That many bytes, or fewer where the file ends."""
    found = b""
    while len(found) < count and (piece := file.read(count - len(found))):
        found += piece
    return found


def _file_trouble(path: Path, nbytes: int) -> str:
    """What is wrong with a shard as a file, or ""."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    return "" if size == nbytes else f"has {size:,} bytes, {nbytes:,} were written"


def _file_checksum(path: Path) -> str:
    seen = xxhash.xxh3_128()
    with open_file(path) as file:
        while piece := file.read(CHUNK):
            seen.update(piece)
    return seen.hexdigest()


def _small_files(out: Path, manifest: Manifest) -> tuple[list[Damage], tuple[str, ...]]:
    """What is wrong with the files beside the shards, and which are not as they were written."""
    damage, edited = [], []
    for name, checksum in manifest.files.items():
        try:
            same = _file_checksum(out / name) == checksum
        except (FileNotFoundError, NotADirectoryError):
            damage.append(Damage(name, None, "missing"))
            continue
        except OSError as error:
            damage.append(Damage(name, None, f"cannot be read: {error.strerror or error}"))
            continue
        if not same and is_weights(name):
            damage.append(Damage(name, None, "its bytes changed"))
        elif not same:
            edited.append(name)
    return damage, tuple(edited)
