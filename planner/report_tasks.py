"""The task graph tensor by tensor: which tasks make each output tensor, what they read, and with whom they share it.

A tensor's tasks of one role (all tiles' loads of one input, all tiles' maps) are one group, so that a report stays small however
many tiles there are. Tensors whose groups look alike share one *pattern*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..ops.lib.noise import Noise
from ..ops.lib.rows import RowLayout
from .catalog import InputTensor
from .graph import Compute, Load, Save, Task
from .plan import Plan
from .recipe import LowRankUpdate, Recipe

NEIGHBOURS = 12
"""Tensors that share a load with another are named up to this many."""


@dataclass(frozen=True, slots=True)
class TensorTasks:
    """The tasks that make one output tensor.

    `leaves` are the input tensors that are read. `groups` are [kind, what, tasks, bytes]: for a load `what` is a position in
    `leaves`, for a compute who works and on what ("ties", "pass 1"), for a save the shard. `edges` are pairs of positions in
    `groups`. `read` has bytes by model, each load counted for the first tensor that uses it, as often as the schedule reads it.
    `neighbours` are other outputs that use the same loads.
    """

    leaves: tuple[InputTensor, ...]
    groups: tuple[tuple[str, int | tuple[str, str], int, int], ...]
    edges: tuple[tuple[int, int], ...]
    read: Mapping[str, int]
    neighbours: tuple[int, ...]


def tensor_tasks(plan: Plan) -> list[TensorTasks]:
    """One item for each output tensor, in order."""
    graph = plan.graph
    stages = _stage_names((*plan.recipes, *reversed(plan.inner)))
    parts: list[list[int]] = [[] for _ in plan.recipes]
    saves: list[list[int]] = [[] for _ in plan.recipes]
    for node, data in graph.nodes(data=True):
        if isinstance(data["task"], Save):
            saves[data["task"].recipe].append(node)
    users: dict[int, list[int]] = {}
    for number, ends in enumerate(saves):
        parts[number] = sorted(_behind(plan, ends))
        for node in parts[number]:
            if graph.nodes[node]["kind"] == "load":
                users.setdefault(node, []).append(number)
    times: dict[int, int] = {}
    for step in (step for step in plan.schedule.steps if not plan.spare(graph.nodes[step.compute]["task"])):
        for buffer in step.loads:
            times[buffer.task] = times.get(buffer.task, 0) + 1
    return [_tensor(plan, number, parts[number], users, times, stages) for number in range(len(plan.recipes))]


def _behind(plan: Plan, saves: list[int]) -> set[int]:
    """All tasks that lead to these saves; the saves of a tensor follow each other, so no other tensor's are among them."""
    found, waiting = set(saves), list(saves)
    while waiting:
        for source in plan.graph.predecessors(waiting.pop()):
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def _tensor(
    plan: Plan,
    number: int,
    nodes: list[int],
    users: Mapping[int, list[int]],
    times: Mapping[int, int],
    stages: Mapping[str, str],
) -> TensorTasks:
    tensors = {(tensor.file.model, tensor.name): tensor for tensor in plan.recipes[number].leaves()}
    leaves = {name: i for i, name in enumerate(tensors)}
    places: dict[tuple[str, int | tuple[str, str]], int] = {}
    groups: list[list[Any]] = []
    group_of: dict[int, int] = {}
    read: dict[str, int] = {}
    for node in nodes:
        task: Task = plan.graph.nodes[node]["task"]
        if isinstance(task, Load):
            name = (task.tensor.file.model, task.tensor.name)
            key: tuple[str, int | tuple[str, str]] = ("load", leaves[name])
            if users[node][0] == number:
                read[name[0]] = read.get(name[0], 0) + task.nbytes * times.get(node, 0)
        elif isinstance(task, Compute):
            key = ("compute", _work(plan, number, task, stages))
        else:
            key = ("save", plan.places[number].shard)
        if key not in places:
            places[key] = len(groups)
            groups.append([*key, 0, 0])
        at = group_of[node] = places[key]
        groups[at][2] += 1
        groups[at][3] += task.nbytes if isinstance(task, Load | Save) else 0
    edges = {(group_of[a], group_of[b]) for b in nodes for a in plan.graph.predecessors(b) if group_of[a] != group_of[b]}
    near = dict.fromkeys(other for node in nodes for other in users.get(node, ()) if other != number)
    frozen = tuple((kind, what, count, nbytes) for kind, what, count, nbytes in groups)
    return TensorTasks(tuple(tensors.values()), frozen, tuple(sorted(edges)), read, tuple(near)[:NEIGHBOURS])


def _work(plan: Plan, number: int, task: Compute, stages: Mapping[str, str]) -> tuple[str, str]:
    """What a Compute does, in words: in whose name, and which part of the work."""
    recipe = plan.all_recipes[task.recipe]
    if isinstance(recipe.special, LowRankUpdate):
        name = "apply adapter"
    elif isinstance(recipe.special, RowLayout):
        name = "lay out rows"
    elif isinstance(recipe.special, Noise):
        name = "add noise"
    else:
        name = recipe.method or "copy"
        if task.recipe != number and recipe.digest in stages:
            name = f"{stages[recipe.digest]}: {name}"
    if not task.passes:
        return name, "map"
    if task.maps:
        return name, "passes and map"
    return name, f"pass {task.passes[0] + 1}" + (" if needed" if plan.spare(task) else "")


def _stage_names(recipes: Iterable[Recipe]) -> dict[str, str]:
    """The stages of computed inputs, by digest, as the config names them."""
    found: dict[str, str] = {}
    for recipe in recipes:
        for name, source in _named_inputs(recipe):
            if source.special is None:
                found.setdefault(source.digest, name)
    return found


def _named_inputs(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    names = recipe.sources if len(recipe.sources) == len(recipe.inputs) else ("",) * len(recipe.inputs)
    for name, source in zip(names, recipe.inputs, strict=True):
        if isinstance(source, Recipe):
            yield name, source
