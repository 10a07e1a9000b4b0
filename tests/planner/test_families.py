"""Models of several families, and of other settings: what is said where a merge is possible, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cli.command import weft
from merges import CONFIG, linear, plan, recipe, small_tensors, write_model
from weft.errors import CheckpointError

LLAMA = {**CONFIG, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0, "hidden_act": "silu"}
MISTRAL = {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"]}
QWEN = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def notes(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    a = write_model(tmp_path / "a", small_tensors(1), first)
    b = write_model(tmp_path / "b", small_tensors(2), second)
    return [note for note in plan(linear(a, b)).notes if "family" in note or "families" in note or "settings" in note]


def test_models_of_one_family_are_nothing_to_speak_of(tmp_path: Path) -> None:
    assert notes(tmp_path, LLAMA, {**LLAMA, "max_position_embeddings": 99, "torch_dtype": "float16"}) == []


def test_another_family_of_equal_shapes_is_a_note_in_plan_run_and_card(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, LLAMA, MISTRAL)
    assert "b is MistralForCausalLM and " in note and "a LlamaForCausalLM, which the result will be" in note
    config = tmp_path / "merge.yaml"
    config.write_text(
        f"merge_method: linear\nmodels:\n- {{model: {tmp_path / 'a'}, parameters: {{weight: 1}}}}\n"
        f"- {{model: {tmp_path / 'b'}, parameters: {{weight: 1}}}}\n"
    )
    for command in ("plan", "run"):
        assert "seldom have anything to give each other" in weft(command, config, tmp_path / "out").out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "b is MistralForCausalLM and a LlamaForCausalLM" in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_theta": 1e6}, "rope_theta 1e+06 (not 10000)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling {rope_type: yarn, factor: 4} (not none)"),
        ({"hidden_act": "gelu"}, "activation gelu (not silu)"),
        ({"num_attention_heads": 2, "rms_norm_eps": 1e-6}, "attention heads 2 (not 4)"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    own = {**LLAMA, "num_attention_heads": 4}
    (note,) = notes(tmp_path, own, {**own, **change})
    assert said in note and "other settings than" in note


def test_rotary_settings_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    assert notes(tmp_path, LLAMA, new) == []


def with_biases(seed: int) -> dict[str, torch.Tensor]:
    tensors = small_tensors(seed)
    biases = {name[: -len("weight")] + "bias": torch.zeros(len(t)) for name, t in tensors.items() if "down_proj" in name}
    assert biases
    return {**tensors, **biases}


def test_what_the_results_class_has_no_place_for_is_refused(tmp_path: Path) -> None:
    llama = write_model(tmp_path / "llama", small_tensors(1), LLAMA)
    qwen = write_model(tmp_path / "qwen", with_biases(2), QWEN)
    with pytest.raises(
        CheckpointError, match=r"qwen \(Qwen2ForCausalLM\) has 'model\.layers\.0\..*bias', which .*llama has not: the result"
    ):
        plan(linear(llama, qwen))
    assert any("families" in note for note in plan(linear(qwen, llama)).notes), "its own class has a place for them"
    write_model(tmp_path / "old", with_biases(3), LLAMA)
    assert plan(linear(llama, tmp_path / "old")), "one family: an optional tensor of an older release"


def test_other_vocabularies_of_other_families_get_no_advice_to_bring_them_together(tmp_path: Path) -> None:
    tensors = small_tensors(1)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:3]])
    a = write_model(tmp_path / "a", small_tensors(1), LLAMA)
    for config, said in ((LLAMA, "set 'tokenizer_source: union'"), (QWEN, "they are LlamaForCausalLM and Qwen2ForCausalLM")):
        b = write_model(tmp_path / str(config["model_type"]), tensors, config)
        with pytest.raises(CheckpointError, match=said):
            plan(recipe("slerp", a, b))
