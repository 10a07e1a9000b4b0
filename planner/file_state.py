"""What tells a file of this machine from what stood, or will stand, in its place: its size, and when it was last changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

_TICK = 10_000_000
"""Nanoseconds within which two changes may bear the same time: file systems take it from a clock that a timer moves."""

_COARSE_TICK = 2_000_000_000
"""The same where times are kept in whole seconds, or pairs of them."""

_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileState:
    """A file's bytes, and its times in nanoseconds of Unix time.

    `modified` anyone may set as they like (`cp -p` and `rsync -t` do); `changed` is the system's own, and tells of that too, and
    of a new name or mode. An inode's number would say nothing more, and some file systems give a file another one each time.
    """

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """What `stat` tells."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def tick_left(self, now: int) -> int:
        """Nanoseconds from `now` on in which another change could still leave all three as they are."""
        coarse = self.modified % _SECOND == 0 and self.changed % _SECOND == 0
        tick = _COARSE_TICK if coarse else _TICK
        left = max(self.modified, self.changed) + tick - now
        return left if 0 < left <= tick else 0  # a time in the future is another clock's


def settled(look: Callable[[], dict[str, FileState]]) -> dict[str, FileState]:
    """The states of some files, looked at late enough that whatever changes one of them later changes its state too."""
    for _ in range(3):  # a file that is written all the time will be found changed anyway
        states = look()
        now = time.time_ns()
        left = max((state.tick_left(now) for state in states.values()), default=0)
        if not left:
            break
        time.sleep(left / _SECOND)
    return states
