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
from .folder import OutputFolder, folders_of
from .manifest import MANIFEST, Manifest, file_name
from .shard_writer import PARTIAL
from .system import sync_folder, write_file

CONFIG = "config.json"


def is_index(name: str) -> bool:
    """Whether a file of a result says which shard a tensor is in: a loader that finds it relies on it."""
    return "/" not in name and name.endswith(".safetensors.index.json")


@dataclass(frozen=True, slots=True)
class Swap:
    """`shards` stand beside their places with the ending of partial ones, `files` in the work folder; `remove` is what goes."""

    shards: Sequence[str]
    files: Sequence[str]
    remove: Sequence[str]


def publish(
    folder: OutputFolder, shards: Sequence[str], kept: Collection[str], files: Iterable[str], old: Manifest | None
) -> None:
    """Make complete partial shards and written small files the folder's result; `kept` shards of the earlier one stay."""
    names = list(files)
    earlier = [] if old is None else [*old.shards, *old.files]
    swap = Swap(
        [name for name in shards if name not in kept],
        names,
        [name for name in earlier if name not in shards and name not in names],
    )
    sync_folder(folder.work)
    sync_folder(folder.root)
    draft = folder.work / "swap.tmp"
    write_file(draft, json.dumps(asdict(swap)).encode())
    draft.replace(folder.intent)
    sync_folder(folder.work)
    _go(folder, swap)


def finish_swap(folder: OutputFolder) -> bool:
    """Go on with a swap that was interrupted; whether there was one. Raises OutputError where its files are not there."""
    try:
        value = json.loads(folder.intent.read_bytes())
        swap = Swap(*([file_name(name) for name in value[key]] for key in ("shards", "files", "remove")))
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{folder.intent} is damaged: delete {folder.root} and give the command again") from None
    for name in swap.shards:
        if not (folder.root / (name + PARTIAL)).is_file() and not (folder.root / name).is_file():
            raise OutputError(f"{folder.root}: {name} is gone: delete the folder and give the command again")
    _go(folder, swap)
    return True


def _go(folder: OutputFolder, swap: Swap) -> None:
    root = folder.root
    waiting = [name for name in swap.files if folder.waiting(name).exists()]
    for name in {MANIFEST, CONFIG, *filter(is_index, (*swap.files, *swap.remove))}:
        if name in waiting or name in swap.remove:
            (root / name).unlink(missing_ok=True)
    sync_folder(root)
    _remove(folder, swap.remove)
    moving = [name for name in swap.shards if (root / (name + PARTIAL)).exists()]
    for name in moving:
        (root / name).unlink(missing_ok=True)
    sync_folder(root)
    for name in moving:
        (root / (name + PARTIAL)).replace(root / name)
    sync_folder(root)
    _place(folder, [name for name in waiting if name != MANIFEST])
    sync_folder(root)
    if MANIFEST in waiting:
        folder.waiting(MANIFEST).replace(root / MANIFEST)
    sync_folder(root)
    folder.close()


def _place(folder: OutputFolder, names: Sequence[str]) -> None:
    """Move files from the work folder to their places, and sync the folders of those that have one of their own."""
    folders = folders_of(names)
    places = [folder.place(name) for name in names]
    for inner in folders:
        (folder.root / inner).mkdir(exist_ok=True)
    for name, place in zip(names, places, strict=True):
        folder.waiting(name).replace(place)
    for inner in reversed(folders):
        sync_folder(folder.root / inner)


def _remove(folder: OutputFolder, names: Sequence[str]) -> None:
    """Remove files of an earlier result, and the folders that have nothing else in them."""
    for name in names:
        with suppress(NotADirectoryError):  # then there is no such file
            folder.place(name).unlink(missing_ok=True)
    for inner in reversed(folders_of(names)):
        path = folder.root / inner
        if path.is_dir():
            sync_folder(path)
            with suppress(OSError):  # something else stands there
                path.rmdir()
