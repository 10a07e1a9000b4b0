"""`weft explain`: where a tensor comes from, and that what it says is what is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cli.command import weft
from cli.models import write_model
from weft.planner.config import read_config
from weft.planner.explain import Made, Stored, explain, find_tensor
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan

UP = "model.layers.2.mlp.up_proj.weight"
SLERP = """\
models:
  - model: a
  - model: b
merge_method: slerp
base_model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 1]
    - filter: mlp
      value: [1, 0.25]
    - value: 0.5
"""
TIES = """\
base_model: a
merge_method: ties
parameters: {density: 0.5, lambda: [0.5, 1.5]}
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - model: b
        layer_range: [0, 2]
        parameters: {weight: [{filter: q_proj, value: 0.25}, {filter: nothing, value: 3}]}
    parameters:
      weight: 0.75
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [1, 3], parameters: {weight: [0, 1]}}
"""
STAGES = """\
name: half
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 3}}
---
merge_method: task_arithmetic
base_model: a
models:
  - model: half
    parameters: {weight: 0.125}
  - model: b+x
    parameters: {weight: 0.5}
"""


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        write_model(Path(name), seed=seed)
    Path("x").mkdir()
    module = f"base_model.model.{UP.removesuffix('.weight')}"
    factors = {f"{module}.lora_A.weight": torch.ones(2, 8), f"{module}.lora_B.weight": torch.ones(16, 2)}
    save_file(factors, "x/adapter_model.safetensors")
    Path("x/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


def write(text: str) -> str:
    Path("merge.yaml").write_text(text)
    return "merge.yaml"


def planned(text: str) -> Plan:
    return make_plan(read_config(Path(write(text))), Options(Budget(256 << 20, 0, 2)))


@pytest.mark.parametrize("text", [SLERP, TIES, STAGES], ids=["slerp", "ties", "stages"])
def test_what_is_said_is_what_is_computed(text: str) -> None:
    plan = planned(text)
    for number, recipe in enumerate(plan.recipes):
        found = explain(plan, number)
        made, place = found.made, plan.places[number]
        assert (made.tensor, made.shape, made.dtype) == (recipe.name, recipe.shape, recipe.dtype)
        assert {one.parameter: one.value for one in made.shared if one.value is not None} == dict(recipe.arguments.shared)
        for one, values in zip(made.inputs, recipe.arguments.models, strict=True):
            said = {each.parameter: each.value for each in one.parameters if each.value is not None}
            assert said == dict(values)
        for one, tensor in zip(made.inputs, recipe.inputs, strict=True):
            if isinstance(one, Stored):
                assert one.tensor == tensor.name and one.offset > 0
        assert (found.shard, found.offset) == (plan.shards[place.shard].name, place.offset)
        assert found.memory > 0 and found.tiles == 1
    assert sum(explain(plan, n).bytes_read for n in range(len(plan.recipes))) == sum(plan.bytes_read().values())


def lines(made: Made | Stored) -> dict[str, tuple[int | None, str]]:
    found = made.parameters if isinstance(made, Stored) else (*made.parameters, *made.shared)
    return {one.parameter: (one.line, one.decided_by) for one in found}


def test_the_line_that_decided() -> None:
    plan = planned(SLERP)

    def t_of(name: str) -> Any:
        return explain(plan, find_tensor(plan, name)).made.shared[0]

    assert (t_of("layers.1.self_attn").line, t_of("layers.1.self_attn").filter) == (9, "self_attn")
    assert (t_of(UP).line, t_of(UP).gradient, t_of(UP).value) == (11, (1.0, 0.25), 0.5)
    assert (t_of("embed").line, t_of("embed").filter, t_of("embed").gradient) == (12, None, ())


def test_levels_fall_through_to_the_next() -> None:
    plan = planned(TIES)

    def weight(name: str) -> tuple[int | None, str]:
        return lines(explain(plan, find_tensor(plan, name)).made.inputs[1])["weight"]

    assert weight("layers.0.self_attn.q_proj.weight") == (9, "config")  # the source's own
    assert weight("layers.0.mlp.up_proj.weight") == (11, "config")  # no condition fits: the slice's
    assert weight(UP) == (14, "config")
    whole = lines(explain(plan, find_tensor(plan, UP)).made)
    assert whole["lambda"] == (3, "config") and whole["normalize"] == (None, "default")


def test_stages_and_adapters() -> None:
    plan = planned(STAGES)
    made = explain(plan, find_tensor(plan, UP)).made
    inputs = {one.stage if isinstance(one, Made) else one.model: one for one in made.inputs}
    half, patched = inputs["half"], inputs[None]
    assert isinstance(half, Made) and half.method == "linear" and [lines(one)["weight"][0] for one in half.inputs] == [4, 5]
    assert isinstance(patched, Made) and patched.method == "adapter" and "W + 2·B·A" in patched.summary
    assert [one.model for one in patched.inputs if isinstance(one, Stored)] == ["b", "x", "x"]
    out = weft("explain", "merge.yaml", UP).out
    assert "stage half: linear" in out and "merge.yaml:11, models[0].parameters.weight" in out


def test_people_and_programs() -> None:
    write(SLERP)
    out = weft("explain", "merge.yaml", "layers.2.mlp.up").out
    assert "t = 0.5  merge.yaml:11, parameters.t[1].value, for names with 'mlp', at t = 0.6667 of [1.0, 0.25]" in out
    assert "in one tile: 1 pass over the inputs" in out and "to model.safetensors, from byte" in out
    found = json.loads(weft("explain", "merge.yaml", UP, "--json").out)
    assert found["made"]["shared"][0]["line"] == 11 and [one["model"] for one in found["made"]["inputs"]] == ["a", "b"]


def test_a_name_that_is_none_or_many() -> None:
    write(SLERP)
    assert (
        "did you mean 'model.layers.2.mlp.up_proj.weight'?"
        in weft("explain", "merge.yaml", "model.layers.2.mlp.upproj.weight").line
    )
    assert "'up_proj' is 4 tensors of the result" in weft("explain", "merge.yaml", "up_proj").line
    assert weft("explain", "merge.yaml", "*.2.*up*").code == 0
    assert "the result has no tensor" in weft("explain", "merge.yaml", "[").line


def test_whether_it_is_there() -> None:
    write(SLERP)

    def state() -> str:
        return str(json.loads(weft("explain", "merge.yaml", UP, "out", "--json").out)["out"])

    assert state() == "missing"
    assert weft("run", "merge.yaml", "out", "--quiet").code == 0
    assert state() == "there"
    write(SLERP.replace("0.25", "0.5"))
    assert state() == "changed"
    assert "would be computed again" in weft("explain", "merge.yaml", UP, "out").out
