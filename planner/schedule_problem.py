"""The task graph in the terms of the scheduler: computes, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx as nx


@dataclass(frozen=True, slots=True)
class Problem:
    """The graph as computes: per compute its loads, input computes, saves; per buffer its size and users.

    `before` and `behind` are the computes between which the order is fixed: inputs, and those whose saves follow each other.
    `moved` are the loads whose bytes are saved as they are.
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
    moved: frozenset[int]


def problem_of(graph: nx.DiGraph[int]) -> Problem:
    """The problem that a task graph poses; tasks stand in the order of their positions."""
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
    return Problem(
        tuple(computes),
        {c: near(graph.predecessors(c), "load") for c in computes},
        inputs,
        outputs,
        saves,
        before,
        behind,
        {n: data["bytes"] for n, data in graph.nodes(data=True)},
        position,
        frozenset(a for a, b in graph.edges if is_kind[a] == "load" and is_kind[b] == "save"),
    )
