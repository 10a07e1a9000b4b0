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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """The graph in the terms of this module: per compute its loads, input computes, saves; per buffer its size and users."""

    computes: tuple[int, ...]
    loads: Mapping[int, tuple[int, ...]]
    inputs: Mapping[int, tuple[int, ...]]
    outputs: Mapping[int, tuple[int, ...]]
    saves: Mapping[int, tuple[int, ...]]
    size: Mapping[int, int]
    position: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A buffer that lives from step `first` to step `last`."""

    task: int
    first: int
    last: int


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


def schedule(graph: nx.DiGraph[int], capacity: int, pipeline: int = 0) -> Schedule:
    """Order the tasks of `graph` and place their buffers within `capacity` bytes.

    Nodes carry `kind` (load, compute, save), `bytes` and `position`; names never matter. `pipeline` is how many bytes of ring are
    useful beyond two of the largest steps. Raises BudgetError, whose `needed` bytes would do.
    """
    problem = _problem(graph)
    walks = [_walk(problem, order, capacity) for order in _candidates(problem)]
    best = min(walks, key=lambda walk: (walk.peak > capacity, walk.peak, walk.loaded, walk.jumps))
    return _place(problem, best, capacity, pipeline)


def _problem(graph: nx.DiGraph[int]) -> _Problem:
    position: dict[int, int] = {n: data["position"] for n, data in graph.nodes(data=True)}
    is_kind: dict[int, str] = {n: data["kind"] for n, data in graph.nodes(data=True)}
    computes = sorted((n for n, kind in is_kind.items() if kind == "compute"), key=position.__getitem__)

    def near(nodes: Iterable[int], wanted: str) -> tuple[int, ...]:
        return tuple(sorted((n for n in nodes if is_kind[n] == wanted), key=position.__getitem__))

    return _Problem(
        tuple(computes),
        {c: near(graph.predecessors(c), "load") for c in computes},
        {c: near(graph.predecessors(c), "compute") for c in computes},
        {c: near(graph.successors(c), "compute") for c in computes},
        {c: near(graph.successors(c), "save") for c in computes},
        {n: data["bytes"] for n, data in graph.nodes(data=True)},
        position,
    )


def _candidates(problem: _Problem) -> Iterator[tuple[int, ...]]:
    """Orders worth simulating; the same ones whatever the tasks are called."""
    yield _in_order(problem, {c: (problem.position[c],) for c in problem.computes})
    reading = {c: min((problem.position[n] for n in problem.loads[c]), default=problem.position[c]) for c in problem.computes}
    yield _in_order(problem, {c: (reading[c], problem.position[c]) for c in problem.computes})
    if any(problem.inputs.values()):
        yield _postorder(problem)
        yield _greedy(problem)


def _in_order(problem: _Problem, key: Mapping[int, tuple[int, ...]]) -> tuple[int, ...]:
    """A topological order that follows `key` wherever it may."""
    waiting = {c: len(problem.inputs[c]) for c in problem.computes}
    ready = [(key[c], c) for c in problem.computes if not waiting[c]]
    heapq.heapify(ready)
    order = []
    while ready:
        _, compute = heapq.heappop(ready)
        order.append(compute)
        for following in problem.outputs[compute]:
            waiting[following] -= 1
            if not waiting[following]:
                heapq.heappush(ready, (key[following], following))
    return tuple(order)


def _postorder(problem: _Problem) -> tuple[int, ...]:
    """Depth first, the child that needs the most beyond what it leaves behind first: on a tree no postorder has a lower peak.

    Liu 1986, On the storage requirement in the out-of-core multifrontal method, section 3.
    """
    need: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for compute in _in_order(problem, {c: (problem.position[c],) for c in problem.computes}):
        inputs = sorted(problem.inputs[compute], key=lambda c: (problem.size[c] - need[c], problem.position[c]))
        held, most = 0, 0
        for child in inputs:
            most = max(most, held + need[child])
            held += problem.size[child]
        own = problem.size[compute] + sum(problem.size[n] for n in problem.loads[compute])
        need[compute], children[compute] = max(most, held + own), inputs
    order: list[int] = []
    done: set[int] = set()
    for root in (c for c in problem.computes if not problem.outputs[c]):
        stack = [(root, iter(children[root]))] if root not in done else []
        while stack:
            compute, rest = stack[-1]
            following = next((c for c in rest if c not in done), None)
            if following is not None:
                stack.append((following, iter(children[following])))
                continue
            stack.pop()
            if compute not in done:
                done.add(compute)
                order.append(compute)
    return tuple(order)


def _greedy(problem: _Problem) -> tuple[int, ...]:
    """At each step the ready compute that leaves the least behind."""
    users = {c: len(problem.outputs[c]) for c in problem.computes}
    waiting = {c: len(problem.inputs[c]) for c in problem.computes}

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
        for following in problem.outputs[compute]:
            waiting[following] -= 1
            if not waiting[following]:
                heapq.heappush(ready, (growth(following), problem.position[following], following))
    return tuple(order)


def _walk(problem: _Problem, order: Sequence[int], capacity: int) -> _Walk:
    """Simulate an order step by step: which buffers are kept, what is read, and the most bytes held at once."""
    at = {compute: i for i, compute in enumerate(order)}
    kept = [*_intermediates(problem, order, at), *_shared_loads(problem, order, at, capacity)]
    held_at: dict[int, set[int]] = {}
    refilled: set[tuple[int, int]] = set()
    growth = [0] * (len(order) + 1)
    for item in kept:
        growth[item.first] += problem.size[item.task]
        growth[item.last + 1] -= problem.size[item.task]
    uses = _uses(problem, order)
    for item in kept:
        for step in uses.get(item.task, (item.first,)):
            if item.first <= step <= item.last:
                held_at.setdefault(step, set()).add(item.task)
                if step > item.first:
                    refilled.add((step, item.task))
    private, loaded, jumps, live, peak, peak_step, last = [], 0, 0, 0, 0, 0, -1
    for i, compute in enumerate(order):
        live += growth[i]
        held = held_at.get(i, set())
        own = sum(problem.size[n] for n in problem.loads[compute] if n not in held)
        if not problem.outputs[compute]:
            own += problem.size[compute]
        for load in problem.loads[compute]:
            if (i, load) not in refilled:
                loaded += problem.size[load]
                jumps += problem.position[load] < last
                last = problem.position[load]
        private.append(own)
        if live + own > peak:
            peak, peak_step = live + own, i
    return _Walk(tuple(order), tuple(kept), tuple(private), peak, peak_step, loaded, jumps)


def _uses(problem: _Problem, order: Sequence[int]) -> dict[int, list[int]]:
    """The steps that use each load, and each load only."""
    uses: dict[int, list[int]] = {}
    for i, compute in enumerate(order):
        for load in problem.loads[compute]:
            uses.setdefault(load, []).append(i)
    return uses


def _intermediates(problem: _Problem, order: Sequence[int], at: Mapping[int, int]) -> Iterator[_Kept]:
    for compute in order:
        if problem.outputs[compute] and problem.size[compute]:
            yield _Kept(compute, at[compute], max(at[user] for user in problem.outputs[compute]))


def _shared_loads(problem: _Problem, order: Sequence[int], at: Mapping[int, int], capacity: int) -> list[_Kept]:
    """Loads to keep between two of their steps: those whose next use is near, as long as they fit beside the steps.

    Nearest uses first, so what is dropped is what is wanted furthest in the future (Belady 1966).
    """
    uses = {load: steps for load, steps in _uses(problem, order).items() if len(steps) > 1 and problem.size[load]}
    if not uses:
        return []
    largest = max(sum(problem.size[n] for n in problem.loads[c]) + problem.size[c] for c in order)
    room = [capacity - 2 * largest] * len(order)
    for item in _intermediates(problem, order, at):
        for step in range(item.first, item.last + 1):
            room[step] -= problem.size[item.task]
    streamed = [0]
    for compute in order:
        streamed.append(streamed[-1] + sum(problem.size[n] for n in problem.loads[compute]) + problem.size[compute])
    gaps = [(b - a, problem.position[load], load, a, b) for load, steps in uses.items() for a, b in pairwise(steps)]
    kept: dict[int, list[tuple[int, int]]] = {}
    for _, _, load, first, last in sorted(gaps):
        size = problem.size[load]
        near = streamed[last] - streamed[first] <= capacity
        if near and all(room[step] >= size for step in range(first, last + 1)):
            for step in range(first, last + 1):
                room[step] -= size
            kept.setdefault(load, []).append((first, last))
    return [_Kept(load, first, last) for load, spans in kept.items() for first, last in _joined(spans)]


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans that meet become one."""
    spans.sort()
    first, last = spans[0]
    for a, b in spans[1:]:
        if a > last:
            yield first, last
            first = a
        last = b
    yield first, last


