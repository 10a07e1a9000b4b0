"""The merged model's config.json: its element type."""

from __future__ import annotations

from typing import Any

import pytest

from weft.planner.model_config import merged_config


def test_nothing_asked_is_nothing_changed_and_nothing_shared() -> None:
    base = {"num_hidden_layers": 2, "rope": {"x": [1]}, "torch_dtype": "float16"}
    merged = merged_config(base, None)
    assert merged == base
    merged["rope"]["x"].append(2)
    assert base["rope"] == {"x": [1]}


def test_the_parts_of_a_model_have_it_too() -> None:
    base = {"text_config": {"torch_dtype": "float16"}, "vision_config": {"dtype": "float16"}}
    merged = merged_config(base, "bfloat16")
    assert merged["text_config"] == {"torch_dtype": "bfloat16"} and merged["vision_config"] == {"dtype": "bfloat16"}
    assert merged["torch_dtype"] == "bfloat16"


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
    assert merged_config(base, "float16") == expected
