"""The layout of the output: headers that are right before any data is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load

from weft.ops.method import Arguments
from weft.planner.catalog import InputTensor, WeightFile
from weft.planner.dtypes import ITEM_SIZES
from weft.planner.recipe import Recipe
from weft.planner.shards import lay_out

KNOWN = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]  # torch has them all


def recipe(name: str, dtype: str = "F32", shape: tuple[int, ...] = (4,)) -> Recipe:
    source = InputTensor(name, dtype, shape, WeightFile("m", "f", 0, ""), 0, 0)
    return Recipe(name, dtype, shape, None, (source,), Arguments(shape, ({},)), None, None, "digest")


def test_what_fits_is_one_file() -> None:
    shards, places = lay_out([recipe("a"), recipe("b")], 32)
    assert [shard.name for shard in shards] == ["model.safetensors"]
    assert [place.shard for place in places] == [0, 0]
    assert shards[0].size == len(shards[0].header) + 32


def test_what_does_not_fit_begins_the_next_shard() -> None:
    shards, places = lay_out([recipe("a"), recipe("b"), recipe("c")], 47)
    assert [shard.name for shard in shards] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert [shard.recipes for shard in shards] == [(0, 1), (2,)]
    assert [place.shard for place in places] == [0, 0, 1]


def test_a_tensor_larger_than_the_limit_has_a_shard_of_its_own() -> None:
    shards, _ = lay_out([recipe("a"), recipe("big", shape=(100,)), recipe("c")], 40)
    assert [shard.recipes for shard in shards] == [(0,), (1,), (2,)]


def test_wide_elements_first_so_that_all_are_aligned() -> None:
    recipes = [recipe("odd", "U8", (3,)), recipe("half", "BF16", (1,)), recipe("wide", "F64", (2,))]
    shards, places = lay_out(recipes, 1000)
    assert shards[0].recipes == (2, 1, 0)
    start = len(shards[0].header)
    assert [place.offset - start for place in places] == [18, 16, 0]


def test_the_header_says_that_the_tensors_are_torch_s() -> None:
    (shard,), _ = lay_out([recipe("a")], 100)
    assert json.loads(shard.header[8:])["__metadata__"] == {"format": "pt"}


shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
many = st.lists(st.tuples(st.sampled_from(KNOWN), shapes), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tensors=many, limit=st.integers(1, 3000))
def test_any_tensors_in_any_limit(tensors: list[tuple[str, tuple[int, ...]]], limit: int) -> None:
    """The safetensors library reads header and data back; tensors lie one after another, aligned, and within the limit."""
    recipes = [recipe(f"layer.{i}é", dtype, shape) for i, (dtype, shape) in enumerate(tensors)]
    shards, places = lay_out(recipes, limit)
    assert sorted(number for shard in shards for number in shard.recipes) == list(range(len(recipes)))
    for index, shard in enumerate(shards):
        assert len(shard.header) % 8 == 0
        end = len(shard.header)
        for number in shard.recipes:
            place, one = places[number], recipes[number]
            assert (place.shard, place.offset, place.nbytes) == (index, end, ITEM_SIZES[one.dtype] * one.arguments.size)
            assert (place.offset - len(shard.header)) % ITEM_SIZES[one.dtype] == 0
            end += place.nbytes
        assert shard.size == end
        assert end - len(shard.header) <= limit or len([n for n in shard.recipes if places[n].nbytes]) == 1
        marks = {number: bytes([number + 1]) * places[number].nbytes for number in shard.recipes}
        read = load(shard.header + b"".join(marks.values()))
        assert len(read) == len(shard.recipes)
        for number in shard.recipes:
            found = read[recipes[number].name]
            assert tuple(found.shape) == recipes[number].shape
            if recipes[number].dtype in ("U8", "I8"):
                assert set(found.flatten().tolist()) <= {number + 1}
    order = [number for shard in shards for number in sorted(shard.recipes)]
    assert order == list(range(len(recipes))), "each shard holds what comes next"


@pytest.mark.parametrize("name", ['quote"d', "new\nline", "naïve.☃", "a" * 300])
def test_names_that_json_must_escape(name: str, tmp_path: Path) -> None:
    (shard,), _ = lay_out([recipe(name, "U8", (3,))], 100)
    path = tmp_path / shard.name
    path.write_bytes(shard.header + b"abc")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == [name]


def test_nothing_is_one_empty_shard() -> None:
    shards, places = lay_out([], 100)
    assert len(shards) == 1
    assert shards[0].size == len(shards[0].header)
    assert places == ()
