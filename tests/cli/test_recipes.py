"""Recipes as people publish them: what works as it stands, what takes --lenient, and what no tool could read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import weft as package
from cli.command import weft
from cli.models import LINEAR, SLERP, SLICES, write_model
from cli.test_bad_configs import TIES, change
from trials import trials
from weft.errors import ConfigError
from weft.planner.config import load_config

NORMAL = LINEAR + "dtype: bfloat16\n"

WORKS = {
    "torch.bfloat16": (NORMAL, change(NORMAL, ("bfloat16", "torch.bfloat16"))),
    "bf16": (NORMAL, change(NORMAL, ("bfloat16", "bf16"))),
    "fp16, quoted": (LINEAR + "out_dtype: float16\n", LINEAR + "out_dtype: 'fp16'\n"),
    "quoted number": (LINEAR, change(LINEAR, ("weight: 1", 'weight: "1.0"'))),
    "YAML 1.1": (change(LINEAR, ("weight: 1", "weight: 0.00001")), change(LINEAR, ("weight: 1", "weight: 1e-5"))),
    "quoted layers": (SLICES, change(SLICES, ("[0, 4]", '[0, "4"]'), ("[0, 4]", "['0', 4.0]"))),
    "no parameters": (SLERP, change(SLERP, ("{model: b}", "{model: b, parameters: null}"))),
    "empty parameters": (SLERP, change(SLERP, ("{model: b}", "{model: b, parameters: {}}"))),
    "base model as a map": (SLERP, change(SLERP, ("base_model: a", "base_model: {model: {path: a, revision: null}}"))),
    "keys without values": (LINEAR, LINEAR + "slices:\nbase_model:\ndtype:\ntokenizer_source:\nname:\n"),
    "comments": (LINEAR, "# A recipe\n" + LINEAR.replace("\n", " # why\n")),
    "line ends of Windows": (LINEAR, LINEAR.replace("\n", "\r\n")),
    "a document's ends": (LINEAR, f"---\n{LINEAR}...\n"),
    "merge key": (
        "models:\n  - {model: a, parameters: {density: 0.5, weight: 3}}\n"
        "  - {model: b, parameters: {weight: 1, density: 0.5}}\nbase_model: a\nmerge_method: ties\n",
        "models:\n  - model: a\n    parameters: &p\n      density: 0.5\n      weight: 3\n  - model: b\n    parameters:\n"
        "      <<: *p\n      weight: 1\nbase_model: a\nmerge_method: ties\n",
    ),
    "density as a gradient": (
        change(TIES, ("ties", "dare_ties"), ("0.5", "[0.5, 0.5]")), change(TIES, ("ties", "dare_ties"))
    ),
    "int8_mask": (TIES, TIES + "parameters: {int8_mask: true}\n"),
}  # fmt: skip
"""A recipe, and another that says the same in the way of some that were published."""

LENIENT = {
    "unknown key": (LINEAR, LINEAR + "architecture: LlamaForCausalLM\n", "line 7, architecture: unknown key", "it is left out"),
    "seed": (
        LINEAR,
        LINEAR + "random_seed: 42\n",
        "line 7, random_seed: unknown key 'random_seed'; it is an option of the",
        "out",
    ),
    "unknown keys of a model": (
        LINEAR,
        change(LINEAR, ("model: a\n", "model: a\n    name: x\n    layer_range: [0, 4]\n")),
        "line 3, models[0].name",
        "out",
    ),
    "parameter beside 'parameters'": (
        TIES,
        change(TIES, ("model: b\n", "model: b\n    normalize: true\n")),
        "line 3, models[0].normalize: unknown key 'normalize'; it is a parameter: write it under 'parameters'",
        "it is left out",
    ),
    "unknown key of a slice": (
        SLICES,
        change(SLICES, ("- sources", "- dtype: x\n    sources")),
        "line 2, slices[0].dtype",
        "out",
    ),
    "unknown key of a condition": (
        change(SLERP, ("0.5", "[{filter: mlp, value: 1}, {value: 0}]")),
        change(SLERP, ("0.5", "[{filter: mlp, value: 1, name: x}, {value: 0}]")),
        "parameters.t[0].name: each item",
        "out",
    ),
    "unknown key of a model written as a map": (
        LINEAR,
        change(LINEAR, ("model: a", "model: {model: {path: a, branch: x}, note: y}")),
        "line 2, models[0].model.note",
        "out",
    ),
    "unknown parameter": (
        TIES,
        change(TIES, ("density", "embed_slerp: 1, density")),
        "ties has no parameter 'embed_slerp'",
        "effect",
    ),
    "lambda at a model": (TIES, change(TIES, ("weight", "lambda: 3, weight")), "'lambda' belongs to the whole merge", "effect"),
    "t at a source": (
        SLICES,
        change(SLICES, ("model: b\n", "model: b\n        parameters: {t: 1}\n")),
        "line 6, slices[0].sources[1].parameters.t: 't' belongs to the whole merge",
        "it has no effect",
    ),
    "a key twice": (TIES, "base_model: c\n" + TIES, "line 5: key 'base_model' appears twice in the same map", "last one counts"),
    "a parameter twice": (
        TIES,
        change(TIES, ("{", "{weight: 9, ")),
        "line 3, models[0].parameters: key 'weight' appears",
        "counts",
    ),
    "a truth value for a weight": (
        LINEAR,
        change(LINEAR, ("weight: 1", "weight: true")),
        "'weight' is a number, not true",
        "counts as 1",
    ),
    "a number for a truth value": (
        LINEAR,
        LINEAR + "parameters: {normalize: 0.5}\n",
        "line 7, parameters.normalize: 'normalize' is true or false",
        "counts as true",
    ),
    "unknown keys in unknown maps": (LINEAR, "x-shared: {y: {z: 1}}\n" + LINEAR, "line 1, x-shared: unknown key", "out"),
}
"""A recipe, the same with something in it that other tools read over, the error, and the end of the note."""

NEVER = {
    "float64": (LINEAR + "dtype: float64\n", "expected 'float16', 'bfloat16' or 'float32', not 'float64'"),
    "an empty list of models": ("models: []\nmerge_method: linear\n", "expected at least 1 item"),
    "an empty list of slices": ("slices: []\nmerge_method: passthrough\n", "expected at least 1 item"),
    "a parameter without a value": (change(LINEAR, ("weight: 1", "weight:")), "expected a number"),
    "a list of parameters": (change(LINEAR, ("{weight: 1}", "[weight: 1]")), "expected a map"),
    "layers as a text": (change(SLICES, ("[0, 4]", "0-4")), "expected a list, not '0-4'"),
    "tabs": (LINEAR.replace("  ", "\t"), "not valid YAML"),
    "a method that nobody has": (change(LINEAR, ("linear", "frankenmerge")), "there is no method 'frankenmerge'"),
    "a base model by another key": (change(SLERP, ("base_model: a", "base_model: {path: a}")), "has the key 'model'"),
    "a method twice, the last of which is none": (LINEAR + "merge_method: x\n", "there is no method 'x'"),
}


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models a, b and c of four layers, where all of this takes place."""
    folder = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, name in enumerate("abc"):
            write_model(Path(name), seed=seed)
        yield


