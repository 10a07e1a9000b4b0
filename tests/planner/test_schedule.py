"""The specification of the scheduler: small drawn graphs, one situation each, then random graphs.

In the drawings every buffer has 1 byte unless a number stands beside it, and computes are numbered in the order of the output.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import networkx as nx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from trials import trials
from weft.errors import BudgetError
from weft.planner import schedule as module
from weft.planner.schedule import Buffer, Schedule, schedule
from weft.planner.schedule_orders import candidate_orders
from weft.planner.schedule_problem import Problem, problem_of
from weft.planner.schedule_walk import walk_order


class Drawing:
    """A graph whose tasks have names; positions follow the order of the calls."""

    def __init__(self) -> None:
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.names: dict[str, int] = {}

    def load(self, name: str, nbytes: int = 1) -> None:
        self._add(name, "load", nbytes)

    def compute(self, name: str, *needs: str, nbytes: int = 1, saved: bool = True) -> None:
        """A compute of loads and earlier computes; loads that are not there yet have 1 byte."""
        for need in needs:
            if need not in self.names:
                self.load(need)
        self._add(name, "compute", nbytes)
        self.graph.add_edges_from((self.names[need], self.names[name]) for need in needs)
        if saved:
            self._add(f"save {name}", "save", 0)
            self.graph.add_edge(self.names[name], self.names[f"save {name}"])

    def copy(self, name: str, load: str) -> None:
        """A compute without a buffer of its own, whose save takes the load's bytes."""
        self.compute(name, load, nbytes=0)
        self.graph.add_edge(self.names[load], self.names[f"save {name}"])

    def _add(self, name: str, kind: str, nbytes: int) -> None:
        node = self.names[name] = len(self.names)
        self.graph.add_node(node, kind=kind, bytes=nbytes, position=node)

    def order(self, plan: Schedule) -> str:
        """The computes' names in order."""
        return " ".join(self._name(step.compute) for step in plan.steps)

    def reads(self, plan: Schedule) -> str:
        """The loads' names in the order they are read, a bar between steps."""
        return " | ".join(" ".join(self._name(buffer.task) for buffer in step.loads) for step in plan.steps)

    def waits(self, plan: Schedule) -> str:
        """By step its buffers, and for which steps each waits: 0c until 0 is computed, 0s until it is saved."""
        return " | ".join(" ".join(self._name(buffer.task) + self._wait(buffer) for buffer in step.filled) for step in plan.steps)

    def _wait(self, buffer: Buffer) -> str:
        marks = [f"{step}{mark}" for step, mark in ((buffer.computed, "c"), (buffer.saved, "s")) if step >= 0]
        return f"({','.join(marks)})" if marks else ""

    def peak(self, plan: Schedule) -> str | None:
        return None if plan.peak is None else self._name(plan.peak)

    def _name(self, node: int) -> str:
        return next(name for name, number in self.names.items() if number == node)


def merges(count: int) -> Drawing:
    """a0 ─┬─ 0 ── save,   a1 ─┬─ 1 ── save,   …"""
    drawing = Drawing()
    for i in range(count):
        drawing.compute(f"{i}", f"a{i}", f"b{i}")
    return drawing


# Situations.


def test_empty() -> None:
    plan = schedule(nx.DiGraph(), 0)
    assert plan == Schedule((), 0, 0, None, 0)


def test_independent_merges_run_in_the_order_of_the_output_and_overlap() -> None:
    """
    a0 ─┬─ 0 ── save        a1 ─┬─ 1 ── save        a2 ─┬─ 2 ── save
    b0 ─┘                   b1 ─┘                   b2 ─┘

    Two steps of 3 bytes fit the ring: one is read while the other is computed.
    """
    drawing = merges(4)
    plan = schedule(drawing.graph, 100)
    assert drawing.order(plan) == "0 1 2 3"
    assert drawing.reads(plan) == "a0 b0 | a1 b1 | a2 b2 | a3 b3"
    assert (plan.arena, plan.ring, plan.loaded) == (6, 6, 8)
    assert drawing.waits(plan) == "a0 b0 0 | a1 b1 1 | a2(0c) b2(0c) 2(0c,0s) | a3(1c,0s) b3(1c,0s) 3(1c,1s)"
    assert all(step.needs == () and step.resident == () and len(step.saves) == 1 for step in plan.steps)


def test_a_pipeline_makes_the_ring_longer_but_no_longer_than_the_budget_or_the_work() -> None:
    drawing = merges(4)
    assert [schedule(drawing.graph, 100, pipeline).ring for pipeline in (0, 9, 50)] == [6, 9, 12]
    assert schedule(drawing.graph, 8, 50).ring == 8


