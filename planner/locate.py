"""From a model's name in a config to the store that holds it."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import CheckpointError, nearest
from .reference import ModelReference, folder_of
from .store import Folder, Store

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(reference: ModelReference, commit: str | None = None) -> Store:
    """The store of a folder or Hub name; `commit` pins a Hub model to what an earlier plan saw. Raises CheckpointError."""
    name = reference.model.path
    try:
        return _locate(reference, folder_of(name), commit)
    except (OSError, ValueError) as error:  # a name too long for a file, one in a folder that is closed to us
        raise CheckpointError(f"{name}: {getattr(error, 'strerror', None) or error}") from None


def _locate(reference: ModelReference, folder: Path, commit: str | None) -> Store:
    name = reference.model.path
    if folder.is_dir():
        if reference.model.revision:
            raise CheckpointError(f"{reference}: a folder has no revisions: leave out '@{reference.model.revision}'")
        return Folder(folder, name)
    if folder.is_file():
        kind = "a GGUF file, a quantised format: use the model's safetensors release" if folder.suffix == ".gguf" else "a file"
        raise CheckpointError(f"{name}: {kind}; a model is the folder that holds config.json and the weights")
    if not _HUB_NAME.fullmatch(name):
        around = folder.parent
        beside = [entry.name for entry in around.iterdir() if entry.is_dir()] if around.is_dir() else []
        close = nearest(folder.name, beside) if beside else ""
        hint = close if close.startswith("; did") else ""
        raise CheckpointError(f"{name}: there is no such folder, and it is not a Hub name (org/name){hint}")
    from .hub import HubRepository

    return HubRepository(name, reference.model.revision, commit)
