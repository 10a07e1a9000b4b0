"""An order of the computes, simulated step by step: which buffers are kept, what is read, the most bytes held at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from .schedule_problem import Problem


@dataclass(frozen=True, slots=True)
class Kept:
    """A buffer that lives from step `first` to step `last`; `again` are the later steps that find a load in it."""

    task: int
    first: int
    last: int
    again: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Walk:
    """An order of the computes and what it costs: `peak` bytes at once if steps run one by one, `loaded` bytes read."""

    order: tuple[int, ...]
    kept: tuple[Kept, ...]
    private: tuple[int, ...]
    peak: int
    peak_step: int
    loaded: int
    jumps: int


def walk_order(problem: Problem, order: Sequence[int], capacity: int) -> Walk:
    """Simulate an order step by step: which buffers are kept, what is read, and the most bytes held at once."""
    at = {compute: i for i, compute in enumerate(order)}
    kept = [*_intermediates(problem, order, at), *_shared_loads(problem, order, at, capacity)]
    growth = [0] * (len(order) + 1)
    for item in kept:
        growth[item.first] += problem.size[item.task]
        growth[item.last + 1] -= problem.size[item.task]
    found = {(step, item.task) for item in kept for step in item.again}
    held = found | {(item.first, item.task) for item in kept}
    private, loaded, jumps, live, peak, peak_step, last = [], 0, 0, 0, 0, 0, -1
    for i, compute in enumerate(order):
        live += growth[i]
        own = 0 if (i, compute) in held else problem.size[compute]
        for load in problem.loads[compute]:
            if (i, load) not in held:
                own += problem.size[load]
            if (i, load) not in found:
                loaded += problem.size[load]
                jumps += problem.position[load] < last
                last = problem.position[load]
        private.append(own)
        if live + own > peak:
            peak, peak_step = live + own, i
    return Walk(tuple(order), tuple(kept), tuple(private), peak, peak_step, loaded, jumps)


def _intermediates(problem: Problem, order: Sequence[int], at: Mapping[int, int]) -> Iterator[Kept]:
    for compute in order:
        if problem.outputs[compute] and problem.size[compute]:
            yield Kept(compute, at[compute], max(at[user] for user in problem.outputs[compute]))


def _shared_loads(problem: Problem, order: Sequence[int], at: Mapping[int, int], capacity: int) -> Iterator[Kept]:
    """Loads to keep from one of their steps to the next: those whose next use is near, as long as they fit beside the steps.

    Where they do not all fit, the one wanted furthest in the future is dropped (Belady 1966).
    """
    uses: dict[int, list[int]] = {}
    for i, compute in enumerate(order):
        for load in problem.loads[compute]:
            if problem.size[load]:
                uses.setdefault(load, []).append(i)
    following = {(step, load): after for load, steps in uses.items() for step, after in pairwise(steps)}
    if not following:
        return
    own = [sum(problem.size[n] for n in problem.loads[c]) + problem.size[c] for c in order]
    streamed = [0, *accumulate(own)]
    growth = [0] * (len(order) + 1)
    for item in _intermediates(problem, order, at):
        growth[item.first] += problem.size[item.task]
        growth[item.last + 1] -= problem.size[item.task]
    spare = capacity - 2 * max(own)
    room = [spare - live for live in accumulate(growth)]

    wanted: dict[int, int] = {}  # the loads held now, and the step that wants each next
    furthest: list[tuple[int, int, int]] = []  # the same as a heap, with what was dropped since
    held = 0

    def drop(enough: int, beyond: int) -> None:
        """Drop the loads wanted furthest in the future, but after step `beyond`, until at most `enough` bytes are held."""
        nonlocal held
        while held > enough and furthest and -furthest[0][0] > beyond:
            step, _, load = heapq.heappop(furthest)
            if wanted.get(load) == -step:
                del wanted[load]
                held -= problem.size[load]

    spans: dict[int, list[list[int]]] = {}
    for i, compute in enumerate(order):
        drop(room[i], -1)
        leaving, staying = 0, []
        for load in problem.loads[compute]:
            found = wanted.pop(load, None) is not None
            if found:
                spans[load][-1].append(i)
            after = following.get((i, load))
            if after is not None and streamed[after] - streamed[i] <= capacity:
                staying.append((after, problem.position[load], load, found))
            elif found:
                leaving += problem.size[load]
        for after, position, load, found in sorted(staying):
            if not found:
                drop(room[i] - problem.size[load], after)
                if held + problem.size[load] > room[i]:
                    continue
                held += problem.size[load]
                spans.setdefault(load, []).append([i])
            wanted[load] = after
            heapq.heappush(furthest, (-after, position, load))
        held -= leaving
    for load, found_at in spans.items():
        for first, *again in found_at:
            if again:
                yield Kept(load, first, again[-1], tuple(again))
