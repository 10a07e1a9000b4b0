"""A model on the Hugging Face Hub, pinned to one commit: headers come over HTTP byte ranges, whole files through the Hub's cache.

Everything goes through huggingface_hub, so that its settings hold here too: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE. Where
the Hub cannot be reached, what the local cache holds of a revision stands for it.
"""

from __future__ import annotations

import errno
import io
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
    get_session,
    hf_raise_for_status,
)

from ..errors import CheckpointError, DiskError
from .sizes import format_size
from .store import MAX_SMALL_FILE

_FAILURES: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, EntryNotFoundError, *HfHubHTTPError.__bases__)
"""What huggingface_hub raises. Its HTTP error's base is that of the HTTP library beneath, which changed between versions."""

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_ATTEMPTS = 3
_PAGE = 4 << 10
_AHEAD = 64
"""Pages of one read-ahead: 256 KiB."""


@dataclass(frozen=True, slots=True)
class _Listing:
    commit: str
    sizes: Mapping[str, int]
    online: bool


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
        self._listed: _Listing | None = None
        self.commit = commit
        self._commit = commit or self._resolve()
        self.commit = self._commit

    def sizes(self) -> Mapping[str, int]:
        """Files that stand directly in the repository; offline, those of them that are in the cache."""
        if self._listed is None:
            self._listed = self._list(self._commit)
        return self._listed.sizes

    def read(self, name: str) -> bytes:
        """A small file, whole; it stays in the cache."""
        if self._size(name) > MAX_SMALL_FILE:
            raise CheckpointError(f"{self.label}/{name}: too large for what it is ({MAX_SMALL_FILE} bytes at most)")
        with _progress(quiet=True):
            path = self._fetch(name, self._commit)
        try:
            return path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.label}/{name}: {error.strerror or error}") from None

    def open(self, name: str) -> BinaryIO:
        """The cached file, or one whose bytes are fetched as they are read."""
        path = self.path(name)
        if path is not None:
            try:
                return path.open("rb")
            except OSError as error:
                raise CheckpointError(f"{self.label}/{name}: {error.strerror or error}") from None
        # RawIOBase has every method of BinaryIO, but typeshed keeps the two apart.
        return cast(BinaryIO, _RemoteFile(self._size(name), lambda start, end: self._range(name, start, end)))

    def identity(self, name: str) -> str:
        """The commit pins the bytes."""
        return f"{self._name}@{self._commit}/{name}"

    def path(self, name: str) -> Path | None:
        """The file in the local cache, or None."""
        found = try_to_load_from_cache(self._name, name, revision=self._commit)
        return Path(found) if isinstance(found, str) else None

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
                self._fetch(name, self._commit)

    def _resolve(self) -> str:
        """The revision's commit, of which the cache takes note, so that the revision is known offline too.

        Of the library's calls only a download by the revision's name writes that note. The commit it went to counts, which
        is another than the listing's where the branch has moved in between.
        """
        listing = self._list(self._revision)
        commit = listing.commit
        noted = next((name for name in ("config.json", "adapter_config.json") if name in listing.sizes), None)
        if listing.online and noted is not None:
            with _progress(quiet=True):
                commit = self._fetch(noted, self._revision or constants.DEFAULT_REVISION).parent.name
        self._listed = listing if commit == listing.commit else None
        return commit

    def _list(self, revision: str | None) -> _Listing:
        try:
            return self._list_online(revision)
        except _FAILURES as error:
            cached = self._list_cached(revision) if _unreachable(error) else None
            if cached is None:
                raise self._explain(error) from None
            return cached

    def _list_online(self, revision: str | None) -> _Listing:
        timeout = constants.HF_HUB_ETAG_TIMEOUT
        info = HfApi().model_info(self._name, revision=revision, files_metadata=True, timeout=timeout)
        sizes: dict[str, int] = {}
        for file in info.siblings or []:
            if "/" in file.rfilename or "\\" in file.rfilename:
                continue
            if file.size is None:
                raise CheckpointError(f"{self.label}/{file.rfilename}: {constants.ENDPOINT} does not say how large it is")
            sizes[file.rfilename] = file.size
        if not info.sha:
            raise CheckpointError(f"{self.label}: {constants.ENDPOINT} does not say which commit it is")
        return _Listing(info.sha, sizes, online=True)

    def _list_cached(self, revision: str | None) -> _Listing | None:
        try:
            folder = Path(snapshot_download(self._name, revision=revision, local_files_only=True))
        except LocalEntryNotFoundError as error:
            # Newer versions of the library raise this for a snapshot that is there but is known not to be whole.
            partial = getattr(error, "snapshot_path", None)
            if partial is None:
                return None
            folder = Path(partial)
        sizes = {entry.name: entry.stat().st_size for entry in sorted(folder.iterdir()) if entry.is_file()}
        return _Listing(folder.name, sizes, online=False)

    def _size(self, name: str) -> int:
        try:
            return self.sizes()[name]
        except KeyError:
            raise CheckpointError(f"{self.label}/{name}: not there") from None

    def _fetch(self, name: str, revision: str) -> Path:
        try:
            return Path(hf_hub_download(self._name, name, revision=revision))
        except _FAILURES as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = self._size(name)
                raise self._disk_full(needed, max(1, needed - _free_space(Path(constants.HF_HUB_CACHE)))) from None
            raise self._explain(error, name) from None

    def _range(self, name: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of a file at the pinned commit."""
        url = hf_hub_url(self._name, name, revision=self._commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        for attempt in range(_ATTEMPTS):
            try:
                status, body = _get(url, headers, end - start)
                break
            except _FAILURES as error:
                if attempt == _ATTEMPTS - 1 or not _transient(error):
                    raise self._explain(error, name) from None
                time.sleep(2**attempt)
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
        return CheckpointError(f"{self.label}/{file}: {self._reason(error)}" if file else f"{self.label}: {self._reason(error)}")

    def _reason(self, error: BaseException) -> str:
        endpoint = constants.ENDPOINT
        match error:
            case LocalEntryNotFoundError() if error.__cause__ is not None:
                return self._reason(error.__cause__)
            case OfflineModeIsEnabled() | LocalEntryNotFoundError():
                return f"not in the local cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids fetching it"
            case GatedRepoError():
                return (
                    f"gated: accept the terms on its page ({endpoint}/{self._name}) and set HF_TOKEN to a token of that account"
                )
            case RepositoryNotFoundError():
                return f"{endpoint} has no such model, or it is private: check the name, or set HF_TOKEN"
            case DisabledRepoError():
                return f"{endpoint} has disabled this model"
            case RevisionNotFoundError():
                return f"{endpoint}/{self._name} has no revision '{self.commit or self._revision or constants.DEFAULT_REVISION}'"
            case EntryNotFoundError():
                return "not there"
            case HFValidationError():
                return f"no valid name on the Hub: {_line(error)}"
            case HfHubHTTPError():
                return self._refusal(error.response.status_code)
            case OSError(errno=int()) if error.filename is not None:
                return f"cannot be stored in the local cache: {error.strerror}: {error.filename}"
        return f"cannot be fetched from {endpoint}, and is not in the local cache: {_line(error)}"

    def _refusal(self, status: int) -> str:
        if status in (401, 403):
            return f"{constants.ENDPOINT} refuses access ({status}): check HF_TOKEN"
        if status == 429:
            return f"{constants.ENDPOINT} has had too many requests from here (429): try again later, or set HF_TOKEN"
        return f"{constants.ENDPOINT} answered with an error ({status}): try again later"


class _RemoteFile(io.RawIOBase):
    """A file read through `fetch(start, end)`, page by page, each page once.

    A read at the start or at the end is taken for the reading of a header and fetches ahead; so does one that goes on where pages
    are here already, by as much as stands before it. One anywhere else, as for the local header of a zip member, fetches little.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._file_size, self._fetch = size, fetch
        self._pages: dict[int, bytes] = {}
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file_size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, "a position before the file's start")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        start = min(self._position, self._file_size)
        end = min(start + len(buffer), self._file_size)
        if start == end:
            return 0
        first, last = start // _PAGE, -(-end // _PAGE)
        self._ensure(first, last)
        data = b"".join(self._pages[page] for page in range(first, last))
        buffer[: end - start] = data[start - first * _PAGE : end - first * _PAGE]
        self._position = end
        return end - start

    def _ensure(self, first: int, last: int) -> None:
        """Have the pages [first, last), in one request."""
        missing = [page for page in range(first, last) if page not in self._pages]
        if not missing:
            return
        count = -(-self._file_size // _PAGE)
        begin, end = missing[0], missing[-1] + 1
        end = max(end, begin + (self._run(begin) if begin else _AHEAD))
        if end > count - _AHEAD:
            begin, end = min(begin, max(0, count - _AHEAD)), count
        self._store(begin, end)

    def _run(self, page: int) -> int:
        """How many pages are here without a gap before this one; a read-ahead's worth at most."""
        return next((count for count in range(_AHEAD) if page - 1 - count not in self._pages), _AHEAD)

    def _store(self, begin: int, end: int) -> None:
        data = self._fetch(begin * _PAGE, min(end * _PAGE, self._file_size))
        for page in range(begin, end):
            self._pages[page] = data[(page - begin) * _PAGE : (page - begin + 1) * _PAGE]


def _get(url: str, headers: Mapping[str, str], limit: int) -> tuple[int, bytes]:
    """Status and body of an answer; one that is larger than `limit` is cut off unread, at one byte more than the limit."""
    session: Any = get_session()
    options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    # huggingface_hub gives an httpx client, and gave a requests session before its version 1.
    httpx = callable(getattr(session, "stream", None))
    with session.stream("GET", url, **options) if httpx else session.get(url, stream=True, **options) as response:
        hf_raise_for_status(response)
        body = bytearray()
        for chunk in response.iter_bytes(1 << 16) if httpx else response.iter_content(1 << 16):
            body += chunk
            if len(body) > limit:
                break
        return response.status_code, bytes(body[: limit + 1])


def _unreachable(error: Exception) -> bool:
    """Whether the Hub did not answer, or not as itself, rather than answered that it will not."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _TRANSIENT
    return not isinstance(error, HFValidationError)


def _transient(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    return _unreachable(error) and not isinstance(error, OfflineModeIsEnabled)


def _line(error: BaseException) -> str:
    """An error's first line, without the colon that would announce more."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(":.") if lines else type(error).__name__


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