def test_one_step_as_large_as_the_budget() -> None:
    """With room for one step only, inputs wait until the one before is computed, the result until it is saved."""
    drawing = merges(3)
    plan = schedule(drawing.graph, 3)
    assert plan.arena == 3
    assert drawing.waits(plan) == "a0 b0 0 | a1(0c) b1(0c) 1(0c,0s) | a2(1c,0s) b2(1c,0s) 2(1c,1s)"
    with pytest.raises(BudgetError) as error:
        schedule(drawing.graph, 2)
    assert error.value.needed == 3


def test_the_ring_wraps_around() -> None:
    """
    ring of 8    │ a0 b0 0 │ a1 b1 1 │ a2 b2 │      a step is cut where the ring ends;
                 │ 2 │ a3 b3 3 │ large       │      step 4's result waits for 2's to be saved, its load for all of 1.
    """
    drawing = merges(4)
    drawing.load("large", 4)
    drawing.compute("4", "large")
    plan = schedule(drawing.graph, 8)
    assert [[buffer.offset for buffer in step.filled] for step in plan.steps] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 0],
        [1, 2, 3],
        [4, 0],
    ]
    waits = "a0 b0 0 | a1 b1 1 | a2 b2 2(0c) | a3(0c) b3(0c,0s) 3(1c,0s) | large(2c,1s) 4(2c,2s)"
    assert drawing.waits(plan) == waits


def test_a_step_that_would_meet_itself_begins_at_the_beginning() -> None:
    """
    ring of 6    │ 0: 2 │ a1: 3   │·│     step 1's second load of 2 would go to 0 and 1, its result to 2: where its first load is;
                 │ a1: 3 │ b1: 2 │ 1 │    so all of it lies at the beginning.
    """
    drawing = Drawing()
    drawing.load("a0", 2)
    drawing.compute("0", "a0", nbytes=0)
    drawing.load("a1", 3)
    drawing.load("b1", 2)
    drawing.compute("1", "a1", "b1")
    plan = schedule(drawing.graph, 6)
    assert [[buffer.offset for buffer in step.filled] for step in plan.steps] == [[0], [0, 3, 5]]
    assert drawing.waits(plan) == "a0 | a1(0c) b1(0c) 1(0c)"


def test_a_tail_that_a_large_load_covered_is_waited_for() -> None:
    """
    ring of 6    │ 0: 2 │  1: 4     │     step 2 covers all of 0 and part of 1,
                 │  2: 4     │ 3: 2 │     and so step 3 has nothing left to wait for but 1.
    """
    drawing = Drawing()
    for i, nbytes in enumerate((2, 4, 4, 2)):
        drawing.load(f"a{i}", nbytes)
        drawing.compute(f"{i}", f"a{i}", nbytes=0)
    plan = schedule(drawing.graph, 6)
    assert [step.loads[0].offset for step in plan.steps] == [0, 2, 0, 4]
    assert drawing.waits(plan) == "a0 | a1 | a2(1c) | a3(1c)"


def test_what_is_saved_as_it_was_loaded_keeps_its_place_until_it_is_saved() -> None:
    drawing = Drawing()
    drawing.copy("0", "a")
    drawing.copy("1", "b")
    assert drawing.waits(schedule(drawing.graph, 1)) == "a | b(0s)"


def test_a_load_shared_by_neighbours_is_read_once() -> None:
    """
    a ─┬─ 0 ── save
       └─ 1 ── save
    """
    drawing = Drawing()
    drawing.compute("0", "a")
    drawing.compute("1", "a")
    plan = schedule(drawing.graph, 100)
    assert drawing.reads(plan) == "a | "
    assert plan.loaded == 1
    filled, found = plan.steps[0].loads[0], plan.steps[1].resident[0]
    assert filled == found
    assert plan.steps[1].needs == (0,), "it must be filled before it is used"


def test_a_shared_load_whose_next_use_is_far_is_read_again() -> None:
    """
    a ─┬─ 0            between the two uses more is read than the budget holds
       │   1 … 8
       └─ 9
    """
    drawing = Drawing()
    drawing.compute("0", "a", "first")
    for i in range(1, 9):
        drawing.compute(f"{i}", f"b{i}", f"c{i}")
    drawing.compute("9", "first0", "a")
    drawing.graph.nodes[drawing.names["a"]]["position"] = 1000  # reading order keeps the steps apart too
    tight, wide = schedule(drawing.graph, 12), schedule(drawing.graph, 40)
    assert drawing.order(tight) == drawing.order(wide) == "0 1 2 3 4 5 6 7 8 9"
    assert (tight.loaded, wide.loaded) == (20, 19)
    assert "a" in drawing.reads(tight).rsplit("|", 1)[1]
    assert "a" not in drawing.reads(wide).rsplit("|", 1)[1]


