"""Puts a finished result in place, also over an earlier one, so that no loader ever sees parts of both.

Everything new is durable under other names first. Then one file, the intent, says what is to be moved and removed; from there on
there is only the way forward, and whoever finds an intent goes it: no step needs an input, or computes. The steps are

    remove the manifest, index and config.json of the earlier result ── sync ── remove its shards ── sync ──
    name the new shards ── sync ── the small files ── sync ── the manifest ── sync ── remove the work folder

Each may be repeated: what is moved already has no file under its earlier name.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from ..errors import OutputError
from ..planner.json_text import loads
from .folder import INTENT, HeldFolder, folders_of, waiting
from .manifest import MANIFEST, Manifest, file_name
from .shard_writer import PARTIAL

CONFIG = "config.json"

MOST = 256 << 20
"""Bytes that are read of an intent: names of some millions of files."""


def is_index(name: str) -> bool:
    """Whether a file of a result says which shard a tensor is in: a loader that finds it relies on it."""
    return "/" not in name and name.endswith(".safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Swap:
    """`shards` stand beside their places with the ending of partial ones, `files` in the work folder; `remove` is what goes."""

    shards: Sequence[str]
    files: Sequence[str]
    remove: Sequence[str]


def publish(folder: HeldFolder, shards: Sequence[str], kept: Collection[str], files: Iterable[str], old: Manifest | None) -> None:
    """Make complete partial shards and written small files the folder's result; `kept` shards of the earlier one stay."""
    names = list(files)
    earlier = [] if old is None else [*old.shards, *old.files]
    swap = Swap(
        [name for name in shards if name not in kept],
        names,
        [name for name in earlier if name not in shards and name not in names],
    )
    for name in (*swap.shards, *swap.files):
        if set(folders_of([name])) & set(swap.remove) or name in folders_of(swap.remove):
            continue  # what has its place, or that of its folder, goes before it
        folder.place(name)
        if folder.top.kind(name) == "folder":
            raise OutputError(f"{folder.root / name} is a folder: move it away and give the command again")
    folder.inner.sync()
    folder.top.sync()
    folder.inner.write(f"{INTENT}.tmp", [json.dumps(asdict(swap)).encode()])
    folder.inner.replace(f"{INTENT}.tmp", folder.inner, INTENT)
    folder.inner.sync()
    _go(folder, swap)


def finish_swap(folder: HeldFolder) -> bool:
    """Go on with a swap that was interrupted; whether there was one. Raises OutputError where its files are not there."""
    kind = folder.inner.kind(INTENT)
    if kind is None:
        return False
    if kind != "file":
        raise folder.inner.wrong(INTENT)
    swap = _read(folder)
    if swap is None:
        raise OutputError(f"{folder.intent} is damaged: delete {folder.root} and give the command again")
    for name in swap.shards:
        if not {folder.top.kind(name + PARTIAL), folder.top.kind(name)} & {"file", "shared file"}:
            raise OutputError(f"{folder.root}: {name} is gone: delete the folder and give the command again")
    _go(folder, swap)
    return True


def _read(folder: HeldFolder) -> Swap | None:
    """What an intent says; None where it is damaged."""
    try:
        value = loads(folder.inner.read(INTENT, MOST) or b"")
        lists = [value[key] for key in ("shards", "files", "remove")]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            return None
        return Swap(*([file_name(name) for name in names] for names in lists))
    except (ValueError, KeyError, TypeError):
        return None


def _go(folder: HeldFolder, swap: Swap) -> None:
    top, inner = folder.top, folder.inner
    moving = [name for name in swap.files if inner.kind(waiting(name))]
    for name in {MANIFEST, CONFIG, *filter(is_index, (*swap.files, *swap.remove))}:
        if name in moving or name in swap.remove:
            top.unlink(name)
    top.sync()
    _remove(folder, swap.remove)
    shards = [name for name in swap.shards if top.kind(name + PARTIAL)]
    for name in shards:
        top.unlink(name)
    top.sync()
    for name in shards:
        top.replace(name + PARTIAL, top, name)
    top.sync()
    for name in (name for name in moving if name != MANIFEST):
        inner.replace(waiting(name), top, name)
    top.sync()
    if MANIFEST in moving:
        inner.replace(waiting(MANIFEST), top, MANIFEST)
    top.sync()
    folder.close()


def _remove(folder: HeldFolder, names: Sequence[str]) -> None:
    """Remove files of an earlier result, and the folders that have nothing else in them."""
    for name in names:
        if not any(folder.top.kind(parent) == "file" for parent in folders_of([name])):  # a new file in the place of a folder
            folder.top.unlink(name)
    for name in reversed(folders_of(names)):
        with suppress(OSError, OutputError):  # something else stands there
            folder.top.remove_folder(name)
