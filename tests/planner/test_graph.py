"""From recipes to tasks: tiles, passes of statistics, shared loads, and what a budget that is too small says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.errors import BudgetError
from weft.ops.method import BLOCK, PART, Arguments, Kernel
from weft.planner import graph as under_test
from weft.planner.catalog import InputTensor, WeightFile
from weft.planner.dtypes import ITEM_SIZES
from weft.planner.graph import PAGE, STREAM_TILE, Compute, Load, Save, Tree, build_graph
from weft.planner.recipe import Recipe
from weft.planner.schedule import Schedule, schedule

FORGET = cast(Any, None)  # a map or statistic that is never called


def tensor(model: str, size: int, dtype: str = "BF16", offset: int = 0, name: str = "w") -> InputTensor:
    nbytes = size * ITEM_SIZES[dtype]
    return InputTensor(name, dtype, (size,), WeightFile(model, "model.safetensors", 1 << 40, "id"), offset, nbytes)


def recipe(*inputs: InputTensor, name: str = "w", dtype: str = "BF16") -> Recipe:
    arguments = Arguments(inputs[0].shape, ({},) * len(inputs))
    return Recipe(name, dtype, inputs[0].shape, "method", inputs, arguments, None, None, "digest")


def kernel(statistics: int = 0, copies: bool = False, block: int = BLOCK) -> Kernel:
    return Kernel(FORGET, (FORGET,) * statistics, copies=copies, block=block)


def alone(one: Recipe, how: Kernel) -> Tree:
    return Tree((0,), (one,), (how,))


def group_bytes(one: Recipe, how: Kernel, elements: int) -> int:
    return under_test.tree_bytes(alone(one, how), elements)


def tile_elements(one: Recipe, how: Kernel, capacity: int) -> int:
    return under_test.tile_elements(alone(one, how), capacity)


def tasks(recipes: Sequence[Recipe], kernels: Sequence[Kernel], capacity: int, kind: type) -> list[Any]:
    graph = build_graph(recipes, kernels, range(len(recipes)), capacity)
    return [data["task"] for _, data in graph.nodes(data=True) if isinstance(data["task"], kind)]


def whole(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


# One tensor.


def test_a_tensor_that_fits_is_one_tile() -> None:
    """Statistics and map are one Compute over bytes that are loaded once."""
    size = 1000
    graph = build_graph([recipe(tensor("a", size), tensor("b", size))], [kernel(statistics=2)], [0], 1 << 20)
    kinds = [data["kind"] for _, data in graph.nodes(data=True)]
    assert kinds == ["load", "load", "compute", "save"]
    assert graph.nodes[2]["task"] == Compute(0, (0, 1), True, 0, size, 0, 1)
    assert graph.nodes[3]["task"] == Save(0, 0, 2 * size)
    assert graph.nodes[2]["inputs"] == (0, 1)
    assert set(graph.edges) == {(0, 2), (1, 2), (2, 3)}
    assert [graph.nodes[n]["bytes"] for n in range(4)] == [PAGE, PAGE, PAGE, 0]


def test_a_larger_tensor_is_tiles_that_are_read_again_for_each_pass() -> None:
    size = 5 * PART
    one = recipe(tensor("a", size, "F32", offset=64), dtype="F32")
    capacity = 2 * group_bytes(one, kernel(), 2 * PART)
    computes = tasks([one], [kernel(statistics=2)], capacity, Compute)
    starts = [(0, 2 * PART), (2 * PART, 2 * PART), (4 * PART, PART)]
    for wave, passes in enumerate([(0,), (1,), ()]):
        for tile, (start, count) in enumerate(starts):
            assert computes[3 * wave + tile] == Compute(0, passes, passes == (), start, count, tile, 3)
    loads = tasks([one], [kernel(statistics=2)], capacity, Load)
    places = [(64 + 4 * start, 4 * count) for start, count in starts]
    assert [(load.segments[0].offset, load.nbytes) for load in loads] == 3 * places
    assert [load.last for load in loads] == 6 * [False] + 3 * [True]
    assert [save.offset for save in tasks([one], [kernel(statistics=2)], capacity, Save)] == [4 * start for start, _ in starts]


def test_statistics_have_no_buffer_and_the_map_waits_for_the_last_of_them() -> None:
    """Tiles of a pass follow each other; tiles of the map wait for the pass before them and not for each other."""
    one = recipe(tensor("a", 3 * PART))
    capacity = 2 * group_bytes(one, kernel(), PART)
    graph = build_graph([one], [kernel(statistics=2)], [0], capacity)
    computes = [node for node, data in graph.nodes(data=True) if data["kind"] == "compute"]
    before = [[n for n in graph.predecessors(node) if n in computes] for node in computes]
    passes, last = computes[:6], computes[5]
    assert before == [[], *([node] for node in passes[:-1]), [last], [last], [last]]
    assert [graph.nodes[node]["bytes"] for node in computes] == [0] * 6 + [whole(2 * PART)] * 3


def test_a_copy_has_no_output_buffer_and_its_save_reads_the_load() -> None:
    one = recipe(tensor("a", 1000))
    graph = build_graph([one], [kernel(copies=True)], [0], 1 << 20)
    assert [data["kind"] for _, data in graph.nodes(data=True)] == ["load", "compute", "save"]
    assert graph.nodes[1]["bytes"] == 0
    assert set(graph.predecessors(2)) == {0, 1}


def test_tiles_are_saved_one_after_the_other() -> None:
    one = recipe(tensor("a", 3 * PART))
    graph = build_graph([one], [kernel()], [0], 2 * group_bytes(one, kernel(), PART))
    saves = [node for node, data in graph.nodes(data=True) if data["kind"] == "save"]
    assert [(a, b) for a, b in graph.edges if a in saves] == [(saves[0], saves[1]), (saves[1], saves[2])]


def test_a_copy_into_another_type_has_an_output() -> None:
    one = recipe(tensor("a", 1000), dtype="F32")
    graph = build_graph([one], [kernel(copies=True)], [0], 1 << 20)
    assert graph.nodes[1]["bytes"] == PAGE
    assert set(graph.predecessors(2)) == {1}


def test_an_empty_tensor_is_one_tile_of_nothing() -> None:
    assert tasks([recipe(tensor("a", 0))], [kernel(statistics=1)], 0, Compute) == [Compute(0, (0,), True, 0, 0, 0, 1)]


def test_methods_without_statistics_stream_in_moderate_tiles() -> None:
    """They gain nothing from holding a whole tensor."""
    one = recipe(tensor("a", 100 * PART))
    assert group_bytes(one, kernel(), tile_elements(one, kernel(), 1 << 40)) <= STREAM_TILE
    assert tile_elements(one, kernel(statistics=1), 1 << 40) == 100 * PART


def test_tiles_are_whole_rows_where_the_method_asks_for_rows() -> None:
    """Here rows of 1000 elements, 65 of which are a block."""
    rows = kernel(statistics=1, block=65_000)
    one = recipe(tensor("a", 10_000_000))
    tile = tile_elements(one, rows, 2 * group_bytes(one, rows, 3_000_000))
    assert tile % rows.part == 0
    assert tile % 1000 == 0


made = st.builds(
    lambda size, dtypes, dtype: recipe(*(tensor(f"m{i}", size, d) for i, d in enumerate(dtypes)), dtype=dtype),
    st.one_of(st.integers(0, 5000), st.integers(0, 20 * PART), st.integers(1, 20).map(lambda parts: parts * PART)),
    st.lists(st.sampled_from(["BF16", "F32", "F64"]), min_size=1, max_size=20),
    st.sampled_from(["BF16", "F32"]),
)
kernels = st.builds(kernel, st.integers(0, 2), st.booleans(), st.sampled_from([BLOCK, 65_000, 3 * PART + 8]))


@trials(100, derandomize=True)
@given(one=made, how=kernels, capacity=st.integers(0, 1 << 28))
def test_a_tensor_or_two_tiles_fit_or_one_of_the_smallest(one: Recipe, how: Kernel, capacity: int) -> None:
    """One is read while the other is computed; no block is cut; every element is in one tile of each pass."""
    size = one.arguments.size
    try:
        tile = tile_elements(one, how, capacity)
    except BudgetError as error:
        assert error.needed > capacity
        capacity = error.needed
        tile = tile_elements(one, how, capacity)
    smallest = group_bytes(one, how, min(how.part, size))
    largest = group_bytes(one, how, min(tile, size))
    alone_in_memory = bool(how.statistics) and tile >= size and largest <= capacity
    assert 2 * largest <= capacity or alone_in_memory or (tile <= how.part and smallest <= capacity)
    assert tile % how.part == 0 or tile >= size
    share = capacity if how.statistics else min(capacity // 2, STREAM_TILE)
    assert (tile >= size) or group_bytes(one, how, size) > share, "one tile where it fits"
    waves: dict[tuple[object, ...], list[Compute]] = {}
    for compute in tasks([one], [how], capacity, Compute):
        waves.setdefault((compute.passes, compute.maps), []).append(compute)
    tiles = max(1, -(-size // tile))
    assert len(waves) == (1 if tiles == 1 else len(how.statistics) + 1)
    for wave in waves.values():
        assert [compute.tile for compute in wave] == list(range(tiles))
        ends = [compute.start + compute.count for compute in wave]
        assert [compute.start for compute in wave] == [0, *ends[:-1]]
        assert ends[-1] == size
    saves = tasks([one], [how], capacity, Save)
    assert sum(save.nbytes for save in saves) == size * ITEM_SIZES[one.dtype]


@trials(80, derandomize=True)
@given(many=st.lists(st.tuples(made, kernels), min_size=1, max_size=5), capacity=st.integers(0, 1 << 26))
def test_what_a_budget_error_names_is_enough_for_all_tensors(many: list[tuple[Recipe, Kernel]], capacity: int) -> None:
    recipes, ways = [one for one, _ in many], [how for _, how in many]
    numbers = range(len(many))
    try:
        graph = build_graph(recipes, ways, numbers, capacity)
    except BudgetError as error:
        assert error.needed > capacity
        capacity = error.needed
        graph = build_graph(recipes, ways, numbers, capacity)
        with pytest.raises(BudgetError):
            build_graph(recipes, ways, numbers, capacity - 1)
    assert schedule(graph, capacity).arena <= capacity
    loads = [data["task"] for _, data in graph.nodes(data=True) if data["kind"] == "load"]
    read: dict[str, int] = {}
    for load in loads:
        read[load.tensor.file.model] = read.get(load.tensor.file.model, 0) + load.nbytes
    assert sum(read.values()) <= sum(tensor.nbytes * (len(how.statistics) + 1) for one, how in many for tensor in one.leaves())
    assert all(tensor.nbytes <= read[tensor.file.model] for one in recipes for tensor in one.leaves())


# Several tensors.


def test_two_recipes_share_the_load_of_what_both_read() -> None:
    shared = tensor("a", 1000)
    recipes = [recipe(shared, tensor("b", 1000), name="x"), recipe(shared, tensor("c", 1000), name="y")]
    graph = build_graph(recipes, [kernel(), kernel()], [0, 1], 1 << 20)
    loads = [(node, data["task"].tensor.file.model) for node, data in graph.nodes(data=True) if data["kind"] == "load"]
    assert [model for _, model in loads] == ["a", "b", "c"]
    assert len([n for n in graph.successors(loads[0][0]) if graph.nodes[n]["kind"] == "compute"]) == 2


def test_an_input_given_twice_is_one_load() -> None:
    graph = build_graph([recipe(tensor("a", 1000), tensor("a", 1000))], [kernel()], [0], 1 << 20)
    assert graph.nodes[1]["kind"] == "compute"
    assert graph.nodes[1]["inputs"] == (0, 0)


def test_equal_offsets_of_different_files_are_different_loads() -> None:
    recipes = [recipe(tensor("a", 1000)), recipe(tensor("b", 1000))]
    assert len(tasks(recipes, [kernel(), kernel()], 1 << 20, Load)) == 2


def test_passes_do_not_share_loads() -> None:
    """Between two passes all other tiles are read; a buffer kept for so long would be the whole tensor."""
    one = recipe(tensor("a", 4 * PART))
    loads = tasks([one], [kernel(statistics=1)], 2 * group_bytes(one, kernel(), PART), Load)
    assert len(loads) == 8


def test_only_the_numbers_asked_for() -> None:
    recipes = [recipe(tensor("a", 10, offset=20 * i), name=f"t{i}") for i in range(3)]
    graph = build_graph(recipes, [kernel()] * 3, [2], 1 << 20)
    assert {data["task"].recipe for _, data in graph.nodes(data=True) if data["kind"] != "load"} == {2}
    assert len(build_graph(recipes, [kernel()] * 3, [], 0)) == 0


def in_order(graph: Any, plan: Schedule) -> bool:
    """Whether every tensor's tiles come in order within each pass."""
    reached: dict[tuple[object, ...], int] = {}
    for step in plan.steps:
        compute: Compute = graph.nodes[step.compute]["task"]
        key = (compute.recipe, compute.passes)
        if compute.tile != reached.get(key, -1) + 1:
            return False
        reached[key] = compute.tile
    return True