def test_of_two_shared_loads_the_one_wanted_furthest_in_the_future_is_read_again() -> None:
    """
    a b ─── 0
    a c ─── 1        room for one kept load: a is wanted first
    b d ─── 2
    """
    drawing = Drawing()
    drawing.compute("0", "a", "b", nbytes=0)
    drawing.compute("1", "a", "c", nbytes=0)
    drawing.compute("2", "b", "d", nbytes=0)
    assert drawing.reads(schedule(drawing.graph, 5)) == "a b | c | b d"
    assert drawing.reads(schedule(drawing.graph, 6)) == "a b | c | d"
    assert drawing.reads(schedule(drawing.graph, 4)) == "a b | a c | b d"


def test_duplicated_layers_are_read_once() -> None:
    """
    a ─┬─ 0 ── save        A passthrough that repeats layers a, b, c: in the order of the output the second use is
    b ─│┬─ 1 ── save       far away; in the order of the input it is next, and every byte is read once, forwards.
    c ─││┬─ 2 ── save
       └││─ 3 ── save
        └│─ 4 ── save
         └─ 5 ── save
    """
    drawing = Drawing()
    for i in range(6):
        drawing.copy(f"{i}", "abc"[i % 3])
    plan = schedule(drawing.graph, 3)
    assert drawing.order(plan) == "0 3 1 4 2 5"
    assert drawing.reads(plan) == "a |  | b |  | c | "
    assert (plan.loaded, plan.arena) == (3, 1)


def test_a_load_that_is_wanted_sooner_takes_the_place_of_one_that_is_held() -> None:
    """
    x ─ 0 ────────── 3        y ─ 1 ─ 2        4 is large, so that beside two such steps there is room for x or y
    """
    drawing = Drawing()
    for i, shared in enumerate("xyyx"):
        drawing.load(f"a{i}")
        if shared not in drawing.names:
            drawing.load(shared, 2)
        drawing.compute(f"{i}", f"a{i}", shared, nbytes=0)
    drawing.load("large", 10)
    drawing.compute("4", "large", nbytes=0)
    for shared in "xy":
        drawing.graph.nodes[drawing.names[shared]]["position"] += 1000  # reading order is the order of the output
    assert drawing.reads(schedule(drawing.graph, 22)) == "a0 x | a1 y | a2 | a3 x | large"
    assert drawing.reads(schedule(drawing.graph, 24)) == "a0 x | a1 y | a2 | a3 | large"


def test_a_load_makes_room_for_an_intermediate_result() -> None:
    """
    x ─┬─ 0     1 ─── 2     4 is large;       0, 1, 2, 3, 4 can only run in this order
       └───────────────── 3
    """
    drawing = Drawing()
    drawing.load("x", 2)
    drawing.compute("0", "x", nbytes=0, saved=False)
    drawing.compute("1", "0", "a1", nbytes=1, saved=False)
    drawing.compute("2", "1", "a2", nbytes=0, saved=False)
    drawing.compute("3", "2", "x", nbytes=0, saved=False)
    drawing.load("large", 10)
    drawing.compute("4", "3", "large", nbytes=0)
    assert drawing.reads(schedule(drawing.graph, 22)) == "x | a1 | a2 | x | large"
    assert drawing.reads(schedule(drawing.graph, 23)) == "x | a1 | a2 |  | large"


def test_reading_less_is_worth_memory_that_is_there() -> None:
    """
    x ─┬─ 0 ─── p ─┐       1 … 9        In the order of the output, x and p are dropped and read again.
       └─ 10       │       11 … 19      The order 0 10 20 reads them once, but p is held while 10, the largest,
                   └─ 20                runs: one byte more at once.
    """
    drawing = Drawing()
    drawing.compute("0", "x", "p")
    drawing.load("large", 4)
    for i in range(1, 20):
        drawing.compute(f"{i}", *(("x", "large") if i == 10 else (f"a{i}", f"b{i}")))
    drawing.compute("20", "p")
    plan = schedule(drawing.graph, 14)
    assert drawing.order(plan).startswith("0 10 20 1 2 3")
    assert plan.loaded == 2 + 4 + 18 * 2


def test_a_copy_has_no_output_and_is_saved_from_its_load() -> None:
    """a ─── 0 ── save,  the save reads a"""
    drawing = Drawing()
    drawing.copy("0", "a")
    (step,) = schedule(drawing.graph, 1).steps
    assert step.output is None
    assert [buffer.nbytes for buffer in step.loads] == [1]
    assert step.saves == (drawing.names["save 0"],)


