"""Private buffers lie in a ring: each takes the next bytes of it, and waits for the steps whose bytes it overlaps.

What only a Compute reads makes room when that is done, what is saved when it is saved: a large result on its way to the disk
does not keep the next step's inputs from being read into the bytes beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True, slots=True)
class Private:
    """A buffer that one step uses: until the step is computed, or `saved`."""

    nbytes: int
    saved: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a buffer lies; all steps up to `computed` must be computed before, and all up to `saved` be saved (-1: none)."""

    offset: int
    computed: int
    saved: int


def place_ring(steps: Sequence[Sequence[Private]], ring: int) -> list[list[Place]]:
    """The places of each step's buffers in a ring that has room for any one step.

    They wait for earlier steps only, and for no fewer than the buffers before them: in their order none ever waits for good.
    """
    placed: list[list[Place]] = []
    taken: deque[tuple[int, int, int, bool]] = deque()  # (begin, end, step, saved), the oldest first
    cursor, computed, saved = 0, -1, -1
    for number, buffers in enumerate(steps):
        places = []
        for buffer, begin in zip(buffers, _offsets([buffer.nbytes for buffer in buffers], cursor, ring), strict=True):
            end = begin + buffer.nbytes
            if begin == end:
                places.append(Place(begin, -1, -1))
                continue
            # What is left of the last round at the ring's end is older than anything at its beginning.
            while taken and (begin < cursor <= taken[0][0] or (taken[0][0] < end and begin < taken[0][1])):
                _, _, step, until_saved = taken.popleft()
                saved, computed = (step, computed) if until_saved else (saved, step)
            taken.append((begin, end, number, buffer.saved))
            places.append(Place(begin, computed, saved))
            cursor = end
        placed.append(places)
    return placed


def _offsets(sizes: Sequence[int], cursor: int, ring: int) -> list[int]:
    """One after the other from the cursor on, at the end back to the beginning; all from there, if they would meet."""
    offsets, at = [], cursor
    for size in sizes:
        if at + size > ring:
            at = 0
        offsets.append(at)
        at += size
    if offsets and offsets[0] == cursor and min(offsets) < cursor < at:
        return [0, *accumulate(sizes[:-1])]
    return offsets
