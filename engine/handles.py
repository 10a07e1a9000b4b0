"""Open files, of which no more than a number are open at once: a system grants a process some hundreds of descriptors."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

MOST = 256
"""Descriptors that one set of files keeps open at most."""


def descriptors() -> int:
    """How many descriptors one set of files may keep: a quarter of what the system grants, beyond what libraries take."""
    granted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if granted == resource.RLIM_INFINITY else max(4, min((granted - 64) // 4, MOST))


@dataclass(slots=True)
class _Open:
    handle: int
    users: int = 0


class Handles(Generic[Key]):
    """Files by key, opened by `opener` when they are used and closed again, the longest unused first, when they are too many.

    `leave` is called with a descriptor that is closed while the work goes on: bytes written through it may not be on the disk.
    For several threads. After `close` no file is opened any more, and one in use is closed when it is given back.
    """

    def __init__(
        self, opener: Callable[[Key], int], *, leave: Callable[[int], None] = lambda handle: None, limit: int | None = None
    ) -> None:
        self._opener, self._leave = opener, leave
        self._limit = descriptors() if limit is None else limit
        self._open: OrderedDict[Key, _Open] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    @contextmanager
    def use(self, key: Key) -> Iterator[int]:
        """The descriptor of a file, open until the block ends. Raises what `opener` raises, and OSError after `close`."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "closed")
            found = self._open.get(key)
            if found is None:
                self._make_room()
                found = self._open[key] = _Open(self._opener(key))
            self._open.move_to_end(key)
            found.users += 1
        try:
            yield found.handle
        finally:
            with self._lock:
                found.users -= 1
                if self._closed and not found.users:
                    os.close(found.handle)

    def close(self) -> None:
        """Close all files, those in use when they are given back."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for item in self._open.values():
                if not item.users:
                    os.close(item.handle)
            self._open.clear()

    def _make_room(self) -> None:
        """Close unused files until there is room for one more, if there are any."""
        idle = [key for key, item in self._open.items() if not item.users]
        for key in idle[: max(len(self._open) + 1 - self._limit, 0)]:
            self._leave(self._open[key].handle)
            os.close(self._open.pop(key).handle)