def test_an_intermediate_result_is_kept_until_its_last_use() -> None:
    """
    a ── 0 ─┬─ 1 ── save
            │  2 ── save  (of its own load)
            └─ 3 ── save
    """
    drawing = Drawing()
    drawing.compute("0", "a", saved=False)
    drawing.compute("1", "0", "b")
    drawing.compute("2", "c")
    drawing.compute("3", "0", "d")
    plan = schedule(drawing.graph, 100)
    output = plan.steps[0].output
    assert output is not None
    at = {name: i for i, name in enumerate(drawing.order(plan).split())}
    for user in ("1", "3"):
        step = plan.steps[at[user]]
        assert step.resident == (output,)
        assert step.needs == (at["0"],)
    others = [buffer for step in plan.steps for buffer in (*step.loads, step.output) if buffer and buffer.task != output.task]
    assert not any(overlap(output, other) for other in others)


def test_a_chain_of_intermediates_takes_turns_in_two_places() -> None:
    """a ── 0 ── 1 ── 2 ── 3 ── save: an input is needed while its output is computed, not longer."""
    drawing = Drawing()
    drawing.compute("0", "a", saved=False)
    for i in range(1, 4):
        drawing.compute(f"{i}", f"{i - 1}", saved=i == 3)
    plan = schedule(drawing.graph, 3)
    assert plan.arena == 3
    outputs = [step.output.offset for step in plan.steps[:3] if step.output]
    assert outputs == [0, 1, 0]
    assert plan.steps[2].output and plan.steps[2].output.saved == 1, "2 takes 0's place, which 1 still reads"


def test_the_child_that_leaves_least_behind_goes_first() -> None:
    """
    a:10 ── 0:5 ─┐              0 first holds 5 while 1 needs 21: 26
                 ├─ 2 ── save   1 first holds 1 while 0 needs 15: 21 in all
    b:20 ── 1:1 ─┘
    """
    drawing = Drawing()
    drawing.load("a", 10)
    drawing.compute("0", "a", nbytes=5, saved=False)
    drawing.load("b", 20)
    drawing.compute("1", "b", nbytes=1, saved=False)
    drawing.compute("2", "0", "1")
    plan = schedule(drawing.graph, 26)
    assert drawing.order(plan) == "1 0 2"
    assert drawing.peak(plan) == "1"


def test_subtrees_are_interleaved_where_that_needs_less() -> None:
    """
    a:10 ── 0:1 ── 2:5 ─┐             Depth first holds 2's 5 bytes while 1 needs 11;
                        ├─ 4 ── save  both of 0 and 1 first, the most is 12.
    b:10 ── 1:1 ── 3:5 ─┘
    """
    drawing = Drawing()
    for i, load in ((0, "a"), (1, "b")):
        drawing.load(load, 10)
        drawing.compute(f"{i}", load, nbytes=1, saved=False)
        drawing.compute(f"{i + 2}", f"{i}", nbytes=5, saved=False)
    drawing.compute("4", "2", "3")
    problem = problem_of(drawing.graph)
    walk = module._walks(problem, list(candidate_orders(problem)), 0)[0]
    assert walk.peak == 12


def test_statistics_come_before_the_map_and_hold_nothing() -> None:
    """
    a0 ── s0        s0 ── s1        a0' ── 0 ── save     (s1 ── 0, s1 ── 1)
    a1 ── s1                        a1' ── 1 ── save

    Statistics have no buffer, only an order; the map reads its bytes again, and its tiles need not wait for each other.
    """
    drawing = Drawing()
    drawing.compute("s0", "a0", nbytes=0, saved=False)
    drawing.compute("s1", "s0", "a1", nbytes=0, saved=False)
    drawing.compute("0", "s1", "a0'")
    drawing.compute("1", "s1", "a1'")
    plan = schedule(drawing.graph, 4)
    assert drawing.order(plan) == "s0 s1 0 1"
    assert [step.needs for step in plan.steps] == [(), (0,), (1,), (1,)]
    assert all(step.resident == () for step in plan.steps)
    assert plan.arena == 4


def test_saves_that_follow_each_other_fix_the_order_of_their_steps() -> None:
    """
    a ── 0 ── save ─┐            In the order of reading 1 would come first, beside 2, and hold its place until 0 is saved;
                    ▼            0 could wait for that very place.
    x ─┬─ 1 ── save
       └─ 2 ── save
    """
    drawing = Drawing()
    drawing.compute("2", "x")
    for i in range(9):
        drawing.compute(f"other {i}", f"b{i}")
    drawing.compute("0", "a")
    drawing.compute("1", "x")
    assert drawing.order(schedule(drawing.graph, 6)).startswith("2 1")
    drawing.graph.add_edge(drawing.names["save 0"], drawing.names["save 1"])
    plan = schedule(drawing.graph, 6)
    assert drawing.order(plan).endswith("0 1")
    assert plan.steps[-1].needs == (), "they may be computed side by side"


