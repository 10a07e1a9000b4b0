"""The merged model's config.json."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from weft.planner.model_config import LayerSource, merged_config


def sources(config: dict[str, Any], *layers: int) -> list[LayerSource]:
    return [(config, layer) for layer in layers]


def test_nothing_asked_is_nothing_changed_and_nothing_shared() -> None:
    base = {"num_hidden_layers": 2, "rope": {"x": [1]}, "torch_dtype": "float16"}
    merged = merged_config(base, None, None)
    assert merged == base
    merged["rope"]["x"].append(2)
    assert base["rope"] == {"x": [1]}


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_the_layer_count_under_the_family_s_own_key(key: str) -> None:
    base = {key: 4, "hidden_size": 4}
    assert merged_config(base, None, sources(base, 0, 1, 1, 2, 3, 3)) == {key: 6, "hidden_size": 4}


def test_a_config_without_a_layer_count_gets_one() -> None:
    assert merged_config({}, None, sources({}, 0, 0)) == {"num_hidden_layers": 2}


def test_lists_of_one_item_a_layer_follow_the_layers() -> None:
    base = {
        "num_hidden_layers": 3,
        "layer_types": ["full", "sliding", "full"],
        "sliding_window_pattern": [1, 2, 3],
        "eos_token_id": [7, 8, 9],
        "layer_groups": [1, 2],
    }
    merged = merged_config(base, None, sources(base, 2, 1, 1, 0))
    assert merged["layer_types"] == ["full", "sliding", "sliding", "full"]
    assert merged["sliding_window_pattern"] == [3, 2, 2, 1]
    assert merged["eos_token_id"] == [7, 8, 9], "as long as there are layers, but not about them"
    assert merged["layer_groups"] == [1, 2], "not as long as there are layers"


def test_a_layer_of_another_model_brings_its_own_item() -> None:
    base = {"num_hidden_layers": 2, "layer_types": ["a0", "a1"]}
    other = {"num_hidden_layers": 3, "layer_types": ["b0", "b1", "b2"]}
    merged = merged_config(base, None, [(base, 0), (other, 2), (other, 1)])
    assert merged["layer_types"] == ["a0", "b2", "b1"]
    silent = {"num_hidden_layers": 9}
    assert merged_config(base, None, [(silent, 1), (silent, 8)])["layer_types"] == ["a1", "a1"]


def test_a_language_model_s_own_part() -> None:
    base = {
        "text_config": {"num_hidden_layers": 2, "layer_types": ["x", "y"], "torch_dtype": "float16"},
        "vision_config": {"num_hidden_layers": 2, "torch_dtype": "float16"},
    }
    before = copy.deepcopy(base)
    merged = merged_config(base, "bfloat16", sources(base, 1, 0, 1))
    assert merged["text_config"] == {"num_hidden_layers": 3, "layer_types": ["y", "x", "y"], "torch_dtype": "bfloat16"}
    assert merged["vision_config"] == {"num_hidden_layers": 2, "torch_dtype": "bfloat16"}
    assert merged["torch_dtype"] == "bfloat16"
    assert "num_hidden_layers" not in merged
    assert base == before


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({}, {"torch_dtype": "float16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "float16"}),
        ({"dtype": "float32"}, {"dtype": "float16"}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "float16", "torch_dtype": "float16"}),
        ({"dtype": "float32", "vision": {"a": 1}}, {"dtype": "float16", "vision": {"a": 1}}),
    ],
)
def test_the_element_type_under_the_key_it_had(base: dict[str, Any], expected: dict[str, Any]) -> None:
    assert merged_config(base, "float16", None) == expected
