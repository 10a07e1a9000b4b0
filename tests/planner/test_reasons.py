"""What made a tensor survives the manifest, and every field of it that changes is named."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.planner.ingredients import Ingredient, Ingredients, Tables, decode
from weft.planner.reasons import Reason, differences, summarise, where

A = Ingredient("org/a", "model.safetensors", "10:1:x", "w", "", None)
B = Ingredient("org/b", "model.safetensors", "10:2:y", "w", "", None)
MADE = Ingredients("slerp", 1, "BF16", None, (2, 3), ({}, {}), {"t": 0.5}, 0, None, None, (A, B))

names = st.text(max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)
leaves = st.builds(Ingredient, names, names, names, names, names, st.none())


def made(inputs: st.SearchStrategy[Ingredient]) -> st.SearchStrategy[Ingredients]:
    values = st.dictionaries(names, numbers, max_size=3)
    return st.builds(
        Ingredients, names, st.integers(), names, st.none() | names, st.lists(st.integers(), max_size=3).map(tuple),
        st.lists(values, max_size=3).map(tuple), values, st.none() | st.integers(), st.none() | names, st.none() | names,
        st.lists(inputs, max_size=3).map(tuple), st.none() | names,
    )  # fmt: skip


def computed(inner: st.SearchStrategy[Ingredient]) -> st.SearchStrategy[Ingredient]:
    return st.builds(lambda name, what: Ingredient("", "", "", name, "", what), names, made(inner))


@given(st.lists(made(st.recursive(leaves, computed, max_leaves=4)), min_size=1, max_size=4))
def test_all_of_it_comes_back_from_the_manifest(wanted: list[Ingredients]) -> None:
    tables = Tables()
    entries = [tables.entry(item) for item in wanted]
    stored: Any = json.loads(json.dumps([tables.plain(), entries]))
    assert [decode(stored[0], entry) for entry in stored[1]] == wanted


def test_what_tensors_share_is_stored_once() -> None:
    tables = Tables()
    for _ in range(100):
        tables.entry(MADE)
    assert {key: len(rows) for key, rows in tables.plain().items()} == {"files": 2, "settings": 1, "computed": 0}


@pytest.mark.parametrize("entry", [{}, {"settings": 0, "shape": [], "inputs": [0]}, {"settings": 9, "shape": [], "inputs": []}])
def test_what_no_writer_wrote_is_an_error_and_not_a_loop(entry: dict[str, Any]) -> None:
    tables = Tables()
    tables.entry(MADE)
    circle = {"settings": 0, "shape": [], "inputs": [0]}
    with pytest.raises((KeyError, IndexError, TypeError, ValueError)):
        decode(tables.plain() | {"computed": [["w", circle]]}, entry)


CHANGES: list[tuple[dict[str, Any], Reason]] = [
    ({"method": "nuslerp"}, Reason("method", "", "slerp", "nuslerp")),
    ({"version": 2}, Reason("version", "slerp", 1, 2)),
    ({"dtype": "F16"}, Reason("dtype", "", "BF16", "F16")),
    ({"shape": (3, 3)}, Reason("shape", "", (2, 3), (3, 3))),
    ({"shared": {"t": 0.7}}, Reason("parameter", "t", 0.5, 0.7)),
    ({"shared": {}}, Reason("parameter", "t", 0.5, None)),
    ({"models": ({"weight": 1.0}, {})}, Reason("parameter", "weight", None, 1.0)),
    ({"base": 1}, Reason("base", "", 0, 1)),
    ({"seed": "4"}, Reason("seed", "", None, "4")),
    ({"special": "x"}, Reason("adapter")),
    ({"computed_by": "a GPU"}, Reason("device", "", "the CPU", "a GPU")),
    ({"inputs": (A, replace(B, identity="10:3:y"))}, Reason("input", "org/b/model.safetensors", "10:2:y", "10:3:y")),
    ({"inputs": (A, replace(B, name="v"))}, Reason("source", "", "w", "v")),
    ({"inputs": (A, replace(B, rows="r"))}, Reason("tokens")),
    ({"inputs": (A,)}, Reason("models", "", ("org/a", "org/b"), ("org/a",))),
    ({"inputs": (A, replace(B, model="c", identity="z"))}, Reason("models", "", ("org/a", "org/b"), ("org/a", "c"))),
    ({}, Reason("recipe")),
]  # fmt: skip


@pytest.mark.parametrize(("change", "reason"), CHANGES, ids=[reason.kind for _, reason in CHANGES])
def test_every_change_is_named(change: dict[str, Any], reason: Reason) -> None:
    assert differences(MADE, replace(MADE, **change)) == (reason,)
    inner, changed = (replace(MADE, inputs=(Ingredient("", "", "", "w", "", what),)) for what in (MADE, replace(MADE, **change)))
    assert differences(inner, changed) == (reason,)
    (line,) = summarise({"w": [reason]})
    assert line.text(1)


def test_a_model_that_was_only_renamed_is_the_same() -> None:
    assert differences(MADE, replace(MADE, inputs=(replace(A, model="mirror/a"), B))) == (Reason("recipe"),)
    assert differences(None, MADE) == (Reason("new"),)


def test_changes_are_told_in_few_words() -> None:
    layers = [f"model.layers.{i}" for i in range(4)]
    mlp = [f"{layer}.mlp.{name}.weight" for layer in layers for name in ("up_proj", "down_proj")]
    assert where(mlp, 20) == "mlp (8 tensors)"
    assert where(mlp[:1], 20) == "mlp.up_proj (1 tensor)"
    assert where(mlp, 8) == "all 8 tensors"
    assert where(["model.norm.weight", "lm_head.weight"], 9) == "model.norm, lm_head (2 tensors)"
    many = [f"{layer}.{name}.weight" for layer in layers for name in ("a", "b", "c", "d")]
    assert where(many, 20) == "16 tensors"
    gradient = summarise({name: [Reason("parameter", "t", 0.1, i / 10)] for i, name in enumerate(mlp)})
    assert [change.text(20) for change in gradient] == ["t changed for mlp (8 tensors)"]