def test_tasks_without_bytes_cost_nothing_and_are_not_lost() -> None:
    """z:0 ── 0:0 ── save, between two ordinary merges"""
    drawing = Drawing()
    drawing.compute("0", "a")
    drawing.load("z", 0)
    drawing.compute("1", "z", nbytes=0)
    drawing.compute("2", "b")
    plan = schedule(drawing.graph, 4)
    assert drawing.order(plan) == "0 1 2"
    assert drawing.reads(plan) == "a | z | b"
    assert plan.arena == 4
    assert drawing.waits(plan).split(" | ")[1] == "z"


def test_a_graph_of_no_bytes_needs_no_memory() -> None:
    drawing = Drawing()
    drawing.load("z", 0)
    drawing.compute("0", "z", nbytes=0)
    plan = schedule(drawing.graph, 0)
    assert plan.arena == 0
    assert len(plan.steps) == 1


def test_too_small_a_budget_names_what_would_do() -> None:
    drawing = merges(1)
    drawing.load("large", 40)
    drawing.compute("1", "large", nbytes=7)
    with pytest.raises(BudgetError) as error:
        schedule(drawing.graph, 46)
    assert error.value.needed == 47
    assert drawing.peak(schedule(drawing.graph, 47)) == "1"


# Random graphs.


def make_graph(
    loads: Sequence[int], computes: Sequence[tuple[list[int], list[int], int, bool]], tiles: int = 1
) -> nx.DiGraph[int]:
    """`computes`: which of the loads, which of the earlier computes (modulo how many there are), bytes, whether in place.

    So many neighbours as `tiles` says are one tensor, whose saves follow each other.
    """
    drawing = Drawing()
    for i, (wanted, inputs, nbytes, in_place) in enumerate(computes):
        names = [f"a{n % len(loads)}" for n in wanted] if loads else []
        for name in names:
            if name not in drawing.names:
                drawing.load(name, loads[int(name[1:])])
        names += [f"{n % i}" for n in inputs] if i else []
        if in_place and wanted and loads:
            drawing.compute(f"{i}", *names, nbytes=0)
            drawing.graph.add_edge(drawing.names[names[0]], drawing.names[f"save {i}"])
        else:
            drawing.compute(f"{i}", *names, nbytes=nbytes, saved=nbytes % 2 == 0 or not inputs)
    saves = [drawing.names.get(f"save {i}") for i in range(len(computes))]
    for i, (a, b) in enumerate(pairwise(saves)):
        if a is not None and b is not None and (i + 1) % tiles:
            drawing.graph.add_edge(a, b)
    return drawing.graph


sizes = st.sampled_from([0, 1, 1, 2, 3, 5, 8, 21])
few = st.lists(st.integers(0, 11), max_size=3)
graphs = st.builds(
    make_graph,
    st.lists(sizes, min_size=1, max_size=12),
    st.lists(st.tuples(few, st.one_of(st.just([]), few), sizes, st.booleans()), max_size=12),
    st.sampled_from([1, 1, 3]),
)


# Kept between 0 and 1, the load would lie where 2 and 3 do later, and one byte less than 8 would do, by luck:
#
#     a ─┬─ 0:0 ── save
#        └─ 1:2 ── save
#           2:3 ── 3:2 ── 4:0 ── save
LOAD_IN_A_HOLE = make_graph(
    [1], [([0], [], 0, False), ([0], [], 2, False), ([], [], 3, False), ([], [2], 2, False), ([], [3], 0, False)]
)


def overlap(a: Buffer, b: Buffer) -> bool:
    return a.offset < b.offset + b.nbytes and b.offset < a.offset + a.nbytes and a.nbytes > 0 and b.nbytes > 0


def of_kind(graph: nx.DiGraph[int], kind: str) -> set[int]:
    return {node for node, data in graph.nodes(data=True) if data["kind"] == kind}


def near(graph: nx.DiGraph[int], nodes: Iterator[int], kind: str) -> set[int]:
    return {node for node in nodes if graph.nodes[node]["kind"] == kind}


