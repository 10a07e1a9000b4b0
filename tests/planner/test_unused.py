"""Filters and values that change nothing are said, and no others."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from checkpoints import llama_config, llama_tensors, write_model
from cli.command import weft as command_line
from trials import trials
from weft.planner.unused import SHOWN, meant

NAMES = [f"model.layers.{i}.{rest}.weight" for i in range(12) for rest in ("self_attn.q_proj", "mlp.down_proj")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models a, b and c of four layers."""
    folder = tmp_path_factory.mktemp("models")
    for value, name in enumerate("abc"):
        write_model(folder / name, llama_tensors(4, value=float(value + 1)), llama_config(4))
    return folder


@pytest.fixture(autouse=True)
def _here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


SLERP = "models: [{model: a}, {model: b}]\nbase_model: a\nmerge_method: slerp\nparameters:\n  t:\n"
TIES = "base_model: a\nmerge_method: ties\nmodels:\n  - model: b\n    parameters:\n      weight:\n"
BASE_TOO = """\
merge_method: ties
base_model: a
models:
  - {model: a, parameters: {weight: 1, density: 0.5}}
  - {model: b, parameters: {weight: 1}}
"""
STACK = """\
slices:
  - sources:
      - model: a
        layer_range: [0, 2]
        parameters:
          scale: [{filter: layers.3., value: 2}]
  - sources:
      - {model: a, layer_range: [2, 4]}
merge_method: passthrough
"""


def conditions(*filters: str | None) -> str:
    """A line each, with a value."""
    return "".join("        - " + (f"{{filter: '{one}', value: 1}}\n" if one is not None else "value: 0.5\n") for one in filters)


def notes(text: str) -> list[str]:
    return [note.removeprefix("config, ") for note in weft.plan(text).notes if note.startswith("config, line")]


def slerp(*filters: str) -> list[str]:
    return notes(SLERP + conditions(*filters, None))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("attention", "; did you mean 'attn'?"),
        ("self_attention", "; did you mean 'self_attn'?"),
        ("MLP", "; did you mean 'mlp'?"),
        ("self_attention.q_proj", "; did you mean 'self_attn.q_proj'?"),
        ("layers.[0-2].", "; a filter is a part of a name, not a pattern: 'layers.' alone holds for 12 tensors"),
        ("layers.*.mlp", "; a filter is a part of a name, not a pattern: '.mlp' alone holds for 4 tensors"),
        ("^mlp$", "; a filter is a part of a name, not a pattern: 'mlp' alone holds for 4 tensors"),
        ("(a+)+$", "; a filter is a part of a name, not a pattern: 'a' alone holds for"),
        ("layers.40.", "; names are such as 'model.layers.0.input_layernorm.weight'"),
        ("block_sparse_moe", "; names are such as 'model.layers.0."),
    ],
)
def test_a_filter_that_is_in_no_name(wanted: str, says: str) -> None:
    (note,) = slerp("self_attn", wanted)
    assert note.startswith(
        f"line 7, parameters.t[1].filter: '{wanted}' is in no tensor's name, so the condition changes nothing{says}"
    )


NEVER = "line 7, parameters.t[1].filter: the condition for"
OWN = "models[0].parameters"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SLERP + conditions(None, "mlp"), [f"{NEVER} 'mlp' is never reached, because one before it has no filter"]),
        (SLERP + conditions("*", "mlp", None), [f"{NEVER} 'mlp' is never reached, because one before it has no filter"]),
        (
            SLERP + conditions("mlp", "mlp.down", None),
            [f"{NEVER} 'mlp.down' is never reached, because those before it hold for"],
        ),
        (TIES + conditions("mpl", None), [f"line 7, {OWN}.weight[0].filter: 'mpl' is in no tensor's name"]),
        (
            BASE_TOO,
            [f"line 4, {OWN}.weight: has no effect, because ties only compares with", f"line 4, {OWN}.density: has no effect"],
        ),
        (
            TIES + "        1\nparameters:\n  weight:\n" + conditions("mlp"),
            ["line 10, parameters.weight[0].filter: no tensor takes this weight: those with 'mlp' in their names have one"],
        ),
        (STACK, ["line 6, slices[0].sources[0].parameters.scale[0].filter: 'layers.3.' is in no tensor's name"]),
    ],
)
def test_other_things_that_change_nothing(text: str, expected: list[str]) -> None:
    found = notes(text)
    assert len(found) == len(expected), found
    for note, start in zip(found, expected, strict=True):
        assert note.startswith(start), note


DEFAULTS = "  - {model: c, parameters: {weight: 2}}\nparameters: {weight: 0.5, density: 0.5, lambda: 2}\n"
FALLS_THROUGH = "parameters: {weight: [{filter: lm_head, value: 2}, {value: 0.5}]}\n"


@pytest.mark.parametrize(
    "text",
    [
        SLERP + conditions("self_attn", "mlp", ""),
        SLERP + conditions("layers", "embed", "norm", "head", None),
        TIES + "        1\n" + DEFAULTS,
        TIES + conditions("mlp") + FALLS_THROUGH,
        STACK.replace("layers.3.", "layers.1.") + "parameters: {scale: [{filter: layers.3.mlp, value: 2}]}\n",
    ],
)
def test_what_has_an_effect_is_not_mentioned(text: str) -> None:
    assert notes(text) == []


def test_plan_and_run_say_it_to_people_and_programs() -> None:
    Path("filter.yaml").write_text(SLERP + conditions("attention", None))
    says = "'attention' is in no tensor's name"
    for command in (("plan", "filter.yaml"), ("run", "filter.yaml", "out")):
        assert says in " ".join(command_line(*command).out.split())
    assert says in " ".join(json.loads(command_line("plan", "filter.yaml", "--json").out)["notes"])
    assert says in " ".join(json.loads(Path("out/weft.json").read_text())["notes"])


PIECES = sorted({name[i:j] for name in NAMES[:40] for i in range(0, len(name), 3) for j in range(i + 1, len(name) + 1, 4)})


@trials(40)
@given(st.lists(st.sampled_from(PIECES) | st.text("abe.[]*?_", min_size=1, max_size=6), min_size=1, max_size=5))
def test_exactly_the_conditions_that_decide_nothing_are_noted(filters: list[str]) -> None:
    found = {int(position) for note in slerp(*filters) for position in re.findall(r"parameters\.t\[(\d+)\]", note)}
    every = [recipe.name for recipe in weft.plan(SLERP + conditions(None)).recipes]
    plain = [None if one == "*" else one for one in filters]
    deciding = {next((i for i, one in enumerate(plain) if one is None or one in name), -1) for name in every}
    assert found == {i for i, one in enumerate(plain) if one is not None and i not in deciding}


def test_many_notes_are_cut() -> None:
    found = weft.plan(SLERP + conditions(*(f"q{i}q" for i in range(50)), None)).notes
    assert len([note for note in found if "in no tensor's name" in note]) == SHOWN
    assert "there are more parameters that change nothing" in found


def test_a_hint_is_cheap_among_many_names() -> None:
    names = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight" for layer in range(60) for expert in range(850)]
    begin = time.process_time()
    assert meant("mlp.expert", names) == "; did you mean 'mlp.experts'?"
    assert "names are such as" in meant("nothing_like_it", names)
    assert time.process_time() - begin < 5
