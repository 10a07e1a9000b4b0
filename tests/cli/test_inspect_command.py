"""`weft inspect`: what a model is, from headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from checkpoints import llama_config, llama_tensors
from cli.command import weft
from cli.models import entry, safetensors_bytes, write_model

TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": []},
    "added_tokens": [{"id": 3, "content": "<s>"}],
}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_json(*arguments: str) -> dict[str, Any]:
    outcome = weft("inspect", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert isinstance(found, dict)
    return found


def test_the_facts_of_a_model_in_shards() -> None:
    write_model(Path("m"), shards=2, layers=12, config={"architectures": ["LlamaForCausalLM"]})
    Path("m/tokenizer.json").write_text(json.dumps(TOKENIZER))
    found = as_json("m")
    weights = {name: tensor for name, tensor in _loaded(Path("m")).items()}
    assert {t["name"]: (t["dtype"], t["shape"], t["bytes"]) for t in found["tensors"]} == {
        name: ("BF16", list(tensor.shape), tensor.nbytes) for name, tensor in weights.items()
    }
    assert found["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert (found["architecture"], found["layers"], found["tokens"], found["quantization"]) == ("LlamaForCausalLM", 12, 4, None)
    assert {g["pattern"]: g["tensors"] for g in found["groups"]}["model.layers.*.mlp.up_proj.weight"] == 12
    for tensor in found["tensors"]:  # the place is where the bytes are
        data = (Path("m") / tensor["file"]).read_bytes()[tensor["offset"] :][: tensor["bytes"]]
        assert data == weights[tensor["name"]].view(torch.uint8).numpy().tobytes()


def _loaded(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_people_see_groups_or_with_tensors_every_one() -> None:
    write_model(Path("m"), layers=12)
    grouped = weft("inspect", "m").out
    assert "12 of" in grouped and "model.layers.*.mlp.up_proj.weight" in grouped and "model.layers.3." not in grouped
    every = weft("inspect", "m", "--tensors").out
    names = [line.split()[0] for line in every.splitlines() if "mlp.up_proj" in line]
    assert names == [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(12)]  # 2 before 10


def test_a_quantised_model_is_described_though_it_cannot_be_merged() -> None:
    write_model(Path("m"), layers=1, config={"quantization_config": {"quant_method": "fp8"}})
    names = {"model.layers.0.w": entry("F8_E4M3", [4, 4], 0, 16), "model.layers.0.s": entry("F8_E8M0", [1], 16, 17)}
    Path("m/model.safetensors").write_bytes(safetensors_bytes(names, bytes(17)))
    found = as_json("m")
    assert found["quantization"] == "fp8" and found["dtypes"]["F8_E4M3"] == {"tensors": 1, "parameters": 16}
    assert "fp8: its weights cannot be merged" in weft("inspect", "m").out


def test_an_adapter_on_its_model() -> None:
    from checkpoints import write_model as write

    write(Path("m"), llama_tensors(), llama_config())
    Path("x").mkdir()
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{q}.lora_A.weight": torch.ones(2, 4), f"{q}.lora_B.weight": torch.ones(4, 2)}, "x/adapter_model.safetensors")
    Path("x/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    found = as_json("m+x")
    assert found["adapter"]["patched"] == ["model.layers.0.self_attn.q_proj.weight"] and found["adapter"]["ranks"] == [2]
    assert "x: 1 tensors changed by rank 2" in weft("inspect", "m+x").out


def test_what_is_no_model() -> None:
    assert "there is no such folder" in weft("inspect", "nowhere").line
    assert "more than one '+'" in weft("inspect", "a+b+c").line