def check(graph: nx.DiGraph[int], plan: Schedule, capacity: int) -> None:
    """Nothing is lost, nothing comes before what it needs, and everything lies in the arena."""
    assert plan.arena <= capacity
    computes = [step.compute for step in plan.steps]
    assert sorted(computes) == sorted(of_kind(graph, "compute"))
    assert sorted(save for step in plan.steps for save in step.saves) == sorted(of_kind(graph, "save"))
    assert {buffer.task for step in plan.steps for buffer in step.loads} == of_kind(graph, "load")
    at = {compute: i for i, compute in enumerate(computes)}
    saved_at = {save: i for i, step in enumerate(plan.steps) for save in step.saves}
    assert all(saved_at[a] < saved_at[b] for a, b in graph.edges if a in saved_at)
    read = 0
    for i, step in enumerate(plan.steps):
        before = list(graph.predecessors(step.compute))
        assert set(step.saves) == near(graph, graph.successors(step.compute), "save")
        assert all(max(buffer.computed, buffer.saved) < i for buffer in step.filled)
        assert all(need < i for need in step.needs)
        assert {at[c] for c in near(graph, iter(before), "compute")} <= set(step.needs)
        given_loads = [buffer.task for buffer in (*step.loads, *step.resident)]
        assert len(given_loads) == len(set(given_loads))
        wanted = near(graph, iter(before), "load") | {c for c in near(graph, iter(before), "compute") if graph.nodes[c]["bytes"]}
        assert set(given_loads) == wanted
        assert (step.output is not None) == (graph.nodes[step.compute]["bytes"] > 0)
        if step.output is not None:
            assert step.output.task == step.compute
        for buffer in places(plan, i):
            assert buffer.nbytes == graph.nodes[buffer.task]["bytes"]
            assert 0 <= buffer.offset <= buffer.offset + buffer.nbytes <= plan.arena
        read += sum(buffer.nbytes for buffer in step.loads)
    assert plan.loaded == read


def places(plan: Schedule, number: int) -> list[Buffer]:
    step = plan.steps[number]
    return [*step.resident, *step.filled]


def run(graph: nx.DiGraph[int], plan: Schedule, luck: random.Random) -> None:
    """Execute a schedule as its promises allow, each time doing something that may be done; the pool's bytes say who wrote them.

    What a place holds is (task, the step that filled it), so that a buffer overwritten too early, or used too late, is seen.
    """
    pool: list[tuple[int, int] | None] = [None] * plan.arena
    steps = plan.steps
    reading, here, computed, saved = set[tuple[int, Buffer]](), set[tuple[int, Buffer]](), set[int](), set[int]()
    order = [(number, buffer) for number, step in enumerate(steps) for buffer in step.filled]
    taken = 0
    made_by = {save: number for number, step in enumerate(steps) for save in step.saves}
    saved_before = [[made_by[s] for save in step.saves for s in graph.predecessors(save) if s in made_by] for step in steps]
    # Which step filled what a step finds.
    source: dict[tuple[int, int], int] = {}
    latest: dict[int, int] = {}
    for number, step in enumerate(steps):
        for buffer in step.resident:
            source[number, buffer.task] = latest[buffer.task]
        for buffer in step.filled:
            latest[buffer.task] = source[number, buffer.task] = number

    def holds(number: int, buffer: Buffer) -> None:
        expected = (buffer.task, source[number, buffer.task])
        held = pool[buffer.offset : buffer.offset + buffer.nbytes]
        assert held == [expected] * buffer.nbytes, f"step {number} wants {expected} and finds {held}"

    def free(buffer: Buffer) -> bool:
        return all(n in computed for n in range(buffer.computed + 1)) and all(n in saved for n in range(buffer.saved + 1))

    while len(saved) < len(steps):
        may_take = taken < len(order) and free(order[taken][1])
        ready = [n for n, step in enumerate(steps) if n not in computed and all((n, buffer) in here for buffer in step.filled)]
        may_compute = [n for n in ready if all(need in computed for need in steps[n].needs)]
        may_save = [n for n in computed - saved if all(e in saved for e in saved_before[n])]
        choices: list[tuple[str, Any]] = [("take", None)] if may_take else []
        choices += [("read", one) for one in sorted(reading, key=order.index)]
        choices += [("compute", n) for n in may_compute] + [("save", n) for n in sorted(may_save)]
        assert choices, "nothing can go on"
        what, which = luck.choice(choices)
        if what == "take":
            number, buffer = order[taken]
            taken += 1
            reading.add((number, buffer))
            pool[buffer.offset : buffer.offset + buffer.nbytes] = [(buffer.task, number)] * buffer.nbytes
        elif what == "read":
            reading.remove(which)
            here.add(which)
        elif what == "compute":
            computed.add(which)
            for buffer in places(plan, which):
                holds(which, buffer)
        else:  # the save still reads them
            saved.add(which)
            sources = {task for save in steps[which].saves for task in graph.predecessors(save)}
            for buffer in places(plan, which):
                if buffer.task in sources:
                    holds(which, buffer)


