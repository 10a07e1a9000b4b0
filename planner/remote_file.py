"""A file that is read through byte ranges: what is read is fetched, in pages, and little more."""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_PAGE = 4 << 10
_AHEAD = 64
"""Pages of one read-ahead: 256 KiB."""


def remote_file(size: int, fetch: Callable[[int, int], bytes]) -> BinaryIO:
    """A file of `size` bytes, of which `fetch` gives those from a position up to another."""
    # RawIOBase has every method of BinaryIO, but typeshed keeps the two apart.
    return cast(BinaryIO, _RemoteFile(size, fetch))


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
