"""Which files a revision of a Hub model has: as the Hub says, or where it cannot be reached, as the local cache does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ..errors import CheckpointError
from .hub_errors import FAILURES, unreachable
from .store import inner_path


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository's files by their paths, with their sizes; offline, those of them that are in the cache."""

    commit: str
    sizes: Mapping[str, int]
    online: bool


def list_files(name: str, revision: str | None, label: str) -> Listing:
    """Raises what huggingface_hub raises, and CheckpointError, which begins with `label`, for an answer that lacks something."""
    try:
        return _list_online(name, revision, label)
    except FAILURES as error:
        cached = _list_cached(name, revision) if unreachable(error) else None
        if cached is None:
            raise
        return cached


def _list_online(name: str, revision: str | None, label: str) -> Listing:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
    sizes: dict[str, int] = {}
    for file in info.siblings or []:
        if not inner_path(file.rfilename):
            continue
        if file.size is None:
            raise CheckpointError(f"{label}/{file.rfilename}: {constants.ENDPOINT} does not say how large it is")
        sizes[file.rfilename] = file.size
    if not info.sha:
        raise CheckpointError(f"{label}: {constants.ENDPOINT} does not say which commit it is")
    return Listing(info.sha, sizes, online=True)


def _list_cached(name: str, revision: str | None) -> Listing | None:
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # Newer versions of the library raise this for a snapshot that is there but is known not to be whole.
        partial = getattr(error, "snapshot_path", None)
        if partial is None:
            return None
        folder = Path(partial)
    files = [(entry.relative_to(folder).as_posix(), entry) for entry in sorted(folder.rglob("*")) if entry.is_file()]
    sizes = {name: entry.stat().st_size for name, entry in files if inner_path(name)}
    return Listing(folder.name, sizes, online=False)