@trials(500, derandomize=True)
@given(graph=graphs, capacity=st.integers(0, 120), pipeline=st.sampled_from([0, 10, 50]), seed=st.integers(0, 99))
def test_any_graph_in_any_budget(graph: nx.DiGraph[int], capacity: int, pipeline: int, seed: int) -> None:
    """Never more than the budget, never stuck, no task lost, no buffer overwritten while it is needed; else what would do."""
    try:
        plan = schedule(graph, capacity, pipeline)
    except BudgetError as error:
        assert error.needed > capacity
        capacity = error.needed
        plan = schedule(graph, capacity, pipeline)
    check(graph, plan, capacity)
    luck = random.Random(seed)
    for _ in range(3):
        run(graph, plan, luck)


@trials(100, derandomize=True)
@given(graph=graphs, more=st.integers(1, 200))
@example(graph=LOAD_IN_A_HOLE, more=1)
def test_more_memory_is_never_too_little(graph: nx.DiGraph[int], more: int) -> None:
    """What is said to do is the least: it does, so does any more, and one byte less does not."""
    assume(of_kind(graph, "compute"))
    with pytest.raises(BudgetError) as error:
        schedule(graph, -1)
    schedule(graph, error.value.needed + more)
    schedule(graph, error.value.needed)
    if error.value.needed:
        with pytest.raises(BudgetError):
            schedule(graph, error.value.needed - 1)


@trials(120, derandomize=True)
@given(graph=graphs, capacity=st.integers(20, 200), shuffle=st.randoms(use_true_random=False))
def test_names_and_insertion_order_change_nothing(graph: nx.DiGraph[int], capacity: int, shuffle: random.Random) -> None:
    nodes = list(graph)
    names = [1000 + node for node in nodes]
    shuffle.shuffle(names)
    renamed = dict(zip(nodes, names, strict=True))
    other: nx.DiGraph[int] = nx.DiGraph()
    shuffle.shuffle(nodes)
    other.add_nodes_from((renamed[node], graph.nodes[node]) for node in nodes)
    edges = [(renamed[a], renamed[b]) for a, b in graph.edges]
    shuffle.shuffle(edges)
    other.add_edges_from(edges)
    try:
        plan = schedule(graph, capacity)
    except BudgetError as error:
        with pytest.raises(BudgetError) as again:
            schedule(other, capacity)
        assert again.value.needed == error.needed
        return
    shuffled = schedule(other, capacity)
    back = {name: node for node, name in renamed.items()}
    assert [described(step, back) for step in shuffled.steps] == [described(step, {}) for step in plan.steps]
    assert (shuffled.arena, shuffled.ring, shuffled.loaded) == (plan.arena, plan.ring, plan.loaded)


def described(step: module.Step, back: Mapping[int, int]) -> Any:
    def buffer(b: Buffer | None) -> tuple[int, int, int, int, int] | None:
        return None if b is None else (back.get(b.task, b.task), b.offset, b.nbytes, b.computed, b.saved)

    return (
        back.get(step.compute, step.compute),
        [buffer(b) for b in step.loads],
        [buffer(b) for b in step.resident],
        buffer(step.output),
        [back.get(save, save) for save in step.saves],
        step.needs,
    )


# Against the optimum.


def every_order(problem: Problem) -> Iterator[tuple[int, ...]]:
    waiting = {compute: len(problem.inputs[compute]) for compute in problem.computes}
    order: list[int] = []

    def extend() -> Iterator[tuple[int, ...]]:
        if len(order) == len(problem.computes):
            yield tuple(order)
        for compute in problem.computes:
            if waiting[compute] == 0:
                waiting[compute] = -1
                order.append(compute)
                for user in problem.outputs[compute]:
                    waiting[user] -= 1
                yield from extend()
                for user in problem.outputs[compute]:
                    waiting[user] += 1
                order.pop()
                waiting[compute] = 0

    return extend()


def peaks(graph: nx.DiGraph[int]) -> tuple[int, int]:
    """The chosen order's peak where memory is scarce, and the lowest of all orders."""
    problem = problem_of(graph)
    best = min((walk_order(problem, order, 0).peak for order in every_order(problem)), default=0)
    return module._walks(problem, list(candidate_orders(problem)), 0)[0].peak, best