def test_tiles_come_in_order_though_another_tensor_reads_the_same_last_bytes() -> None:
    """
    A layer used twice, once copied and once scaled, as in upscaled models: a scaled tile has an output and so is smaller.

        copied   │    0    │    1    │    2    │ 3  │
        scaled   │ 0  │ 1  │ 2  │ 3  │ 4  │ 5  │ 6  │

    Tile 6 must not come first because tile 3 of the copy reads its bytes: tiles are saved in order, and it would hold its place
    in the ring until the other six, which have no place left, were saved.
    """
    size = 4096 * 14336
    recipes = [recipe(tensor("a", size), name="x"), recipe(tensor("a", size), name="y")]
    graph = build_graph(recipes, [kernel(copies=True), kernel()], [0, 1], 1 << 28)
    computes = [data["task"] for _, data in graph.nodes(data=True) if data["kind"] == "compute"]
    assert [max(c.tiles for c in computes if c.recipe == number) for number in (0, 1)] == [4, 7]
    assert in_order(graph, schedule(graph, 1 << 28))


@trials(100, derandomize=True)
@given(
    which=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), kernels), min_size=2, max_size=6),
    capacity=st.integers(1 << 22, 1 << 27),
)
def test_tiles_always_come_in_order(which: list[tuple[int, int, Kernel]], capacity: int) -> None:
    sizes = (300, 4 * PART, 9 * PART + 17)
    recipes = []
    for number, (first, second, _) in enumerate(which):
        size = sizes[first]
        inputs = [tensor("a", size, offset=first << 32), tensor("b", size, offset=first << 32)][: 1 + second % 2]
        recipes.append(recipe(*inputs, name=f"t{number}"))
    try:
        graph = build_graph(recipes, [how for _, _, how in which], range(len(which)), capacity)
    except BudgetError as error:
        capacity = error.needed
        graph = build_graph(recipes, [how for _, _, how in which], range(len(which)), capacity)
    plan = schedule(graph, capacity)
    assert in_order(graph, plan)
    assert plan.loaded >= sum(whole(t.nbytes) for t in {t for one in recipes for t in one.leaves()})
