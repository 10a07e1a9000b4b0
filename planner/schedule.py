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

`schedule_problem` puts the graph into these terms, `schedule_orders` proposes orders, `schedule_walk` simulates one, and
`schedule_places` finds the places.

Nothing here knows about tensors, files or threads. `tests/planner/test_schedule.py` is the specification, situation by situation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from ..errors import BudgetError
from .schedule_orders import candidate_orders
from .schedule_places import Lane, place_kept, place_ring
from .schedule_problem import Problem, problem_of
from .schedule_walk import Walk, walk_order


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


def schedule(graph: nx.DiGraph[int], capacity: int, pipeline: int = 0) -> Schedule:
    """Order the tasks of `graph` and place their buffers within `capacity` bytes.

    Nodes carry `kind` (load, compute, save), `bytes` and `position`; names never matter. An edge between two saves says that one
    is written after the other: their steps come in this order, or the later one could hold the place for which the earlier one
    waits. `pipeline` is how many bytes are useful where two of the largest steps need less. Raises BudgetError, whose `needed`
    bytes would do, as would any more.
    """
    problem = problem_of(graph)
    orders = list(candidate_orders(problem))
    for walk in _walks(problem, orders, capacity):
        kept = place_kept(problem, walk)
        if _needed(walk, kept) <= capacity and not _by_luck(problem, walk, capacity):
            return _place(problem, walk, kept, capacity, pipeline)
    # Holes between kept loads may cost more than was thought: without them an order takes the least that it can.
    least = [(walk, place_kept(problem, walk)) for walk in _walks(problem, orders, 0)]
    walk, kept = min(least, key=lambda pair: _needed(*pair))
    needed = _needed(walk, kept)
    if needed > capacity:
        raise BudgetError(f"task {walk.order[walk.peak_step]} needs {needed} bytes at once", needed)
    return _place(problem, walk, kept, capacity, pipeline)


def _walks(problem: Problem, orders: Iterable[Sequence[int]], capacity: int) -> list[Walk]:
    """The orders simulated, the best first: one that fits, reads least, holds least, and reads each file forwards."""
    walks = (walk_order(problem, order, capacity) for order in orders)
    return sorted(walks, key=lambda walk: (max(walk.peak, capacity), walk.loaded, walk.peak, walk.jumps))


def _needed(walk: Walk, kept: Lane) -> int:
    """The least capacity for a walk whose kept buffers have these places."""
    return kept.size + max(walk.private, default=0)


def _by_luck(problem: Problem, walk: Walk, capacity: int) -> bool:
    """Whether an order fits only because kept loads happen to lie where results leave holes.

    In a larger budget other loads may be kept, and may not fit: luck must not decide what is too little.
    """
    if not any(item.again for item in walk.kept):
        return False
    plain = walk_order(problem, walk.order, 0)
    return _needed(plain, place_kept(problem, plain)) > capacity


def _place(problem: Problem, walk: Walk, kept: Lane, capacity: int, pipeline: int) -> Schedule:
    lane, places, reused_after = kept.size, kept.places, kept.reused_after
    largest = max(walk.private, default=0)
    ring = min(capacity - lane, max(2 * largest, pipeline - lane), sum(walk.private))
    offsets, afters = place_ring(walk.private, ring)
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
