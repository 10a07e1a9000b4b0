"""Every parameter is checked against the method's declaration."""

from __future__ import annotations

import re

import pytest

from weft.errors import ConfigError
from weft.ops.registry import methods
from weft.planner.config import load_config
from weft.planner.parameters import check_parameters

PLACES = {
    "parameters": "models: [{{model: a}}]\nparameters: {{{}}}\n",
    "models[0].parameters": "models: [{{model: a, parameters: {{{}}}}}]\n",
    "slices[0].parameters": "slices: [{{sources: [{{model: a}}], parameters: {{{}}}}}]\n",
    "slices[0].sources[0].parameters": "slices: [{{sources: [{{model: a, parameters: {{{}}}}}]}}]\n",
    "modules.x.parameters": "modules: {{x: {{models: [{{model: a}}], parameters: {{{}}}}}}}\n",
    "modules.x.models[0].parameters": "modules: {{x: {{models: [{{model: a, parameters: {{{}}}}}]}}}}\n",
    "modules.x.slices[0].sources[0].parameters": (
        "modules: {{x: {{slices: [{{sources: [{{model: a, parameters: {{{}}}}}]}}]}}}}\n"
    ),
}


def checked(parameter: str, place: str = "parameters", method: str = "ties") -> list[str]:
    config = load_config(PLACES[place].format(parameter) + f"merge_method: {method}\n", "merge.yaml")
    return check_parameters(config, methods()[method], methods())


@pytest.mark.parametrize("place", PLACES)
def test_everywhere(place: str) -> None:
    assert checked("weight: 0.5, density: [0.1, 1]", place) == []
    for parameter, says in (("weigth: 1", "did you mean 'weight'?"), ("weight: true", "is a number, not true")):
        with pytest.raises(ConfigError, match=rf"^merge\.yaml, line 1|2, {re.escape(place)}\.\w+: .*{re.escape(says)}"):
            checked(parameter, place)


@pytest.mark.parametrize("place", PLACES)
def test_of_the_whole_merge(place: str) -> None:
    if "models" in place or "sources" in place:
        with pytest.raises(ConfigError, match=rf"{re.escape(place)}\.normalize: .*belongs to the whole merge.*move it"):
            checked("normalize: true", place)
    else:
        assert checked("normalize: true", place) == []


@pytest.mark.parametrize(
    ("value", "good"), [("true", True), ("1", True), ("0", True), ("0.5", False), ("2", False), ("[true, 3]", False)]
)
def test_booleans(value: str, good: bool) -> None:
    if good:
        assert checked(f"normalize: {value}") == []
    else:
        with pytest.raises(ConfigError, match="'normalize' is true or false, not"):
            checked(f"normalize: {value}")


@pytest.mark.parametrize("value", ["-0.1", "[0.5, -1]", "[{filter: mlp, value: -3}, {value: 1}]", "[{value: [0, -1]}]"])
def test_every_number_that_is_written_is_looked_at(value: str) -> None:
    with pytest.raises(ConfigError, match="'density' is at least 0, not"):
        checked(f"density: {value}")


def test_what_has_no_effect_is_noted_once() -> None:
    config = load_config(
        "models: [{model: a, parameters: {t: 1}}, {model: b, parameters: {t: 1, int8_mask: true}}]\nmerge_method: ties\n"
    )
    notes = check_parameters(config, methods()["ties"], methods())
    assert len(notes) == 2
    assert notes[0].startswith("the parameter 't' has no effect on ties (it is one of ") and "slerp" in notes[0]
    assert notes[1].startswith("the parameter 'int8_mask' has no effect: ")


@pytest.mark.parametrize("method", sorted(methods()))
def test_declared_defaults_pass_their_own_checks(method: str) -> None:
    for parameter in methods()[method].parameters:
        if parameter.default is not None:
            value = str(parameter.default).lower() if isinstance(parameter.default, bool) else f"{parameter.default:.12f}"
            assert all(
                "int8_mask" in note or "no effect:" in note for note in checked(f"{parameter.name}: {value}", method=method)
            )
