"""Recipes become a graph of tasks: load a byte range, compute a run of elements, save it.

A tensor that fits its share of the budget is one tile, and its statistics and map are one Compute over the loaded bytes. A
larger one becomes several tiles; if its method has statistics, each pass over the tiles loads them again. Both are the same
code: one tile is a list of tiles with one element.

An input that is itself computed (an adapter applied, rows moved, an earlier stage) is a Compute without a save, whose buffer the
next Compute finds in memory. Where passes go over tiles, its tiles are computed again for each pass: nothing is ever spilled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import networkx as nx

from ..errors import BudgetError
from ..ops.method import Kernel
from .catalog import InputTensor
from .dtypes import ITEM_SIZES
from .recipe import MappedRows, Recipe, computed_inputs

PAGE = 4096
STREAM_TILE = 32 << 20
"""Bytes of one tile's buffers where a method needs no statistics: enough for long reads, small enough to overlap them."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes of a file, and where in the load's buffer they go."""

    offset: int
    nbytes: int
    place: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read segments of an input tensor's file into a buffer. `last`: nothing reads these bytes again."""

    tensor: InputTensor
    segments: tuple[Segment, ...]
    last: bool

    @property
    def nbytes(self) -> int:
        """Bytes that are read."""
        return sum(segment.nbytes for segment in self.segments)


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
    """Whether an output tensor is input 0's bytes, so that what was loaded is what is saved."""
    source = recipe.inputs[0]
    return kernel.copies and isinstance(source, InputTensor) and source.dtype == recipe.dtype


@dataclass(frozen=True, slots=True)
class Tree:
    """An output recipe with all that is computed for it: recipe numbers, inputs before what uses them, the output last."""

    numbers: tuple[int, ...]
    recipes: tuple[Recipe, ...]
    kernels: tuple[Kernel, ...]

    @property
    def output(self) -> Recipe:
        """The recipe whose tensor is saved."""
        return self.recipes[-1]

    @property
    def part(self) -> int:
        """The least run of elements that is whole parts of every kernel."""
        return math.lcm(*(kernel.part for kernel in self.kernels))

    @property
    def streams(self) -> bool:
        """Whether no statistic needs a second look at the inputs."""
        return not any(kernel.statistics for kernel in self.kernels)


def tree_of(number: int, recipes: Sequence[Recipe], kernels: Sequence[Kernel], inner: Mapping[str, int]) -> Tree:
    """The tree of output recipe `number`; `inner` numbers the computed inputs by their digests."""
    numbers = (*(inner[recipe.digest] for recipe in computed_inputs([recipes[number]])), number)
    return Tree(numbers, tuple(recipes[n] for n in numbers), tuple(kernels[n] for n in numbers))


def tile_elements(tree: Tree, capacity: int) -> int:
    """Elements of one tile so that two tiles' buffers fit `capacity` bytes: one is read while the other is computed.

    A tensor with statistics is one tile wherever it fits alone, because tiles are read again for each pass. Where only one of the
    smallest tiles fits, tiles are read and computed in turn.
    Raises BudgetError, whose `needed` is the capacity that would do, where not even the smallest tile fits.
    """
    size = tree.output.arguments.size
    share = capacity // 2
    if tree.streams:
        share = min(share, STREAM_TILE)
    if tree_bytes(tree, size) <= (share if tree.streams else capacity):
        return max(size, 1)
    fixed = tree_bytes(tree, 0)
    parts = (share - fixed) // max(tree_bytes(tree, tree.part) - fixed, 1)
    if parts <= 0:
        smallest = _least_bytes(tree)
        if smallest > capacity:
            raise BudgetError(f"tensor '{tree.output.name}' needs tiles of {smallest} bytes", smallest)
        parts = 1
    return parts * tree.part


def _least_bytes(tree: Tree) -> int:
    """Bytes of the buffers of the smallest tile there is."""
    return tree_bytes(tree, min(tree.part, tree.output.arguments.size))