def _place(problem: _Problem, walk: _Walk, capacity: int, pipeline: int) -> Schedule:
    places, lane, reused_after = _place_kept(problem, walk)
    largest = max(walk.private, default=0)
    if lane + largest > capacity:
        peak = walk.order[walk.peak_step] if walk.order else None
        raise BudgetError(f"task {peak} needs {lane + largest} bytes at once", lane + largest)
    ring = min(capacity - lane, max(2 * largest, pipeline), sum(walk.private))
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


def _place_kept(problem: _Problem, walk: _Walk) -> tuple[dict[tuple[int, int], tuple[int, bool]], int, dict[int, int]]:
    """First-fit places for kept buffers.

    Returns the place (offset, whether it is filled here) by (step, task); the lane's size; and by step the last earlier step
    whose kept buffer gave its place to this step's.
    """
    uses = _uses(problem, walk.order)
    places: dict[tuple[int, int], tuple[int, bool]] = {}
    reused_after: dict[int, int] = {}
    live: list[tuple[int, int, int]] = []  # (offset, end, last step)
    gone: list[tuple[int, int, int]] = []
    lane = 0
    for item in sorted(walk.kept, key=lambda k: (k.first, -k.last, problem.position[k.task])):
        gone += [entry for entry in live if entry[2] < item.first]
        live = sorted(entry for entry in live if entry[2] >= item.first)
        size, offset = problem.size[item.task], 0
        for begin, end, _ in live:
            if begin - offset >= size:
                break
            offset = max(offset, end)
        before = [last for begin, end, last in gone if begin < offset + size and offset < end]
        if before:
            reused_after[item.first] = max(reused_after.get(item.first, -1), *before)
            gone = [entry for entry in gone if not (offset <= entry[0] and entry[1] <= offset + size)]
        live.append((offset, offset + size, item.last))
        lane = max(lane, offset + size)
        places[(item.first, item.task)] = (offset, True)
        for step in uses.get(item.task, ()):
            if item.first < step <= item.last:
                places[(step, item.task)] = (offset, False)
    return places, lane, reused_after
