"""The order of the tasks, and a place in memory for every buffer: the peak is a fact before anything runs.

A *step* is a Compute with the loads it needs and the saves of its result. Most graphs are many small trees, so their steps touch
private buffers only:

    load a ─┐
    load b ─┼─ compute ── save          one step, released as a whole
    load c ─┘

Private buffers lie in a *ring*: each takes the next bytes of it, and may be filled once the earlier steps whose bytes it overlaps
are done with them. As it waits for earlier steps only, the earliest unfinished step can always go on: nothing can hang.

    ring    │ a b c out │ a b c out │ a b c out │ a b          step 3's a and b follow step 2; its c and out go where step 0's
            │ c out     │                                      a and b were, as soon as step 0 is computed

A buffer that later steps use too is *kept*:

    load a ─┬─ compute ── save          a second use near by: read once, kept between the two
            └─ compute ── save

    load a ─── compute ─┐
                        ├─ compute ── save          an intermediate result: kept until its last use
    load b ─────────────┘

Kept buffers lie beside the ring; each has a fixed place for its lifetime, from a first-fit walk over the steps. A load whose
next use is not near is dropped and read again: the input is still on disk, so nothing is ever spilled.

`schedule_problem` puts the graph into these terms, `schedule_orders` proposes orders, `schedule_walk` simulates one,
`schedule_places` and `schedule_ring` find the places.

Nothing here knows about tensors, files or threads. `tests/planner/test_schedule.py` is the specification, situation by situation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx

from ..errors import BudgetError
from .schedule_orders import candidate_orders
from .schedule_places import Lane, place_kept
from .schedule_problem import Problem, problem_of
from .schedule_ring import Private, place_ring
from .schedule_walk import Walk, walk_order


@dataclass(frozen=True, slots=True)
class Buffer:
    """A task's buffer and its place in the pool, in bytes.

    The place is free once all steps up to `computed` are computed and all up to `saved` are saved (-1: it waits for none).
    """

    task: int
    offset: int
    nbytes: int
    computed: int = -1
    saved: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """One Compute and all it needs.

    `loads` are filled for this step; `resident` are buffers that earlier steps filled; `output` is the place of the result
    (None: it has none of its own). `needs`: steps whose Compute must be done before this one's.
    """

    compute: int
    loads: tuple[Buffer, ...]
    resident: tuple[Buffer, ...]
    output: Buffer | None
    saves: tuple[int, ...]
    needs: tuple[int, ...]

    @property
    def filled(self) -> tuple[Buffer, ...]:
        """The buffers that this step fills, in the order in which they are taken."""
        return self.loads if self.output is None else (*self.loads, self.output)


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
    lane = kept.size
    ring = min(capacity - lane, max(2 * max(walk.private, default=0), pipeline - lane), sum(walk.private))
    at = {compute: i for i, compute in enumerate(walk.order)}
    private = [[task for task in _buffers(problem, c) if (i, task) not in kept.places] for i, c in enumerate(walk.order)]
    placed = place_ring([[Private(problem.size[task], _is_saved(problem, task)) for task in tasks] for tasks in private], ring)
    now: dict[int, Buffer] = {}  # where each task's bytes lie at this step
    filled_at: dict[int, int] = {}
    steps = []
    for i, compute in enumerate(walk.order):
        found = [task for task in _buffers(problem, compute) if not kept.places.get((i, task), (0, True))[1]]
        for task, place in zip(private[i], placed[i], strict=True):
            now[task] = Buffer(task, lane + place.offset, problem.size[task], place.computed, place.saved)
        for task in _buffers(problem, compute):
            if (i, task) in kept.places and task not in found:
                now[task] = Buffer(task, kept.places[i, task][0], problem.size[task], -1, kept.reused_after.get(i, -1))
                filled_at[task] = i
        sources = [source for source in problem.inputs[compute] if problem.size[source]]
        needs = {at[source] for source in problem.inputs[compute]} | {filled_at[task] for task in found}
        steps.append(
            Step(
                compute,
                tuple(now[load] for load in problem.loads[compute] if load not in found),
                tuple(now[task] for task in (*found, *sources)),
                now[compute] if problem.size[compute] else None,
                problem.saves[compute],
                tuple(sorted(needs)),
            )
        )
    peak = walk.order[walk.peak_step] if walk.order else None
    return Schedule(tuple(steps), lane + ring, ring, peak, walk.loaded)


def _buffers(problem: Problem, compute: int) -> tuple[int, ...]:
    """The tasks whose buffers a step fills, unless an earlier one did."""
    return (*problem.loads[compute], compute) if problem.size[compute] else problem.loads[compute]


def _is_saved(problem: Problem, task: int) -> bool:
    """Whether a private buffer is needed until its step is saved; else until it is computed."""
    return task in problem.moved or bool(problem.saves.get(task))
