"""The config language as data, from any structure."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trials import trials
from weft.errors import ConfigError
from weft.ops.registry import methods
from weft.planner.config import MergeConfig, json_schema, load_config
from weft.planner.mixture_config import MixtureConfig
from weft.planner.parameters import check_parameters

KEYS = sorted(
    {"model", "sources", "layer_range", "filter", "value", "path", "revision", "lora", "weight", "t", "tokenizer_source"}
    | set(MergeConfig.model_fields)
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats()
    | st.sampled_from(["a", "org/b@c+d", "", "@", "ties", "*", "1e-3"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=25
)


@trials(120)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES)
def test_any_structure_is_a_config_or_a_config_error(value: Any) -> None:
    check(yaml.safe_dump(value))


SETTINGS = st.floats(-1, 2) | st.lists(st.floats(-1, 2) | st.booleans(), max_size=3) | VALUES
PARAMETERS = st.dictionaries(
    st.sampled_from(["weight", "t", "density", "normalize", "lambda", "int8_mask", "x"]), SETTINGS, max_size=3
)
REFERENCES = st.sampled_from(["a", "b", "org/c@main"]) | SCALARS
ENTRIES = st.fixed_dictionaries({"model": REFERENCES}, optional={"parameters": PARAMETERS, "layer_range": VALUES})
NEARLY = st.fixed_dictionaries(
    {"merge_method": st.sampled_from(["ties", "slerp", "linear", "tiez"])},
    optional={
        "models": st.lists(ENTRIES, max_size=3),
        "slices": st.lists(st.fixed_dictionaries({"sources": st.lists(ENTRIES, max_size=2)}), max_size=2),
        "base_model": REFERENCES,
        "parameters": PARAMETERS,
        "dtype": st.sampled_from(["float16", "int8", 3]),
    },
)


@trials(120)
@given(NEARLY)
def test_nearly_right_configs_are_right_or_a_config_error(value: Any) -> None:
    check(yaml.safe_dump(value))


def check(text: str) -> None:
    try:
        config = load_config(text, "merge.yaml")
        method = methods().get(config.merge.merge_method)
        if method is not None:
            check_parameters(config, method, methods())
    except ConfigError as error:
        assert str(error).startswith("merge.yaml") and "pydantic" not in str(error) and "Input should" not in str(error)


@trials(100)
@given(st.text(max_size=80))
def test_any_text_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^merge\.yaml"):
        load_config(text, "merge.yaml")


def test_all_of_the_language() -> None:
    config = load_config(
        """
        modules:
          encoder:
            slices:
              - base_model: a
                parameters: {weight: [0, 1]}
                sources:
                  - {model: a@main, layer_range: [0, 2], parameters: {weight: [{filter: mlp, value: [1, 2]}, {value: 1e-3}]}}
          decoder: {models: [{model: {model: {path: org/x, revision: v1}}}]}
        base_model: {model: org/x}
        merge_method: linear
        parameters: {normalize: false}
        dtype: bfloat16
        out_dtype: float32
        name: all of it
        """
    ).merge
    assert config.modules is not None and config.modules["encoder"].slices is not None
    source = config.modules["encoder"].slices[0].sources[0]
    assert (str(source.model), source.layer_range) == ("a@main", [0, 2])
    assert source.parameters is not None
    assert source.parameters["weight"].at("x.mlp.y", 0.5) == 1.5
    assert source.parameters["weight"].at("x.attention.y", 0.5) == 0.001
    assert config.modules["decoder"].models is not None
    assert str(config.modules["decoder"].models[0].model) == "org/x@v1"
    assert (str(config.base_model), config.dtype, config.out_dtype, config.name) == ("org/x", "bfloat16", "float32", "all of it")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_range", [True, 4]),
        ("layer_range", ["x", 4]),
        ("layer_range", [0, 3.5]),
        ("model", ["a"]),
        ("parameters", "weight"),
    ],
)
def test_nothing_is_taken_for_something_else(key: str, value: object) -> None:
    source = {"model": "a", "layer_range": [0, 4]} | {key: value}
    with pytest.raises(ConfigError, match=rf"slices\[0\]\.sources\[0\]\.{key}"):
        load_config(json.dumps({"slices": [{"sources": [source]}], "merge_method": "passthrough"}))


def test_unknown_keys_come_before_what_they_leave_missing() -> None:
    with pytest.raises(ConfigError, match="unknown key 'model'; did you mean 'models'"):
        load_config("model: [{model: a}]\nmerge_method: linear\n")


def test_the_schema_knows_every_key() -> None:
    schema = json_schema(["linear", "ties"])
    kinds = schema["$defs"]
    assert set(kinds["MergeConfig"]["properties"]) == set(MergeConfig.model_fields)
    assert set(kinds["MixtureConfig"]["properties"]) == set(MixtureConfig.model_fields)
    assert kinds["MergeConfig"]["properties"]["merge_method"]["enum"] == ["linear", "ties"]
    for name in ("InputModel", "Source", "Slice", "Module", "Expert", "MergeConfig", "MixtureConfig"):
        assert schema["$defs"][name]["additionalProperties"] is False