def tree_bytes(tree: Tree, elements: int) -> int:
    """Bytes of the buffers of one tile: every input that is read and every result, unless it is an input itself."""
    total = 0
    for recipe, kernel in zip(tree.recipes, tree.kernels, strict=True):
        for position, source in enumerate(recipe.inputs):
            if not isinstance(source, Recipe):
                total += aligned(_input_elements(source, kernel, position, elements) * ITEM_SIZES[source.dtype])
        if recipe is not tree.output or not copies_bytes(recipe, kernel):
            total += aligned(elements * ITEM_SIZES[recipe.dtype])
    return total


def _input_elements(source: InputTensor | MappedRows, kernel: Kernel, position: int, elements: int) -> int:
    return math.prod(source.shape) if position in kernel.whole else elements


def build_graph(
    recipes: Sequence[Recipe],
    kernels: Sequence[Kernel],
    numbers: Sequence[int],
    capacity: int,
    inner: Mapping[str, int] = MappingProxyType({}),
) -> nx.DiGraph[int]:
    """The task graph of the output recipes with these numbers, for buffers of at most `capacity` bytes.

    `inner` numbers the computed inputs among `recipes` by their digests. Nodes are numbers, with the attributes `task`, `kind`
    (load, compute or save), `bytes` (of the buffer that the task fills) and `position` (where it stands in the order of the
    output); a compute also has `inputs`, the tasks that fill the buffers of its recipe's inputs, in order. Raises BudgetError.
    """
    trees = [tree_of(number, recipes, kernels, inner) for number in numbers]
    if trees:  # the tensor that asks for most first, so that what its error names is enough for all
        tile_elements(max(trees, key=_least_bytes), capacity)
    builder = _Builder(recipes, kernels, inner)
    for tree in trees:
        builder.add(tree, capacity)
    return builder.graph


@dataclass(frozen=True, slots=True)
class _Tile:
    """A run of elements of a tree, and the wave of passes that looks at it."""

    start: int
    count: int
    index: int
    total: int
    wave: str


