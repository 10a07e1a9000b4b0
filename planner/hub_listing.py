"""Which files a revision of a Hub model has: as the Hub says, or where it cannot be reached, as the local cache does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from ..errors import CheckpointError
from .content_digest import is_digest
from .headers import MAX_FILE
from .hub_calls import ask
from .hub_errors import FAILURES, nobody_there, transient, unreachable
from .store import inner_path

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository's files by their paths, with their sizes; offline, those of them that are in the cache.

    `digests` are those of their contents (see `content_digest`), of the files for which the Hub tells them.
    """

    commit: str
    sizes: Mapping[str, int]
    digests: Mapping[str, str]
    online: bool


def list_files(name: str, revision: str | None, label: str) -> Listing:
    """Raises what huggingface_hub raises, and CheckpointError, which begins with `label`, for an answer that makes no sense."""
    try:
        return ask(lambda: _list_online(name, revision, label), again=lambda error: transient(error) and not nobody_there(error))
    except FAILURES as error:
        cached = _list_cached(name, revision) if unreachable(error) else None
        if cached is None:
            raise
        return cached


def _list_online(name: str, revision: str | None, label: str) -> Listing:
    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:
        info: Any = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=timeout)
    except (TypeError, KeyError, AttributeError, JSONDecodeError):  # the library reads what should be there
        raise CheckpointError(
            f"{label}: {constants.ENDPOINT} answered with something other than a list of its files: is HF_ENDPOINT right?"
        ) from None
    if not isinstance(info.sha, str) or not _COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"{label}: {constants.ENDPOINT} does not say which commit it is")
    if info.siblings is None:
        raise CheckpointError(f"{label}: {constants.ENDPOINT} does not list its files")
    sizes: dict[str, int] = {}
    digests: dict[str, str] = {}
    for file in info.siblings:
        if not isinstance(file.rfilename, str):
            raise CheckpointError(f"{label}: {constants.ENDPOINT} lists a file whose name is not text")
        if not inner_path(file.rfilename):
            continue
        if not isinstance(file.size, int) or isinstance(file.size, bool) or not 0 <= file.size <= MAX_FILE:
            raise CheckpointError(f"{label}/{file.rfilename}: {constants.ENDPOINT} does not say how large it is")
        sizes[file.rfilename] = file.size
        found = file.lfs.get("sha256") if isinstance(file.lfs, Mapping) else getattr(file.lfs, "sha256", file.blob_id)
        if isinstance(found, str) and is_digest(found):
            digests[file.rfilename] = found
    return Listing(info.sha, sizes, digests, online=True)


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
    digests = {name: entry.resolve().name for name, entry in files if inner_path(name)}  # the cache names contents so
    digests = {name: digest for name, digest in digests.items() if is_digest(digest)}
    return Listing(folder.name, sizes, digests, online=False)
