"""config.json says whether the result's output head is its input embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import llama_config, llama_tensors, write_model
from memory_store import torch_saved
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.tied import says_tied, with_heads_said

LINEAR = """merge_method: linear
models:
  - {model: one, parameters: {weight: 0.5}}
  - {model: two, parameters: {weight: 0.5}}
"""
SLICES = """merge_method: passthrough
slices:
  - sources: [{model: one, layer_range: [0, 1]}]
  - sources: [{model: two, layer_range: [1, 2]}]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(text: str) -> Plan:
    return make_plan(load_config(text, "merge.yaml"), Options(Budget(1 << 30, 0, 1)))


def model(name: str, *, tied: bool | None, head: bool, config: dict[str, Any] | None = None) -> None:
    settings = {**llama_config(), "tie_word_embeddings": tied}
    if tied is None:
        del settings["tie_word_embeddings"]
    write_model(Path(name), llama_tensors(head=head, value=len(name)), config or settings)


def said(made: Plan) -> tuple[Any, bool]:
    """What config.json says, and whether a note says that this is new."""
    return made.model_config.get("tie_word_embeddings"), any("tie_word_embeddings" in note for note in made.notes)


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ((True, False), (False, True), (False, True)),  # tied, and a head of its own
        ((True, False), (True, False), (True, False)),
        ((False, True), (False, True), (False, False)),
        ((None, True), (None, True), (None, False)),  # the class's default is what it was
        ((None, False), (None, True), (False, True)),  # the class's default may be true
        ((None, False), (None, False), (None, False)),
        ((True, True), (True, True), (False, True)),  # two tensors, of which nothing says that they are equal
        ((False, False), (False, False), (False, False)),  # a model without a head
    ],
)
def test_the_head_and_what_is_said_of_it(one: tuple[Any, bool], two: tuple[Any, bool], expected: tuple[Any, bool]) -> None:
    for name, (tied, head) in (("one", one), ("two", two)):
        model(name, tied=tied, head=head)
    assert said(plan(LINEAR)) == expected


def test_a_head_that_is_the_embedding_s_bytes_is_tied() -> None:
    """A PyTorch file names one storage twice."""
    for name in ("one", "two"):
        tensors = llama_tensors(head=False)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        Path(name).mkdir()
        (Path(name) / "pytorch_model.bin").write_bytes(torch_saved(tensors))
        (Path(name) / "config.json").write_text(json.dumps({**llama_config(), "tie_word_embeddings": True}))
    assert said(plan(LINEAR)) == (True, False)
    filtered = LINEAR.replace("weight: 0.5", "weight: [{filter: lm_head, value: 0.1}, {value: 0.9}]", 1)
    assert said(plan(filtered)) == (False, True), "other weights for the head"
    dare = "merge_method: dare_linear\nbase_model: one\nmodels: [{model: two, parameters: {weight: 1, density: 0.5}}]\n"
    assert said(plan(dare)) == (False, True), "other random numbers for the head"


def test_a_language_model_s_part_says_it_too() -> None:
    text = {"num_hidden_layers": 2, "tie_word_embeddings": True}
    for top in ({}, {"tie_word_embeddings": True}):
        name = f"one{len(top)}"
        model(name, tied=None, head=False, config={"text_config": text, **top})
        model(f"two{len(top)}", tied=None, head=True, config={"text_config": {**text, "tie_word_embeddings": False}, **top})
        made = plan(LINEAR.replace("one", name).replace("two", f"two{len(top)}"))
        assert made.model_config["text_config"]["tie_word_embeddings"] is False
        assert made.model_config["tie_word_embeddings"] is False


def test_slices_of_a_tied_and_an_untied_model() -> None:
    model("one", tied=True, head=False)
    model("two", tied=False, head=True)
    made = plan(SLICES)
    assert said(made) == (False, True) and "lm_head.weight" in {recipe.name for recipe in made.recipes}
    made = plan(SLICES.replace("one", "x").replace("two", "one").replace("x", "two"))
    assert said(made) == (False, False)
    heads = [recipe for recipe in made.recipes if recipe.name == "lm_head.weight"]
    assert [(r.sources, r.inputs[0].name) for r in heads] == [(("one",), "model.embed_tokens.weight")], "the tied model's head"


def test_a_base_that_only_lends_its_files_does_not_promise_a_head() -> None:
    model("one", tied=False, head=True)
    model("two", tied=True, head=False)
    made = plan("merge_method: passthrough\nbase_model: one\nmodels: [{model: two}]\n")
    heads = [recipe.inputs[0].name for recipe in made.recipes if recipe.name == "lm_head.weight"]
    assert said(made) == (False, False) and heads == ["model.embed_tokens.weight"], "the head of the tied model"
    headless = [recipe for recipe in made.recipes if recipe.name != "lm_head.weight"]
    settings, notes = with_heads_said(made.model_config, made.base.checkpoint, headless)
    assert settings["tie_word_embeddings"] is True and "tied to the input embedding" in notes[0]


def test_an_earlier_stage_s_result_is_as_it_says() -> None:
    model("one", tied=True, head=False)
    model("two", tied=False, head=True)
    text = f"name: first\n{LINEAR}---\nmerge_method: linear\nmodels: [{{model: first, parameters: {{weight: 1}}}}]\n"
    assert said(plan(text))[0] is False


def test_other_tensors_called_output_are_no_heads() -> None:
    """BigBird's attention has `output.weight` in each layer."""
    for name in ("one", "two"):
        more = {"model.layers.0.attn.output.weight": torch.ones(4, 4), "pool.output.weight": torch.ones(2, 4)}
        write_model(Path(name), {**llama_tensors(head=False), **more}, llama_config(tie_word_embeddings=True))
    assert said(plan(LINEAR)) == (True, False)


def test_what_a_config_says() -> None:
    assert says_tied({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}) is True
    assert says_tied({"text_config": {"tie_word_embeddings": False}}) is False
    assert says_tied({"tie_word_embeddings": "yes"}) is None


def test_the_head_stays_in_the_result_s_dtype() -> None:
    for name in ("one", "two"):
        write_model(Path(name), llama_tensors(dtype=torch.bfloat16, head=name == "two"), llama_config(tie_word_embeddings=None))
    assert said(plan(LINEAR)) == (False, True)