def random_tree(luck: random.Random, count: int) -> nx.DiGraph[int]:
    """A forest in which every result has one user, large loads and small results among them."""
    drawing, roots = Drawing(), list[str]()
    for i in range(count):
        children = [roots.pop(luck.randrange(len(roots))) for _ in range(min(len(roots), luck.choice([0, 1, 1, 1, 2, 3])))]
        drawing.load(f"a{i}", luck.choice([0, 0, 1, 5, 10, 20]))
        drawing.compute(f"{i}", f"a{i}", *children, nbytes=luck.choice([0, 1, 2, 5, 8, 13]))
        roots.append(f"{i}")
    drawing.compute("last", *roots)
    return drawing.graph


def test_no_order_of_a_small_tree_has_a_lower_peak() -> None:
    luck = random.Random(1)
    for _ in range(1200):
        chosen, best = peaks(random_tree(luck, luck.randint(2, 6)))
        assert chosen == best


def test_orders_of_small_graphs_are_near_the_optimum() -> None:
    """Finding the lowest peak of any graph is NP-hard. Of 4,000 drawn by chance 3% missed it, the worst by a factor of 1.62."""
    luck = random.Random(2)
    missed, count = 0, 1000
    for _ in range(count):
        loads = [luck.choice([0, 1, 2, 3, 5, 8, 13]) for _ in range(6)]
        computes = [
            (
                [luck.randrange(6) for _ in range(luck.randint(0, 2))],
                [luck.randrange(12) for _ in range(luck.randint(0, 3))],
                luck.choice([0, 1, 2, 3, 5, 8, 13]),
                False,
            )
            for _ in range(luck.randint(2, 7))
        ]
        chosen, best = peaks(make_graph(loads, computes))
        assert chosen <= 1.75 * best
        missed += chosen > best
    assert missed <= 0.06 * count


# Bookkeeping.


def independent(count: int) -> nx.DiGraph[int]:
    return large((([2 * i, 2 * i + 1], []) for i in range(count)), 10)


def neighbours(count: int) -> nx.DiGraph[int]:
    return large((([i, i + 1], []) for i in range(count)), 10)


def repeated(count: int) -> nx.DiGraph[int]:
    return large((([i % (count // 2)], []) for i in range(count)), 0)


def one_for_all(count: int) -> nx.DiGraph[int]:
    return large((([0, i + 1], []) for i in range(count)), 10)


def chain(count: int) -> nx.DiGraph[int]:
    return large((([i], [i - 1] if i else []) for i in range(count)), 10)


def gathered(count: int) -> nx.DiGraph[int]:
    return large((([i], []) if i < count - 1 else ([], list(range(i))) for i in range(count)), 10)


def long_lived(count: int) -> nx.DiGraph[int]:
    return large((([i], [] if i < count // 2 else [i - count // 2]) for i in range(count)), 10)


def large(computes: Iterator[tuple[list[int], list[int]]], nbytes: int) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    loads: dict[int, int] = {}
    nodes: list[int] = []

    def add(kind: str, size: int) -> int:
        node = graph.number_of_nodes()
        graph.add_node(node, kind=kind, bytes=size, position=node)
        return node

    for wanted, inputs in computes:
        for load in wanted:
            if load not in loads:
                loads[load] = add("load", 10)
        compute = add("compute", nbytes)
        graph.add_edges_from((loads[load], compute) for load in wanted)
        graph.add_edges_from((nodes[number], compute) for number in inputs)
        graph.add_edge(compute, add("save", 0))
        nodes.append(compute)
    return graph


def lines(graph: nx.DiGraph[int], capacity: int) -> int:
    """Lines of the scheduler that run."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if not Path(frame.f_code.co_filename).name.startswith("schedule"):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        schedule(graph, capacity)
    finally:
        sys.settrace(before)
    return count


SHAPES = [independent, neighbours, repeated, one_for_all, chain, gathered, long_lived]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("capacity", [1000, 10**9])
def test_bookkeeping_is_linear(shape: Any, capacity: int) -> None:
    """Twice the tasks, twice the work."""
    if shape in (gathered, long_lived):
        capacity = max(capacity, 10**5)  # all of it is needed at once
    small, twice = lines(shape(150), capacity), lines(shape(300), capacity)
    assert small > 150, "the trace must see the scheduler"
    assert twice < 2.2 * small


@pytest.mark.parametrize(("shape", "count"), [(independent, 50_000), (neighbours, 20_000), (chain, 10_000)])
def test_as_many_tensors_as_models_have_schedule_in_seconds(shape: Any, count: int) -> None:
    graph = shape(count)
    begin = time.monotonic()
    plan = schedule(graph, 10**6)
    assert time.monotonic() - begin < 30  # about 2 s; anything quadratic takes minutes
    assert len(plan.steps) == count
