"""Memory over a schedule: how many bytes of the pool are held at each step, and may be held by reading ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .schedule import Buffer, Schedule

POINTS = 600
"""Points of a curve at most: about one a pixel of a wide chart."""


@dataclass(frozen=True, slots=True)
class Usage:
    """By step: bytes of `kept` buffers (used by several steps), of the step's `own`, and `ahead`: of later steps at most.

    `ahead` counts the steps that may be read and computed before this one is done.
    """

    kept: tuple[int, ...]
    own: tuple[int, ...]
    ahead: tuple[int, ...]


def usage(schedule: Schedule) -> Usage:
    """What the steps hold. At every step kept + own + ahead is at most the arena."""
    steps = schedule.steps
    shared = list(_shared(schedule))
    lives = [0] * (len(steps) + 1)
    begins = [0] * len(steps)
    inside = set()
    for first, last, buffer in shared:
        lives[first] += buffer.nbytes
        lives[last + 1] -= buffer.nbytes
        begins[first] += buffer.nbytes
        inside.add((first, buffer.task))
    kept = tuple(accumulate(lives[:-1]))
    own = tuple(sum(b.nbytes for b in step.filled if (i, b.task) not in inside) for i, step in enumerate(steps))
    order = [(i, buffer) for i, step in enumerate(steps) for buffer in step.filled]
    ahead, window, end = [], 0, 0  # `window` is what the buffers up to `end` bring to the steps behind step i
    for i in range(len(steps)):
        window -= own[i] + begins[i]
        while end < len(order) and (order[end][0] <= i or max(order[end][1].computed, order[end][1].saved) < i):
            window += order[end][1].nbytes
            end += 1
        ahead.append(window)
    return Usage(kept, own, tuple(ahead))


def _shared(schedule: Schedule) -> Iterator[tuple[int, int, Buffer]]:
    """Buffers that later steps use too: the step that fills each, the last that uses it."""
    current: dict[int, tuple[int, Buffer]] = {}
    last: dict[tuple[int, int], tuple[int, Buffer]] = {}
    for i, step in enumerate(schedule.steps):
        for buffer in step.resident:
            first, filled = current[buffer.task]
            last[first, buffer.task] = (i, filled)
        for buffer in step.filled:
            current[buffer.task] = (i, buffer)
    for (first, _), (end, buffer) in last.items():
        yield first, end, buffer


def thinned(found: Usage, points: int = POINTS) -> tuple[Usage, tuple[int, ...]]:
    """At most `points` steps, of each run of steps the one that holds most, and their numbers: no peak is lost."""
    count = len(found.kept)
    numbers = [
        max(range(low, high), key=lambda i: (found.kept[i] + found.own[i] + found.ahead[i], -i))
        for low, high in _runs(count, points)
    ]
    return Usage(_at(found.kept, numbers), _at(found.own, numbers), _at(found.ahead, numbers)), tuple(numbers)


def _runs(count: int, points: int) -> Iterator[tuple[int, int]]:
    runs = min(count, points)
    for k in range(runs):
        yield k * count // runs, (k + 1) * count // runs


def _at(values: Sequence[int], numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[i] for i in numbers)
