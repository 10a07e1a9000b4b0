"""The order of the tasks, and a place in memory for every buffer: the peak is a fact before anything runs.

A *step* is a Compute with the loads it needs and the saves of its result. Most graphs are many small trees, so their steps touch
private buffers only:

    load a ─┐
    load b ─┼─ compute ── save          one step, released as a whole
    load c ─┘

Private buffers lie in a *ring*: each step takes the next stretch of it, and may begin once every step up to `after`, the last
whose stretch it overlaps, is released. As `after` is always an earlier step, the earliest unfinished step can always go on:
nothing can hang.

    ring    │ step 0 │  step 1  │ step 2 │ 3 │          step 4 overlaps 0 and 1, so its `after` is 1
            │     step 4     │ …

A buffer that later steps use too is *kept*:

    load a ─┬─ compute ── save          a second use near by: read once, kept between the two
            └─ compute ── save

    load a ─── compute ─┐
                        ├─ compute ── save          an intermediate result: kept until its last use
    load b ─────────────┘

Kept buffers lie beside the ring; each has a fixed place for its lifetime, from a first-fit walk over the steps. A load whose
next use is not near is dropped and read again: the input is still on disk, so nothing is ever spilled.

Nothing here knows about tensors, files or threads. `tests/planner/test_schedule.py` is the specification, situation by situation.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import networkx as nx

from ..errors import BudgetError


@dataclass(frozen=True, slots=True)
class Buffer:
    """A task's buffer and its place in the pool, in bytes."""

    task: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Step:
    """One Compute and all it needs.

    `loads` are filled for this step; `resident` are buffers that earlier steps filled; `output` is the place of the result
    (None: it has none of its own). `after`: all steps up to this one must be released before this step loads (-1: none).
    `needs`: steps whose Compute must be done before this one's.
    """

    compute: int
    loads: tuple[Buffer, ...]
    resident: tuple[Buffer, ...]
    output: Buffer | None
    saves: tuple[int, ...]
    after: int
    needs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps in order. `arena` is the exact bytes of all buffers' places; `peak` the Compute that needs the most at once."""

    steps: tuple[Step, ...]
    arena: int
    ring: int
    peak: int | None
    loaded: int


