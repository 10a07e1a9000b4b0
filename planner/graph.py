"""Recipes become a graph of tasks: load a byte range, compute a run of elements, save it.

A tensor that fits its share of the budget is one tile, and its statistics and map are one Compute over the loaded bytes. A
larger one becomes several tiles; if its method has statistics, each pass over the tiles loads them again. Both are the same
code: one tile is a list of tiles with one element.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from ..errors import BudgetError
from ..ops.declare import Kernel
from .catalog import InputTensor
from .dtypes import ITEM_SIZES
from .recipe import Recipe

PAGE = 4096
STREAM_TILE = 32 << 20
"""Bytes of one tile's buffers where a method needs no statistics: enough for long reads, small enough to overlap them."""


@dataclass(frozen=True, slots=True)
class Load:
    """Read `nbytes` of an input tensor from `offset` of its file. `last`: nothing reads these bytes again."""

    tensor: InputTensor
    offset: int
    nbytes: int
    last: bool


@dataclass(frozen=True, slots=True)
class Compute:
    """Work on elements `start` to `start + count` of recipe number `recipe`.

    `passes` are the statistics gathered here; `maps` says whether the output is computed too. `tiles` is how many tiles the
    tensor has, `tile` which of them this is.
    """

    recipe: int
    passes: tuple[int, ...]
    maps: bool
    start: int
    count: int
    tile: int
    tiles: int


@dataclass(frozen=True, slots=True)
class Save:
    """Write `nbytes` of output tensor `recipe`, from byte `offset` of the tensor."""

    recipe: int
    offset: int
    nbytes: int


Task = Load | Compute | Save


def aligned(nbytes: int) -> int:
    """Rounded up to whole pages, the unit of the pool."""
    return -(-nbytes // PAGE) * PAGE


def copies_bytes(recipe: Recipe, kernel: Kernel) -> bool:
    """Whether the output is input 0's bytes, so that what was loaded is what is saved."""
    return kernel.copies and recipe.inputs[0].dtype == recipe.dtype


def tile_elements(recipe: Recipe, kernel: Kernel, capacity: int) -> int:
    """Elements of one tile so that two tiles' buffers fit `capacity` bytes: one is read while the other is computed.

    Raises BudgetError, whose `needed` is the capacity that would do, where not even the smallest tile fits.
    """
    size = recipe.arguments.size
    share = capacity // 2
    if not kernel.statistics:
        share = min(share, STREAM_TILE)
    if group_bytes(recipe, kernel, size) <= share:
        return max(size, 1)
    per_part = group_bytes(recipe, kernel, kernel.part)
    parts = share // per_part
    if parts == 0:
        smallest = _least_bytes(recipe, kernel)
        if smallest > capacity // 2:
            raise BudgetError(f"tensor '{recipe.name}' needs two tiles of {smallest} bytes", 2 * smallest)
        parts = 1
    return parts * kernel.part


def _least_bytes(recipe: Recipe, kernel: Kernel) -> int:
    """Bytes of the buffers of the smallest tile there is."""
    return group_bytes(recipe, kernel, min(kernel.part, recipe.arguments.size))


def group_bytes(recipe: Recipe, kernel: Kernel, elements: int) -> int:
    """Bytes of the buffers of one tile: all inputs, and the output where it is not an input itself."""
    total = sum(aligned(elements * ITEM_SIZES[tensor.dtype]) for tensor in recipe.inputs)
    if not copies_bytes(recipe, kernel):
        total += aligned(elements * ITEM_SIZES[recipe.dtype])
    return total


def build_graph(recipes: Sequence[Recipe], kernels: Sequence[Kernel], numbers: Sequence[int], capacity: int) -> nx.DiGraph[int]:
    """The task graph of the recipes with these numbers, for buffers of at most `capacity` bytes.

    Nodes are numbers, with the attributes `task`, `kind` (load, compute or save), `bytes` (of the buffer that the task fills) and
    `position` (where it stands in the order of the output); a compute also has `inputs`, the loads of its recipe's inputs in
    order. Raises BudgetError.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    loads: _Loads = {}
    if numbers:  # the tensor that asks for most first, so that what its error names is enough for all
        hardest = max(numbers, key=lambda number: _least_bytes(recipes[number], kernels[number]))
        tile_elements(recipes[hardest], kernels[hardest], capacity)
    for number in numbers:
        recipe, kernel = recipes[number], kernels[number]
        gathered: int | None = None  # the compute after which all statistics so far are complete
        before: int | None = None
        for compute in computes(number, recipe, kernel, capacity):
            if compute.tile == 0:
                gathered, before = before, None
            node = _add_compute(graph, recipe, kernel, compute, loads)
            # Tiles of a pass follow each other, so that the last one stands for all; tiles of the map need not.
            follows = (gathered, None if compute.maps else before)
            graph.add_edges_from((earlier, node) for earlier in follows if earlier is not None)
            before = node
    return graph


def computes(number: int, recipe: Recipe, kernel: Kernel, capacity: int) -> Iterator[Compute]:
    """The Compute tasks of one recipe, in order: passes of statistics over all tiles, then the map over all tiles."""
    size = recipe.arguments.size
    step = tile_elements(recipe, kernel, capacity)
    starts = range(0, size, step) if size else range(1)
    passes = tuple(range(len(kernel.statistics)))
    if len(starts) == 1:
        yield Compute(number, passes, True, 0, size, 0, 1)
        return
    for wave in [*((index,) for index in passes), ()]:
        for tile, start in enumerate(starts):
            yield Compute(number, wave, not wave, start, min(step, size - start), tile, len(starts))


_Loads = dict[tuple[object, ...], int]


def _add_compute(graph: nx.DiGraph[int], recipe: Recipe, kernel: Kernel, compute: Compute, loads: _Loads) -> int:
    """Add a Compute with its loads and its save; the Compute's node."""
    copied = copies_bytes(recipe, kernel)
    item = ITEM_SIZES[recipe.dtype]
    used = tuple(_add_load(graph, tensor, compute, loads) for tensor in recipe.inputs)
    node = graph.number_of_nodes()
    out = 0 if copied or not compute.maps else aligned(compute.count * item)
    graph.add_node(node, task=compute, kind="compute", bytes=out, position=node, inputs=used)
    graph.add_edges_from((load, node) for load in used)
    if compute.maps:
        save = graph.number_of_nodes()
        graph.add_node(
            save, task=Save(compute.recipe, compute.start * item, compute.count * item), kind="save", bytes=0, position=save
        )
        graph.add_edge(node, save)
        if copied:
            graph.add_edge(used[0], save)
    return node


def _add_load(graph: nx.DiGraph[int], tensor: InputTensor, compute: Compute, loads: _Loads) -> int:
    """The load of a compute's run of elements from one input: bytes that several tasks want in the same pass are one load.

    All tiles of a tensor share their loads or none does (a last tile may fit another tiling by chance): who orders tasks by what
    they read then keeps a tensor's tiles in order.
    """
    item = ITEM_SIZES[tensor.dtype]
    offset, nbytes = tensor.offset + compute.start * item, compute.count * item
    key = (tensor.file.model, tensor.file.name, compute.maps, compute.passes, compute.tiles, offset, nbytes)
    node = loads.get(key)
    if node is None:
        node = loads[key] = graph.number_of_nodes()
        task = Load(tensor, offset, nbytes, compute.maps)
        graph.add_node(node, task=task, kind="load", bytes=aligned(nbytes), position=node)
    return node
