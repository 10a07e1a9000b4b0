"""Orders of the computes that are worth simulating: the output's, the files', Liu's for trees, and a greedy one."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .schedule_problem import Problem

_Computes = int | tuple["_Computes", "_Computes"]
"""Computes in order, joined without copying."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A run of computes that needs `rise` bytes beyond what was held before it, and in the end gives back `fall` of its hill."""

    rise: int
    fall: int
    computes: _Computes


def candidate_orders(problem: Problem) -> Iterator[tuple[int, ...]]:
    """Orders worth simulating; the same ones whatever the tasks are called."""
    yield _in_order(problem, {c: (problem.position[c],) for c in problem.computes})
    reading = {c: min((problem.position[n] for n in problem.loads[c]), default=problem.position[c]) for c in problem.computes}
    yield _in_order(problem, {c: (reading[c], problem.position[c]) for c in problem.computes})
    if any(problem.inputs.values()):
        yield _tree_order(problem)
        yield _greedy(problem)


def _in_order(problem: Problem, key: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """A topological order that follows `key` wherever it may."""
    waiting = {c: len(problem.before[c]) for c in problem.computes}
    ready = [(key[c], c) for c in problem.computes if not waiting[c]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, compute = heapq.heappop(ready)
        order.append(compute)
        for following in problem.behind[compute]:
            waiting[following] -= 1
            if not waiting[following]:
                heapq.heappush(ready, (key[following], following))
    return tuple(order)


def _tree_order(problem: Problem) -> tuple[int, ...]:
    """Subtrees interleaved where they leave the least behind: on a tree no order has a lower peak.

    Each subtree is a row of segments that rise to a hill and fall to a valley, each hill below the one before it and each valley
    above; of several subtrees, the segments that fall furthest go first.
    Liu 1987, An application of generalized tree pebbling to sparse matrix factorization, section 4.
    """
    profiles: dict[int, list[_Segment]] = {}
    parent = {c: min(users, key=problem.position.__getitem__) for c, users in problem.outputs.items() if users}
    for compute in _in_order(problem, {c: (problem.position[c],) for c in problem.computes}):
        children = [c for c in problem.inputs[compute] if parent[c] == compute]
        if len(children) == 1:
            profile = profiles.pop(children[0])
        else:
            profile = []
            for segment in sorted((s for c in children for s in profiles.pop(c)), key=lambda segment: -segment.fall):
                _append(profile, segment)
        rise = problem.size[compute] + sum(problem.size[n] for n in problem.loads[compute])
        left = problem.size[compute] if problem.outputs[compute] else 0
        _append(profile, _Segment(rise, rise - left + sum(problem.size[c] for c in children), compute))
        profiles[compute] = profile
    rank: dict[int, tuple[int, ...]] = {}
    for root in problem.computes:
        waiting: list[_Computes] = [segment.computes for segment in reversed(profiles.pop(root, []))]
        while waiting:
            computes = waiting.pop()
            if isinstance(computes, int):
                rank[computes] = (len(rank),)
            else:
                waiting += reversed(computes)
    return _in_order(problem, rank)


def _append(profile: list[_Segment], segment: _Segment) -> None:
    """Add a segment, joined with those before it whose hill is no higher or whose valley is no lower."""
    while profile and (segment.rise >= profile[-1].fall or segment.rise <= segment.fall):
        before = profile.pop()
        rise = max(before.rise, before.rise - before.fall + segment.rise)
        fall = rise - (before.rise - before.fall + segment.rise - segment.fall)
        segment = _Segment(rise, fall, (before.computes, segment.computes))
    profile.append(segment)


def _greedy(problem: Problem) -> tuple[int, ...]:
    """At each step the ready compute that leaves the least behind."""
    users = {c: len(problem.outputs[c]) for c in problem.computes}
    waiting = {c: len(problem.before[c]) for c in problem.computes}

    def growth(compute: int) -> int:
        freed = sum(problem.size[c] for c in problem.inputs[compute] if users[c] == 1)
        return (problem.size[compute] if problem.outputs[compute] else 0) - freed

    ready = [(growth(c), problem.position[c], c) for c in problem.computes if not waiting[c]]
    heapq.heapify(ready)
    order = []
    while ready:
        grew, _, compute = heapq.heappop(ready)
        now = growth(compute)
        if now < grew:  # an input's other user has finished since: it frees more than was thought
            heapq.heappush(ready, (now, problem.position[compute], compute))
            continue
        order.append(compute)
        for source in problem.inputs[compute]:
            users[source] -= 1
        for following in problem.behind[compute]:
            waiting[following] -= 1
            if not waiting[following]:
                heapq.heappush(ready, (growth(following), problem.position[following], following))
    return tuple(order)