@pytest.mark.parametrize("name", WORKS)
def test_what_is_said_in_another_way_is_the_same_merge(name: str) -> None:
    usual, other = WORKS[name]
    assert package.plan(other).digest == package.plan(usual).digest


@pytest.mark.parametrize("name", LENIENT)
def test_what_others_read_over_is_an_error_or_a_note(name: str) -> None:
    usual, odd, says, remedy = LENIENT[name]
    with pytest.raises(ConfigError) as refused:
        package.plan(odd)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert "; with --lenient " in str(refused.value) and str(refused.value).endswith(remedy)
    plan = package.plan(odd, lenient=True)
    assert [note for note in plan.notes if says in note and note.endswith(remedy)], plan.notes
    assert plan.digest == package.plan(usual).digest
    assert package.plan(usual, lenient=True).notes == package.plan(usual).notes


@pytest.mark.parametrize("name", NEVER)
def test_what_nobody_can_read_is_one_line(name: str) -> None:
    text, says = NEVER[name]
    Path("never.yaml").write_text(text)
    assert says in weft("plan", "never.yaml", "--lenient").line


ALL = """\
models:
  - model: a
    name: first
  - model: b
    parameters: {weight: true, weight: true, lambda: 3, embed_slerp: true}
base_model: a
architecture: MistralForCausalLM
merge_method: ties
parameters: {normalize: 2}
"""


