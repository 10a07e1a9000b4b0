"""Kept buffers lie in a lane beside the ring, each in a fixed place from its first step to its last."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .schedule_problem import Problem
from .schedule_walk import Walk


@dataclass(frozen=True, slots=True)
class Lane:
    """Places of the kept buffers.

    `places`: by step and task its offset, and whether it is filled in this step. `reused_after`: by step the last earlier step
    whose kept buffer gave its place to this step's.
    """

    size: int
    places: Mapping[tuple[int, int], tuple[int, bool]]
    reused_after: Mapping[int, int]


def place_kept(problem: Problem, walk: Walk) -> Lane:
    """First-fit places for kept buffers."""
    places: dict[tuple[int, int], tuple[int, bool]] = {}
    reused_after: dict[int, int] = {}
    live: list[tuple[int, int, int]] = []  # (last step, begin, end), as a heap
    free: list[tuple[int, int, int]] = []  # (begin, end, last step that held it) below `lane`, in order
    lane = 0
    for item in sorted(walk.kept, key=lambda k: (k.first, -k.last, problem.position[k.task])):
        while live and live[0][0] < item.first:
            last, begin, end = heapq.heappop(live)
            insort(free, (begin, end, last))
        size = problem.size[item.task]
        offset, taken, after = _first_fit(free, size, lane)
        if taken.stop > taken.start:
            _, end, last = free[taken.stop - 1]
            free[taken] = [(offset + size, end, last)] if end > offset + size else []
        if after >= 0:
            reused_after[item.first] = max(reused_after.get(item.first, -1), after)
        heapq.heappush(live, (item.last, offset, offset + size))
        lane = max(lane, offset + size)
        places[(item.first, item.task)] = (offset, True)
        places.update({(step, item.task): (offset, False) for step in item.again})
    return Lane(lane, places, reused_after)


def _first_fit(free: Sequence[tuple[int, int, int]], size: int, lane: int) -> tuple[int, slice, int]:
    """The lowest offset with `size` free bytes, which of `free` they are, and the last step that held any of them.

    Beyond `lane` everything is free.
    """
    start, offset, reached, after = 0, 0, 0, -1
    for i, (begin, end, last) in enumerate(free):
        if begin != reached or i == start:
            start, offset, after = i, begin, -1
        reached, after = end, max(after, last)
        if reached - offset >= size:
            return offset, slice(start, i + 1), after
    if free and reached == lane:  # the free end of the lane, and more
        return offset, slice(start, len(free)), after
    return lane, slice(len(free), len(free)), -1
