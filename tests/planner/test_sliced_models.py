"""Slices of models whose layers differ, or that have several stacks: what config.json says, and what is refused at `slices`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints import llama_config, llama_tensors, write_model
from weft.errors import ConfigError
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(text: str) -> Plan:
    return make_plan(load_config(text, "merge.yaml"), Options(Budget(1 << 30, 0, 1)))


def model(name: str, config: Mapping[str, Any], *tensors: str, **more: torch.Tensor) -> None:
    write_model(Path(name), {**{tensor: torch.ones(2) for tensor in tensors}, **more}, config)


def slices(*ranges: list[int], indent: str = "") -> str:
    lines = [f"{indent}  - sources: [{{model: m, layer_range: {given}}}]" for given in ranges]
    return "\n".join([f"{indent}slices:", *lines]) + "\n"


PASS = "merge_method: passthrough\n"


def two_stacks(special: str = "") -> None:
    """A T5 in little: the first layer of each stack has one tensor more."""
    names = [f"{side}.block.{i}.layer.0.q.weight" for side in ("encoder", "decoder") for i in range(4)]
    model("m", {"num_layers": 4, "num_decoder_layers": 4}, "shared.weight", *names, *([special] if special else []))


def test_slices_of_two_stacks_count_the_one_that_is_cut_and_say_which() -> None:
    two_stacks()
    made = plan(PASS + slices([0, 3], [1, 4]))
    assert made.model_config["num_layers"] == 4 and made.model_config["num_decoder_layers"] == 6 and made.layers == 6
    assert "slices are of the layers of 'decoder.block'; 'encoder.block' stay whole: 'modules' can slice each" in made.notes


def test_modules_count_each_stack_they_cut() -> None:
    two_stacks()
    text = (
        PASS + "modules:\n  encoder:\n" + slices([0, 3], indent="    ") + "  decoder:\n" + slices([0, 4], [2, 4], indent="    ")
    )
    made = plan(text)
    assert made.model_config["num_layers"] == 3 and made.model_config["num_decoder_layers"] == 6
    assert not any("slices are of" in note for note in made.notes)


def test_a_special_first_layer_keeps_its_place() -> None:
    two_stacks("decoder.block.0.layer.0.bias.weight")
    assert plan(PASS + slices([0, 3], [1, 4])).layers == 6
    for ranges in ([[1, 4]], [[0, 2], [0, 2]], [[2, 4], [0, 2]]):
        with pytest.raises(ConfigError, match=r"line 2, slices: layer \d of 'decoder.block' .*'layer.0.bias.weight'"):
            plan(PASS + slices(*ranges))


def test_tensors_that_keys_tell_apart_may_move_and_others_may_not() -> None:
    names = [f"model.layers.{i}.{'experts' if i in (1, 3) else 'mlp'}.weight" for i in range(4)]
    model("m", {"num_hidden_layers": 4, "moe_layers": [1, 3]}, *names)
    assert plan(PASS + slices([1, 4], [0, 2])).model_config["moe_layers"] == [0, 2, 4]
    for name, key in (("n", {}), ("o", {"moe_layer_interval": 2})):
        model(name, {"num_hidden_layers": 4, **key}, *names)
    for name, why in (("n", r"'(mlp|experts)\.weight'"), ("o", "'moe_layer_interval'")):
        with pytest.raises(ConfigError, match=f"line 2, slices: .*{why}"):
            plan(PASS + slices([1, 4]).replace("model: m", f"model: {name}"))
        assert plan(PASS + slices([0, 2], [2, 4]).replace("model: m", f"model: {name}")).layers == 4, "nothing moves"


def test_a_layer_of_a_model_with_other_tensors_is_refused() -> None:
    """The base's config.json cannot say that some layers have biases."""
    write_model(Path("m"), llama_tensors(3), llama_config(3))
    write_model(Path("biased"), llama_tensors(3, bias=True), llama_config(3, attention_bias=True))
    text = PASS + "base_model: m\n" + slices([0, 2]) + "  - sources: [{model: biased, layer_range: [1, 3]}]\n"
    with pytest.raises(ConfigError, match=r"slices: layer 2 .*'self_attn.q_proj.bias'"):
        plan(text)


def test_buffers_that_some_versions_save_are_no_difference() -> None:
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(3)}
    write_model(Path("m"), llama_tensors(3), llama_config(3))
    write_model(Path("old"), {**llama_tensors(3), **old}, llama_config(3))
    assert plan(PASS + slices([0, 2]) + "  - sources: [{model: old, layer_range: [1, 3]}]\n").layers == 4


def test_an_unknown_rule_may_count_from_the_end_or_the_middle() -> None:
    for i, special in enumerate((2, 3, 5)):
        names = [f"model.layers.{layer}.{'a' if layer in (special, 5) else 'b'}.weight" for layer in range(6)]
        model(f"m{i}", {"num_hidden_layers": 6}, *names)
        with pytest.raises(ConfigError, match=r"slices: layer \d of 'model.layers'"):
            plan(PASS + slices([0, 5]).replace("model: m", f"model: m{i}"))
    assert plan(PASS + slices([0, 4], [5, 6]).replace("model: m", "model: m2")).layers == 5, "the last one is the last one"


def test_runs_beside_the_layers_that_may_be_one_for_each() -> None:
    for i, beside in enumerate(("encoder.convs.{}.weight", "gates.{}", "encoder.norms.{}.weight")):
        names = [f"encoder.layers.{layer}.mlp.weight" for layer in range(4)]
        model(f"m{i}", {"num_hidden_layers": 4}, *names, *(beside.format(k) for k in range(3 if "convs" in beside else 4)))
        with pytest.raises(ConfigError, match=r"slices: .*(may be one for each layer|may count those of '.*' too)"):
            plan(PASS + slices([0, 3]).replace("model: m", f"model: m{i}"))


def test_what_has_a_part_for_each_layer_is_refused() -> None:
    names = [f"model.layers.{i}.mlp.weight" for i in range(3)]
    model("m", {"num_hidden_layers": 3}, "model.embed_tokens_per_layer.weight", *names)
    with pytest.raises(ConfigError, match=r"slices: 'model.embed_tokens_per_layer.weight' of m has elements for each layer"):
        plan(PASS + slices([0, 2]))
    assert plan(PASS + slices([0, 3])).layers == 3


def test_a_config_without_a_count_is_refused() -> None:
    model("m", {}, *(f"model.layers.{i}.mlp.weight" for i in range(3)))
    with pytest.raises(ConfigError, match=r"slices: m: no key of config.json counts the layers of 'model.layers' \(3\)"):
        plan(PASS + slices([0, 2]))


def test_a_model_without_layers_has_none_to_slice() -> None:
    model("m", {}, "embed.weight", "head.weight")
    with pytest.raises(ConfigError, match=r"sources\[0\]: m has no layers that its tensors' names number.*'models'"):
        plan(PASS + slices([0, 2]))


def test_ranges_outside_a_model_name_the_stack_where_there_are_several() -> None:
    two_stacks()
    with pytest.raises(ConfigError, match=r"\[0, 5\] is outside m, which has layers 0 to 3 in 'decoder.block'$"):
        plan(PASS + slices([0, 5]))
    model("one", llama_config(1), "model.layers.0.mlp.weight")
    with pytest.raises(ConfigError, match=r"\[0, 5\] is outside one, which has layer 0 alone$"):
        plan(PASS + slices([0, 5]).replace("model: m", "model: one"))