@dataclass(frozen=True, slots=True)
class _Problem:
    """The graph in the terms of this module: per compute its loads, input computes, saves; per buffer its size and users.

    `before` and `behind` are the computes between which the order is fixed: inputs, and those whose saves follow each other.
    """

    computes: tuple[int, ...]
    loads: Mapping[int, tuple[int, ...]]
    inputs: Mapping[int, tuple[int, ...]]
    outputs: Mapping[int, tuple[int, ...]]
    saves: Mapping[int, tuple[int, ...]]
    before: Mapping[int, tuple[int, ...]]
    behind: Mapping[int, tuple[int, ...]]
    size: Mapping[int, int]
    position: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A buffer that lives from step `first` to step `last`; `again` are the later steps that find a load in it."""

    task: int
    first: int
    last: int
    again: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Lane:
    """Places of the kept buffers.

    `places`: by step and task its offset, and whether it is filled in this step. `reused_after`: by step the last earlier step
    whose kept buffer gave its place to this step's.
    """

    size: int
    places: Mapping[tuple[int, int], tuple[int, bool]]
    reused_after: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Walk:
    """An order of the computes and what it costs: `peak` bytes at once if steps run one by one, `loaded` bytes read."""

    order: tuple[int, ...]
    kept: tuple[_Kept, ...]
    private: tuple[int, ...]
    peak: int
    peak_step: int
    loaded: int
    jumps: int


_Computes = int | tuple["_Computes", "_Computes"]
"""Computes in order, joined without copying."""


@dataclass(frozen=True, slots=True)
class _Segment:
    """A run of computes that needs `rise` bytes beyond what was held before it, and in the end gives back `fall` of its hill."""

    rise: int
    fall: int
    computes: _Computes


def schedule(graph: nx.DiGraph[int], capacity: int, pipeline: int = 0) -> Schedule:
    """Order the tasks of `graph` and place their buffers within `capacity` bytes.

    Nodes carry `kind` (load, compute, save), `bytes` and `position`; names never matter. An edge between two saves says that one
    is written after the other: their steps come in this order, or the later one could hold the place for which the earlier one
    waits. `pipeline` is how many bytes are useful where two of the largest steps need less. Raises BudgetError, whose `needed`
    bytes would do, as would any more.
    """
    problem = _problem(graph)
    orders = list(_candidates(problem))
    for walk in _walks(problem, orders, capacity):
        kept = _place_kept(problem, walk)
        if _needed(walk, kept) <= capacity and not _by_luck(problem, walk, capacity):
            return _place(problem, walk, kept, capacity, pipeline)
    # Holes between kept loads may cost more than was thought: without them an order takes the least that it can.
    least = [(walk, _place_kept(problem, walk)) for walk in _walks(problem, orders, 0)]
    walk, kept = min(least, key=lambda pair: _needed(*pair))
    needed = _needed(walk, kept)
    if needed > capacity:
        raise BudgetError(f"task {walk.order[walk.peak_step]} needs {needed} bytes at once", needed)
    return _place(problem, walk, kept, capacity, pipeline)


def _walks(problem: _Problem, orders: Iterable[Sequence[int]], capacity: int) -> list[_Walk]:
    """The orders simulated, the best first: one that fits, reads least, holds least, and reads each file forwards."""
    walks = (_walk(problem, order, capacity) for order in orders)
    return sorted(walks, key=lambda walk: (max(walk.peak, capacity), walk.loaded, walk.peak, walk.jumps))


def _problem(graph: nx.DiGraph[int]) -> _Problem:
    position: dict[int, int] = {n: data["position"] for n, data in graph.nodes(data=True)}
    is_kind: dict[int, str] = {n: data["kind"] for n, data in graph.nodes(data=True)}
    computes = sorted((n for n, kind in is_kind.items() if kind == "compute"), key=position.__getitem__)

    def near(nodes: Iterable[int], wanted: str) -> tuple[int, ...]:
        return tuple(sorted((n for n in nodes if is_kind[n] == wanted), key=position.__getitem__))

    inputs = {c: near(graph.predecessors(c), "compute") for c in computes}
    outputs = {c: near(graph.successors(c), "compute") for c in computes}
    saves = {c: near(graph.successors(c), "save") for c in computes}
    before, behind = dict(inputs), dict(outputs)
    made_by = {save: c for c in computes for save in saves[c]}
    for save, compute in made_by.items():
        for earlier in near(graph.predecessors(save), "save"):
            before[compute] += (made_by[earlier],)
            behind[made_by[earlier]] += (compute,)
    return _Problem(
        tuple(computes),
        {c: near(graph.predecessors(c), "load") for c in computes},
        inputs,
        outputs,
        saves,
        before,
        behind,
        {n: data["bytes"] for n, data in graph.nodes(data=True)},
        position,
    )


def _candidates(problem: _Problem) -> Iterator[tuple[int, ...]]:
    """Orders worth simulating; the same ones whatever the tasks are called."""
    yield _in_order(problem, {c: (problem.position[c],) for c in problem.computes})
    reading = {c: min((problem.position[n] for n in problem.loads[c]), default=problem.position[c]) for c in problem.computes}
    yield _in_order(problem, {c: (reading[c], problem.position[c]) for c in problem.computes})
    if any(problem.inputs.values()):
        yield _tree_order(problem)
        yield _greedy(problem)


def _in_order(problem: _Problem, key: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
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


def _tree_order(problem: _Problem) -> tuple[int, ...]:
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


def _greedy(problem: _Problem) -> tuple[int, ...]:
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


def _walk(problem: _Problem, order: Sequence[int], capacity: int) -> _Walk:
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
    return _Walk(tuple(order), tuple(kept), tuple(private), peak, peak_step, loaded, jumps)


def _intermediates(problem: _Problem, order: Sequence[int], at: Mapping[int, int]) -> Iterator[_Kept]:
    for compute in order:
        if problem.outputs[compute] and problem.size[compute]:
            yield _Kept(compute, at[compute], max(at[user] for user in problem.outputs[compute]))


def _shared_loads(problem: _Problem, order: Sequence[int], at: Mapping[int, int], capacity: int) -> Iterator[_Kept]:
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
                yield _Kept(load, first, again[-1], tuple(again))


def _needed(walk: _Walk, kept: _Lane) -> int:
    """The least capacity for a walk whose kept buffers have these places."""
    return kept.size + max(walk.private, default=0)


def _by_luck(problem: _Problem, walk: _Walk, capacity: int) -> bool:
    """Whether an order fits only because kept loads happen to lie where results leave holes.

    In a larger budget other loads may be kept, and may not fit: luck must not decide what is too little.
    """
    if not any(item.again for item in walk.kept):
        return False
    plain = _walk(problem, walk.order, 0)
    return _needed(plain, _place_kept(problem, plain)) > capacity


def _place(problem: _Problem, walk: _Walk, kept: _Lane, capacity: int, pipeline: int) -> Schedule:
    lane, places, reused_after = kept.size, kept.places, kept.reused_after
    largest = max(walk.private, default=0)
    ring = min(capacity - lane, max(2 * largest, pipeline - lane), sum(walk.private))
    offsets, afters = _place_ring(walk.private, ring)
    at = {compute: i for i, compute in enumerate(walk.order)}
    steps, loaded_at = [], {}
    for i, compute in enumerate(walk.order):
        cursor = lane + offsets[i]
        loads, resident, needs = [], [], {at[c] for c in problem.inputs[compute]}
        for load in problem.loads[compute]:
            size = problem.size[load]
            place = places.get((i, load))
            if place is None:
                loads.append(Buffer(load, cursor, size))
                cursor += size
            elif place[1]:
                loads.append(Buffer(load, place[0], size))
                loaded_at[load] = i
            else:
                resident.append(Buffer(load, place[0], size))
                needs.add(loaded_at[load])
        for source in problem.inputs[compute]:
            if problem.size[source]:
                resident.append(Buffer(source, places[(at[source], source)][0], problem.size[source]))
        output = None
        if problem.size[compute]:
            own = places.get((i, compute))
            output = Buffer(compute, own[0] if own else cursor, problem.size[compute])
        after = max(afters[i], reused_after.get(i, -1))
        steps.append(Step(compute, tuple(loads), tuple(resident), output, problem.saves[compute], after, tuple(sorted(needs))))
    peak = walk.order[walk.peak_step] if walk.order else None
    return Schedule(tuple(steps), lane + ring, ring, peak, walk.loaded)


def _place_ring(private: Sequence[int], ring: int) -> tuple[list[int], list[int]]:
    """Offsets of the steps' stretches, and for each the last earlier step whose stretch it overlaps (-1: none)."""
    offsets: list[int] = []
    afters: list[int] = []
    cursor, oldest, after = 0, 0, -1
    for i, size in enumerate(private):
        begin = cursor if cursor + size <= ring else 0
        # Walk the oldest stretches off the ring until this one is free; in a wrap the tail's stretches go too.
        end = begin + size
        if size:
            wrapped = begin < cursor
            while oldest < i and (
                private[oldest] == 0
                or (wrapped and offsets[oldest] >= cursor)
                or _overlap(offsets[oldest], private[oldest], begin, end)
            ):
                if private[oldest]:
                    after = oldest
                oldest += 1
            cursor = end
        offsets.append(begin)
        afters.append(after if size else -1)
    return offsets, afters


def _overlap(a: int, size: int, begin: int, end: int) -> bool:
    return a < end and begin < a + size


def _place_kept(problem: _Problem, walk: _Walk) -> _Lane:
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
    return _Lane(lane, places, reused_after)


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
