"""The work of a step, cut into parts that any worker can do: what is read from the pool, what is written there, what is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import networkx as nx

from ..planner.dtypes import ITEM_SIZES
from ..planner.graph import Compute, Load, copies_bytes
from ..planner.memory import device_workers
from ..planner.plan import Plan
from ..planner.schedule import Buffer, Schedule
from .compute import Fold, Tile, arithmetic, as_written, blocks, examine, gather, transform
from .journal import Facts
from .pool import Pool, torch_dtype
from .scan import Scanner

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


class Bench:
    """What one worker works with; only parts that compute have scratch rows, and load torch for them."""

    def __init__(self, plan: Plan) -> None:
        self.scanner = Scanner()
        self._plan = plan
        self._space: Workspace | None = None

    def space(self) -> Workspace:
        """The scratch rows, made when they are first asked for, by the worker's own thread."""
        if self._space is None:
            self._space = _workspace(self._plan)
        return self._space

    def close(self) -> None:
        """Give the memory back."""
        if self._space is not None:
            self._space.close()
            self._space = None


Part = Callable[[Bench], Facts | int | None]
"""A part of a step's pass or map. A pass returns how many parts' findings it merged, a map the facts of what is saved."""


def benches(plan: Plan) -> list[Bench]:
    """One for each thread that computes."""
    budget = plan.options.budget
    workers = budget.workers if budget.on_host else device_workers(budget)
    return [Bench(plan) for _ in range(workers)]


def _workspace(plan: Plan) -> Workspace:
    """Scratch for one worker, on the device that computes."""
    import torch

    from .workspace import HostWorkspace

    torch.set_num_threads(1)  # parts are the parallelism; threads inside an operation would only wait for each other
    budget, division = plan.options.budget, plan.division
    if budget.on_host:
        return HostWorkspace(division.workspace)
    from .device_workspace import DeviceWorkspace
    from .streams import CudaStreams

    device = torch.device(budget.device)
    return DeviceWorkspace(device, CudaStreams(device), division.workspace, division.staging, division.blocks)


class Cutter:
    """Cuts the steps of a plan into parts; it reads the plan and views of the pool, and changes nothing."""

    def __init__(self, plan: Plan, graph: nx.DiGraph[int], schedule: Schedule, pool: Pool) -> None:
        self._plan, self._graph, self._schedule, self._pool = plan, graph, schedule, pool

    def compute(self, number: int) -> Compute:
        """The Compute of a step."""
        task: Compute = self._graph.nodes[self._schedule.steps[number].compute]["task"]
        return task

    def pass_parts(self, number: int, index: int, fold: Fold, statistics: tuple[Any, ...]) -> list[Part]:
        """The parts of pass `index`, whose findings come together in `fold`; `statistics` are those of earlier passes."""
        compute = self.compute(number)
        kernel, tile = self._plan.kernels[compute.recipe], self._tile(number)
        statistic = kernel.statistics[index]

        def part(low: int, high: int) -> Part:
            def work(bench: Bench) -> int:
                with arithmetic():
                    partial = gather(kernel, statistic, tile, low, high, bench.space(), statistics)
                    merged = fold.add(compute.start + low, compute.start + high, partial)
                    bench.space().finish()  # what it merged may be another worker's
                return merged

            return work

        return [part(low, high) for low, high in self._ranges(compute)]

    def map_parts(self, number: int, statistics: tuple[Any, ...]) -> list[Part]:
        """The parts of the map, into the step's output; of bytes that are moved, the parts that look at them."""
        compute, step = self.compute(number), self._schedule.steps[number]
        recipe, kernel = self._plan.all_recipes[compute.recipe], self._plan.kernels[compute.recipe]
        item = ITEM_SIZES[recipe.dtype]
        if copies_bytes(recipe, kernel) and step.saves:
            moved = self._pool.bytes(self._source(number).offset, compute.count * item)

            def looked_at(low: int, high: int) -> Part:
                piece = moved[low * item : high * item]
                return lambda bench: examine(piece, recipe.dtype, piece if recipe.base_input == 0 else None, bench.scanner)

            return [looked_at(low, high) for low, high in self._ranges(compute)]
        tile = self._tile(number)
        offset = step.output.offset if step.output is not None else 0
        data, out = self._pool.bytes(offset, compute.count * item), self._pool.tensor(offset, recipe.dtype, compute.count)
        base = as_written(tile.views[recipe.base_input], out.dtype) if recipe.base_input is not None else None

        def computed(low: int, high: int) -> Part:
            def work(bench: Bench) -> Facts | None:
                with arithmetic():
                    transform(kernel, tile, out, low, high, bench.space(), statistics)
                if not step.saves:
                    return None
                return examine(data[low * item : high * item], recipe.dtype, base and base(low, high), bench.scanner)

            return work

        return [computed(low, high) for low, high in self._ranges(compute)]

    def result(self, number: int, nbytes: int) -> memoryview:
        """The bytes that a step saves: its output, or what was loaded where that is moved."""
        return self._pool.bytes((self._schedule.steps[number].output or self._source(number)).offset, nbytes)

    def _ranges(self, compute: Compute) -> list[tuple[int, int]]:
        """On a device a whole tile is one part, whose blocks overlap with their copies."""
        whole = not self._plan.options.budget.on_host
        return blocks(0, compute.count, compute.count or 1 if whole else self._plan.kernels[compute.recipe].part)

    def _tile(self, number: int) -> Tile:
        """The inputs of a step, in the order of the recipe."""
        step, compute = self._schedule.steps[number], self.compute(number)
        offsets = {buffer.task: buffer.offset for buffer in (*step.loads, *step.resident)}
        views: list[torch.Tensor] = []
        for source in self._graph.nodes[step.compute]["inputs"]:
            task: Load | Compute = self._graph.nodes[source]["task"]
            if isinstance(task, Load):
                whole = len(views) in self._plan.kernels[compute.recipe].whole
                count = math.prod(task.tensor.shape) if whole else compute.count
                views.append(self._pool.tensor(offsets[source], task.tensor.dtype, count))
            else:
                views.append(self._pool.tensor(offsets[source], self._plan.all_recipes[task.recipe].dtype, compute.count))
        cast = self._plan.all_recipes[compute.recipe].cast
        return Tile(views, compute.start, torch_dtype(cast) if cast else None)

    def _source(self, number: int) -> Buffer:
        """The buffer of a step's first input; a copied tensor has no other: what was loaded is what is saved."""
        step = self._schedule.steps[number]
        first = self._graph.nodes[step.compute]["inputs"][0]
        return next(buffer for buffer in (*step.loads, *step.resident) if buffer.task == first)