class _Builder:
    """Adds one tree after another to the graph."""

    def __init__(self, recipes: Sequence[Recipe], kernels: Sequence[Kernel], inner: Mapping[str, int]) -> None:
        self.graph: nx.DiGraph[int] = nx.DiGraph()
        self.recipes, self.kernels, self.inner = recipes, kernels, inner
        self.loads: dict[tuple[object, ...], int] = {}

    def add(self, tree: Tree, capacity: int) -> None:
        """Waves of statistics over all tiles, inputs before what uses them; then the map over all tiles."""
        size, step = tree.output.arguments.size, tile_elements(tree, capacity)
        starts = range(0, size, step) if size else range(1)
        tiles = [(start, min(step, size - start), index, len(starts)) for index, start in enumerate(starts)]
        gathered: dict[int, int] = {}  # by recipe, the compute after which all its statistics are complete
        if len(tiles) > 1:
            for number, kernel in zip(tree.numbers, tree.kernels, strict=True):
                for index in range(len(kernel.statistics)):
                    self._pass(tree, number, index, tiles, gathered)
        before: int | None = None
        for start, count, index, total in tiles:
            save = self._save(tree, _Tile(start, count, index, total, "map"), gathered)
            if before is not None:  # tiles are written in order
                self.graph.add_edge(before, save)
            before = save

    def _pass(
        self, tree: Tree, number: int, index: int, tiles: list[tuple[int, int, int, int]], gathered: dict[int, int]
    ) -> None:
        """One pass of one recipe's statistics: its tiles follow each other, so that the last one stands for all."""
        below = tree_of(number, self.recipes, self.kernels, self.inner)
        before = gathered.get(number)
        for start, count, tile_index, total in tiles:
            tile = _Tile(start, count, tile_index, total, f"{number}.{index}")
            values = self._values(tree, below.numbers[:-1], tile, gathered)
            before = self._compute(tree, number, (index,), False, tile, values, before)
        assert before is not None
        gathered[number] = before

    def _values(self, tree: Tree, numbers: Sequence[int], tile: _Tile, gathered: Mapping[int, int]) -> dict[int, int]:
        """For each of these computed inputs, in their order, the Compute that fills its buffer for this tile."""
        values: dict[int, int] = {}
        for number in numbers:
            passes = self._passes(tree, number, tile)
            values[number] = self._compute(tree, number, passes, True, tile, values, gathered.get(number))
        return values

    def _compute(
        self,
        tree: Tree,
        number: int,
        passes: tuple[int, ...],
        maps: bool,
        tile: _Tile,
        values: Mapping[int, int],
        after: int | None,
    ) -> int:
        """Add a Compute with the loads of its inputs; `values` has the computed ones."""
        at = tree.numbers.index(number)
        recipe, kernel = tree.recipes[at], tree.kernels[at]
        used = tuple(
            values[self.inner[source.digest]]
            if isinstance(source, Recipe)
            else self._load(source, position in kernel.whole, tile)
            for position, source in enumerate(recipe.inputs)
        )
        node = self.graph.number_of_nodes()
        compute = Compute(number, passes, maps, tile.start, tile.count, tile.index, tile.total)
        moved = recipe is tree.output and copies_bytes(recipe, kernel)
        out = 0 if moved or not maps else aligned(tile.count * ITEM_SIZES[recipe.dtype])
        self.graph.add_node(node, task=compute, kind="compute", bytes=out, position=node, inputs=used)
        self.graph.add_edges_from((source, node) for source in used)
        if after is not None:
            self.graph.add_edge(after, node)
        return node

    def _save(self, tree: Tree, tile: _Tile, gathered: Mapping[int, int]) -> int:
        number, recipe = tree.numbers[-1], tree.output
        values = self._values(tree, tree.numbers[:-1], tile, gathered)
        node = self._compute(tree, number, self._passes(tree, number, tile), True, tile, values, gathered.get(number))
        item = ITEM_SIZES[recipe.dtype]
        save = self.graph.number_of_nodes()
        task = Save(number, tile.start * item, tile.count * item)
        self.graph.add_node(save, task=task, kind="save", bytes=0, position=save)
        self.graph.add_edge(node, save)
        if copies_bytes(recipe, tree.kernels[-1]):
            self.graph.add_edge(self.graph.nodes[node]["inputs"][0], save)
        return save

    def _passes(self, tree: Tree, number: int, tile: _Tile) -> tuple[int, ...]:
        """The passes that a tile which is the whole tensor makes itself."""
        return tuple(range(len(tree.kernels[tree.numbers.index(number)].statistics))) if tile.total == 1 else ()

    def _load(self, source: InputTensor | MappedRows, whole: bool, tile: _Tile) -> int:
        """The load of a tile's elements of one input: bytes that several tasks want in the same wave are one load.

        All tiles of a tensor share their loads or none does (a last tile may fit another tiling by chance): who orders tasks by
        what they read then keeps a tensor's tiles in order.
        """
        tensor = source.tensor if isinstance(source, MappedRows) else source
        start, count = (0, math.prod(source.shape)) if whole else (tile.start, tile.count)
        segments = tuple(_segments(source, start, count))
        wave = tile.wave if tile.total > 1 else ""
        key = (tensor.file.model, tensor.file.name, wave, tile.wave == "map", tile.total, segments, count)
        node = self.loads.get(key)
        if node is None:
            node = self.loads[key] = self.graph.number_of_nodes()
            task = Load(tensor, segments, tile.wave == "map" and not whole)
            nbytes = aligned(count * ITEM_SIZES[tensor.dtype])
            self.graph.add_node(node, task=task, kind="load", bytes=nbytes, position=node)
        return node


def _segments(source: InputTensor | MappedRows, start: int, count: int) -> Iterator[Segment]:
    """The bytes of elements `start` to `start + count` of an input."""
    if isinstance(source, InputTensor):
        item = ITEM_SIZES[source.dtype]
        yield Segment(source.offset + start * item, count * item, 0)
        return
    width = source.row_bytes
    first, last = (n * ITEM_SIZES[source.dtype] // max(width, 1) for n in (start, start + count))
    for run in source.runs:
        low, high = max(run.first_new, first), min(run.first_new + run.count, last)
        if low < high:
            old = run.first_old + low - run.first_new
            yield Segment(source.tensor.offset + old * width, (high - low) * width, (low - first) * width)