def test_a_recipe_of_all_oddities_runs_with_one_flag() -> None:
    Path("all.yaml").write_text(ALL)
    assert weft("run", "all.yaml", "out").line.startswith("all.yaml, line 5, models[1].parameters: key 'weight' appears twice")
    done = weft("run", "all.yaml", "out", "--lenient")
    assert done.code == 0, done.err
    for part in ("architecture", "models[0].name", "'lambda'", "'embed_slerp'", "appears twice", "counts as 1", "counts as true"):
        assert part in done.out.replace("\n", " "), part
    assert weft("verify", "out").code == 0
    assert len(json.loads(weft("plan", "all.yaml", "--lenient", "--json").out)["notes"]) >= 7
    assert "weight = 1" in weft("explain", "all.yaml", "model.norm.weight", "--lenient").out


def test_a_saved_plan_stays_lenient() -> None:
    Path("odd.yaml").write_text(LINEAR + "architecture: x\n")
    assert weft("plan", "odd.yaml", "--save", "lenient.json", "--lenient").code == 0
    assert weft("run", "lenient.json", "saved").code == 0
    assert "unknown key" in weft("plan", "lenient.json", "--no-lenient").line
    shard = next(Path("saved").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    repaired = weft("verify", "saved", "--repair")
    assert repaired.code == 0, repaired


TOKENS = (
    LINEAR + "tokenizer: {source: union, tokens: {t: {source: {kind: model_token, model: a, token: y}}}, pad_to_multiple_of: 8}\n"
)
MIXTURE = """\
base_model: a
experts: [{source_model: a, positive_prompts: [x]}, {source_model: {model: {path: b}}, noise_scale: 0.1}]
gate_mode: random
"""
RECIPES = [yaml.safe_load(text) for text in (LINEAR, SLERP, SLICES, TIES, TOKENS, MIXTURE)]
ODD: list[Any] = [
    None, "", [], {}, "x", 0, -1, True, 1.5, 1e308, float("nan"), 10**30, "0.5", "torch.bfloat16", "a+b", "a@b", "+", "~nobody/x",
    "\0", "a" * 300, [[]], [{}], [None], {"a": 1}, {"value": 1}, [{"value": None}], {"kind": "zero", "x": 1},
    {"model": {}}, {"model": {"path": "a", "x": 1}, "y": 2},
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every map and list within, with each of its keys."""
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


@trials(60)
@given(st.data())
def test_any_recipe_is_a_merge_or_one_line(data: st.DataObject) -> None:
    recipe = copy.deepcopy(data.draw(st.sampled_from(RECIPES)))
    holder, key = data.draw(st.sampled_from(list(places(recipe))))
    new = data.draw(st.sampled_from(["weight", "x"])) if isinstance(holder, dict) and data.draw(st.booleans()) else key
    holder[new] = data.draw(st.sampled_from(ODD))
    for lenient in (False, True):
        try:
            load_config(yaml.safe_dump(recipe), lenient=lenient)
        except ConfigError as error:
            assert "\n" not in str(error)


def test_a_recipe_cannot_be_read_over_for_ever() -> None:
    row = "{kind: model_token, model: {model: {path: a, x: 1}, y: 2}, token: t}"
    text = f"{LINEAR}tokenizer: {{source: union, tokens: {{t: {{source: {row}}}}}}}\n"
    loaded = load_config(text, lenient=True)
    assert [note.split(",")[2].split(":")[0] for note in loaded.notes] == [
        " tokenizer.tokens.t.source.model.y", " tokenizer.tokens.t.source.model.model.x",
    ]  # fmt: skip
    assert loaded.merge.tokenizer is not None and loaded.merge.tokenizer.tokens is not None


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "dare_ties"])
def test_a_density_of_any_size_keeps_all(method: str) -> None:
    text = change(TIES, ("ties", method), ("density: 0.5", "density: 1.0e+308"))
    assert package.plan(text).recipes


def test_oddities_of_stages_are_noted_too() -> None:
    text = f"name: first\nodd: 1\n{LINEAR}---\nmerge_method: passthrough\nmodels: [{{model: first, x: 1}}]\n"
    with pytest.raises(ConfigError, match="unknown key"):
        package.plan(text)
    notes = package.plan(text, lenient=True).notes
    assert [note for note in notes if "line 2, odd" in note] and [note for note in notes if "models[0].x" in note]
