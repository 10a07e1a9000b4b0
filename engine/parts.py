"""The work of a step, cut into parts that any worker can do: what is read from the pool, what is written there, what is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import networkx as nx

from ..ops.backends.host import Bound, LoopFor, Output, Stored, Tile, no_loops
from ..ops.method import Kernel
from ..planner.dtypes import ITEM_SIZES
from ..planner.graph import Compute, Load, copies_bytes
from ..planner.memory import device_workers
from ..planner.plan import Plan
from ..planner.recipe import Recipe
from ..planner.schedule import Buffer, Schedule
from .compute import (
    DeviceTile,
    Fold,
    arithmetic,
    as_written,
    blocks,
    bound_map,
    bound_pass,
    examine,
    gather,
    gather_on_device,
    transform,
    transform_on_device,
)
from .journal import Facts
from .pool import Pool, torch_dtype
from .scan import Scanner

if TYPE_CHECKING:
    from .device_workspace import DeviceWorkspace


class Bench:
    """What one worker works with; only parts that compute on a device have a workspace there, and load torch for it."""

    def __init__(self, plan: Plan) -> None:
        self.scanner = Scanner()
        self._plan = plan
        self._space: DeviceWorkspace | None = None

    def space(self) -> DeviceWorkspace:
        """The scratch rows on the device, made when they are first asked for, by the worker's own thread."""
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


def _workspace(plan: Plan) -> DeviceWorkspace:
    """Scratch for one worker, on the device that computes."""
    import torch

    from .device_workspace import DeviceWorkspace
    from .streams import CudaStreams

    torch.set_num_threads(1)  # parts are the parallelism; threads inside an operation would only wait for each other
    budget, division = plan.options.budget, plan.division
    device = torch.device(budget.device)
    return DeviceWorkspace(device, CudaStreams(device), division.workspace, division.staging, division.blocks)


class Cutter:
    """Cuts the steps of a plan into parts; it reads the plan and views of the pool, and changes nothing."""

    def __init__(self, plan: Plan, graph: nx.DiGraph[int], schedule: Schedule, pool: Pool, loops: LoopFor = no_loops) -> None:
        self._plan, self._graph, self._schedule, self._pool, self._loops = plan, graph, schedule, pool, loops
        self._on_host = plan.options.budget.on_host

    def compute(self, number: int) -> Compute:
        """The Compute of a step."""
        task: Compute = self._graph.nodes[self._schedule.steps[number].compute]["task"]
        return task

    def pass_parts(self, number: int, index: int, fold: Fold, statistics: tuple[Any, ...]) -> list[Part]:
        """The parts of pass `index`, whose findings come together in `fold`; `statistics` are those of earlier passes."""
        compute = self.compute(number)
        kernel = self._plan.kernels[compute.recipe]
        statistic = kernel.statistics[index]
        bound = bound_pass(kernel, statistic, self._inputs(number), statistics)
        here = self._tile(number) if self._on_host else None
        there = None if self._on_host else self._device_tile(number)

        def part(low: int, high: int) -> Part:
            def work(bench: Bench) -> int:
                if here is not None:
                    partial = gather(kernel, statistic, bound, here, low, high, statistics, self._loops)
                    return fold.add(compute.start + low, compute.start + high, partial)
                assert there is not None
                with arithmetic():
                    partial = gather_on_device(kernel, statistic, bound, there, low, high, bench.space(), statistics)
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
        offset = step.output.offset if step.output is not None else 0
        bound = bound_map(kernel, self._inputs(number), statistics)
        if self._on_host:
            return self._host_parts(compute, kernel, bound, recipe, self._tile(number), offset, statistics)
        tile = self._device_tile(number)
        data, out = self._pool.bytes(offset, compute.count * item), self._pool.tensor(offset, recipe.dtype, compute.count)
        base = as_written(tile.views[recipe.base_input], out.dtype) if recipe.base_input is not None else None

        def computed(low: int, high: int) -> Part:
            def work(bench: Bench) -> Facts | None:
                with arithmetic():
                    transform_on_device(kernel, bound, tile, out, low, high, bench.space(), statistics)
                if not step.saves:
                    return None
                return examine(data[low * item : high * item], recipe.dtype, base and base(low, high), bench.scanner)

            return work

        return [computed(low, high) for low, high in self._ranges(compute)]

    def _host_parts(
        self,
        compute: Compute,
        kernel: Kernel,
        bound: Bound | None,
        recipe: Recipe,
        tile: Tile,
        offset: int,
        statistics: tuple[Any, ...],
    ) -> list[Part]:
        out = Output(self._pool.array(offset, recipe.dtype, compute.count), recipe.dtype, recipe.base_input)

        def computed(low: int, high: int) -> Part:
            return lambda bench: transform(kernel, bound, tile, out, low, high, statistics, self._loops)

        return [computed(low, high) for low, high in self._ranges(compute)]

    def result(self, number: int, nbytes: int) -> memoryview:
        """The bytes that a step saves: its output, or what was loaded where that is moved."""
        return self._pool.bytes((self._schedule.steps[number].output or self._source(number)).offset, nbytes)

    def _ranges(self, compute: Compute) -> list[tuple[int, int]]:
        """On a device a whole tile is one part, whose blocks overlap with their copies."""
        whole = not self._plan.options.budget.on_host
        return blocks(0, compute.count, compute.count or 1 if whole else self._plan.kernels[compute.recipe].part)

    def _inputs(self, number: int) -> int:
        return len(self._graph.nodes[self._schedule.steps[number].compute]["inputs"])

    def _places(self, number: int) -> list[tuple[int, str, int]]:
        """Of each input of a step, in the order of the recipe: where it stands in the pool, its dtype, how many elements."""
        step, compute = self._schedule.steps[number], self.compute(number)
        offsets = {buffer.task: buffer.offset for buffer in (*step.loads, *step.resident)}
        found: list[tuple[int, str, int]] = []
        for source in self._graph.nodes[step.compute]["inputs"]:
            task: Load | Compute = self._graph.nodes[source]["task"]
            if isinstance(task, Load):
                whole = len(found) in self._plan.kernels[compute.recipe].whole
                count = math.prod(task.tensor.shape) if whole else compute.count
                found.append((offsets[source], task.tensor.dtype, count))
            else:
                found.append((offsets[source], self._plan.all_recipes[task.recipe].dtype, compute.count))
        return found

    def _tile(self, number: int) -> Tile:
        """The inputs of a step in host memory."""
        inputs = tuple(Stored(self._pool.array(*place), place[1]) for place in self._places(number))
        compute = self.compute(number)
        return Tile(inputs, compute.start, self._plan.all_recipes[compute.recipe].cast)

    def _device_tile(self, number: int) -> DeviceTile:
        """The same as tensors, which blocks are copied from to a device."""
        compute = self.compute(number)
        cast = self._plan.all_recipes[compute.recipe].cast
        views = [self._pool.tensor(*place) for place in self._places(number)]
        return DeviceTile(views, compute.start, torch_dtype(cast) if cast else None)

    def _source(self, number: int) -> Buffer:
        """The buffer of a step's first input; a copied tensor has no other: what was loaded is what is saved."""
        step = self._schedule.steps[number]
        first = self._graph.nodes[step.compute]["inputs"][0]
        return next(buffer for buffer in (*step.loads, *step.resident) if buffer.task == first)
