"""A model on the Hugging Face Hub, pinned to one commit: headers come over HTTP byte ranges, whole files through the Hub's cache.

Everything goes through huggingface_hub, so that its settings hold here too: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Where
the Hub cannot be reached, what the local cache holds of a revision stands for it.
"""

from __future__ import annotations

import errno
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ..errors import CheckpointError, DiskError
from . import hub_calls
from .content_digest import has_digest
from .file_state import FileState, settled
from .hub_calls import ask
from .hub_check import CachedFile, other_bytes
from .hub_errors import FAILURES, reason
from .hub_listing import Listing, list_files
from .hub_range import get_range
from .remote_file import remote_file
from .sizes import format_size
from .store import MAX_SMALL_FILE, open_in_state

_SMALL = 1 << 20
"""Bytes that come in one piece."""


class HubRepository:
    """The Hub model `name` at `revision` (its main branch where None), or at `commit`, which an earlier instance resolved.

    Raises CheckpointError where the revision can be found neither on the Hub nor in the local cache.

        store = HubRepository("org/name", "main", None)
        store.sizes()["config.json"]
        with store.open("model.safetensors") as file:  # fetches what is read, no more
            file.read(8)
        store.download(["model.safetensors"])
        store.path("model.safetensors")  # in the cache
    """

    def __init__(self, name: str, revision: str | None, commit: str | None) -> None:
        self.label = f"{name}@{revision}" if revision else name
        self._name, self._revision = name, revision
        self._listed: Listing | None = None
        self._states: dict[str, FileState] = {}
        self._from_cache = False
        self.commit = commit
        self._commit = commit or self._resolve()
        self.commit = self._commit

    def sizes(self) -> Mapping[str, int]:
        """Files that stand directly in the repository; offline, those of them that are in the cache."""
        return {name: size for name, size in self._every().items() if "/" not in name}

    def below(self, folder: str) -> Mapping[str, int]:
        """Of them, too, those that are in the cache where the Hub is away."""
        return {name: size for name, size in self._every().items() if name.startswith(f"{folder}/")}

    def _every(self) -> Mapping[str, int]:
        return self._listing().sizes

    def _listing(self) -> Listing:
        if self._listed is None:
            self._listed = self._list(self._commit)
        return self._listed

    def read(self, name: str) -> bytes:
        """A small file, whole; it stays in the cache."""
        if self._size(name) > MAX_SMALL_FILE:
            raise CheckpointError(f"{self.label}/{name}: too large for such a file ({MAX_SMALL_FILE} bytes at most)")
        with _progress(quiet=True):
            path = self._fetch(name, self._commit, self._size(name))
        with open_in_state(path, self.state(name), f"{self.label}/{name}") as file:
            data = file.read(MAX_SMALL_FILE)
        digest = self._listing().digests.get(name)
        if digest is not None and not has_digest(io.BytesIO(data), len(data), digest):
            raise other_bytes(f"{self.label}/{name}", path)
        return data

    def open(self, name: str) -> BinaryIO:
        """The cached file, or one whose bytes are fetched as they are read."""
        path = self.path(name)
        if path is not None:
            return open_in_state(path, self.state(name), f"{self.label}/{name}")
        return remote_file(self._size(name), lambda start, end: self._range(name, start, end))

    def identity(self, name: str) -> str:
        """The commit pins the bytes."""
        return f"{self._name}@{self._commit}/{name}"

    def path(self, name: str) -> Path | None:
        """The file in the local cache, or None."""
        found = try_to_load_from_cache(self._name, name, revision=self._commit)
        return Path(found) if isinstance(found, str) else None

    def state(self, name: str) -> FileState:
        """Of the cached file, when it was first looked at."""
        path = self.path(name)
        if path is None:
            raise CheckpointError(f"{self.label}/{name}: not in the local cache any more; give the command again")
        if name not in self._states:
            try:
                self._states[name] = settled(lambda: {name: FileState.of(path.stat())})[name]
            except OSError as error:
                raise CheckpointError(f"{self.label}/{name}: {error.strerror or error}") from None
        return self._states[name]

    def used(self) -> Mapping[str, FileState]:
        """Nothing: the commit says what the files are, whichever copy of them is read."""
        return {}

    def cached(self, name: str) -> CachedFile | None:
        """A file in the cache, if the Hub, or the cache's name for it, says what it must be."""
        path, digest = self.path(name), self._listing().digests.get(name)
        if path is None or digest is None:
            return None
        return CachedFile(f"{self.label}/{name}", path, self.state(name), digest)

    def notes(self) -> Sequence[str]:
        """Whether it may be an older version, and whether downloads cannot be compared with anything."""
        found = []
        if self._from_cache and not constants.HF_HUB_OFFLINE:
            which = f"the version that the local cache has ({self._commit[:8]}) is used, and there may be a newer one"
            found.append(f"{self.label}: {constants.ENDPOINT} cannot be reached: {which}")
        weights = [name for name in self.sizes() if name.endswith((".safetensors", ".bin"))]
        unknown = [name for name in weights if name not in self._listing().digests]
        if unknown:
            source = constants.ENDPOINT if self._listing().online else "the local cache"
            found.append(f"{self.label}: {source} gives no checksum of {unknown[0]}: its bytes are used unchecked")
        return found

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        """Bring files into the local cache; those that are there already cost nothing, so the same call continues a stopped one.

        Raises DiskError where they do not fit, and CheckpointError where they cannot be fetched.
        """
        missing = [name for name in dict.fromkeys(names) if self.path(name) is None]
        if not missing:
            return
        needed = sum(self._size(name) for name in missing)
        lacking = needed - _free_space(Path(constants.HF_HUB_CACHE))
        if lacking > 0:
            raise self._disk_full(needed, lacking)
        with _progress(quiet):
            for name in missing:
                self._fetch(name, self._commit, self._size(name))

    def _resolve(self) -> str:
        """The revision's commit, of which the cache takes note, so that the revision is known offline too.

        Of the library's calls only a download by the revision's name writes that note. The commit it went to counts, which
        is another than the listing's where the branch has moved in between.
        """
        listing = self._list(self._revision)
        self._from_cache = not listing.online
        commit = listing.commit
        noted = next((name for name in ("config.json", "adapter_config.json") if name in listing.sizes), None)
        if listing.online and noted is not None:
            with _progress(quiet=True):
                commit = self._fetch(noted, self._revision or constants.DEFAULT_REVISION, listing.sizes[noted]).parent.name
        self._listed = listing if commit == listing.commit else None
        return commit

    def _list(self, revision: str | None) -> Listing:
        try:
            return list_files(self._name, revision, self.label)
        except FAILURES as error:
            raise self._explain(error) from None

    def _size(self, name: str) -> int:
        try:
            return self._every()[name]
        except KeyError:
            raise CheckpointError(f"{self.label}/{name}: not there") from None

    def _fetch(self, name: str, revision: str, size: int) -> Path:
        patience = hub_calls.PATIENCE if size < _SMALL else hub_calls.DOWNLOAD_PATIENCE
        try:
            found = ask(
                lambda: hf_hub_download(self._name, name, revision=revision),
                progress=self._arriving,
                patience=patience,
                locks=True,
            )
            return Path(found)
        except FAILURES as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = size
                raise self._disk_full(needed, max(1, needed - _free_space(Path(constants.HF_HUB_CACHE)))) from None
            raise self._explain(error, name) from None

    def _arriving(self) -> object:
        """What changes while a file is downloaded."""
        blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=self._name, repo_type="model"), "blobs")
        found = []
        for path in blobs.glob("*.incomplete"):
            with suppress(OSError):
                status = path.stat()
                found.append((path.name, status.st_size, status.st_mtime_ns))
        return sorted(found)

    def _range(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file at the pinned commit."""
        try:
            status, body = get_range(hf_hub_url(self._name, name, revision=self._commit), start, end)
        except FAILURES as error:
            raise self._explain(error, name) from None
        whole = start == 0 and end == self._size(name)
        if status != 206 and not whole:
            raise CheckpointError(
                f"{self.label}/{name}: {constants.ENDPOINT} does not serve parts of files, so headers cannot be read from it; "
                "download the model and name its folder"
            )
        if len(body) != end - start:
            raise CheckpointError(f"{self.label}/{name}: {constants.ENDPOINT} sent other bytes than it was asked for; try again")
        return body

    def _disk_full(self, needed: int, lacking: int) -> DiskError:
        return DiskError(
            f"{self.label}: too little disk to download {format_size(needed)}: {format_size(lacking)} are missing in "
            f"{constants.HF_HUB_CACHE}; free them, or set HF_HOME to a folder on a larger disk",
            lacking,
        )

    def _explain(self, error: Exception, file: str | None = None) -> CheckpointError:
        """One line that says what failed and what to do, for whatever huggingface_hub raised."""
        where = f"{self.label}/{file}" if file else self.label
        revision = self.commit or self._revision or constants.DEFAULT_REVISION
        return CheckpointError(f"{where}: {reason(error, self._name, revision)}")


def _free_space(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Whether the library draws its bars meanwhile. Where they are off already they stay off."""
    if not quiet or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
