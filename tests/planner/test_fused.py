"""Phi-3 read in the layout of Llama: row ranges of the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoints import write_model
from merges import merge, plan
from mixtures import SLIDING, logits, make_model, tensors
from weft.errors import CheckpointError, ConfigError
from weft.planner.catalog import InputTensor
from weft.planner.config import load_config
from weft.planner.graph import copies_bytes
from weft.planner.kernels import kernel_of
from weft.planner.rope import read_rope


def as_llama(path: Path | str) -> dict[str, Any]:
    return {"merge_method": "passthrough", "models": [{"model": {"model": str(path), "layout": "llama"}}]}


def test_nothing_is_computed(tmp_path: Path) -> None:
    phi = make_model(tmp_path / "phi", "Phi3")
    made = plan(as_llama(phi))
    assert all(copies_bytes(recipe, kernel_of(recipe)) for recipe in made.recipes)
    assert all(isinstance(recipe.inputs[0], InputTensor) for recipe in made.recipes)
    assert sum(made.bytes_read().values()) == sum(t.nbytes for t in tensors(phi).values())
    assert not any("qkv" in recipe.name or "gate_up" in recipe.name for recipe in made.recipes)


@pytest.mark.parametrize(("settings", "kind"), [({}, "llama"), (SLIDING, "mistral")])
def test_the_model_is_the_same(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    phi = make_model(tmp_path / "phi", "Phi3", **settings)
    merge(as_llama(phi), tmp_path / "out")
    got = logits(tmp_path / "out")
    assert (got - logits(phi)).abs().max() < 1e-5
    assert f'"model_type": "{kind}"' in (tmp_path / "out" / "config.json").read_text()


def test_it_can_be_merged_with_llamas(tmp_path: Path) -> None:
    phi, llama = make_model(tmp_path / "phi", "Phi3"), make_model(tmp_path / "llama", "Llama")
    models = [{"model": model, "parameters": {"weight": 0.5}} for model in (str(llama), {"model": str(phi), "layout": "llama"})]
    merge({"merge_method": "linear", "models": models}, tmp_path / "out")
    name = "model.layers.1.self_attn.k_proj.weight"
    fused = tensors(phi)[name.replace("k_proj", "qkv_proj")][32:48]
    assert torch.allclose(tensors(tmp_path / "out")[name], (fused + tensors(llama)[name]) / 2, atol=1e-6)


def test_long_positions_are_carried_over() -> None:
    factors = {"short_factor": [1.0], "long_factor": [2.0]}
    for written in ({"type": "su", **factors}, {"rope_type": "longrope", **factors}, {"type": "yarn", **factors}):
        rope = read_rope("m", {"rope_theta": 7.0, "rope_scaling": written})
        assert rope.settings() == {"rope_theta": 7.0, "rope_scaling": {"rope_type": "longrope", **factors}}
    with pytest.raises(CheckpointError, match="not numbers"):
        read_rope("m", {"rope_theta": "large"})


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    llama = make_model(tmp_path / "llama", "Llama")
    with pytest.raises(CheckpointError, match="'layout: llama' is for Phi-3, and this is llama: leave it out"):
        plan(as_llama(llama))
    part = make_model(
        tmp_path / "part", "Phi3", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    )
    with pytest.raises(CheckpointError, match=r"rotates only 0.5 of each head"):
        plan(as_llama(part))
    phi = make_model(tmp_path / "phi", "Phi3")
    stage = {"name": "mean", "merge_method": "linear", "models": [{"model": str(phi), "parameters": {"weight": 0.5}}]}
    documents = "\n---\n".join(yaml.safe_dump(document) for document in (stage, as_llama("mean")))
    from weft.planner.plan import make_plan

    with pytest.raises(CheckpointError, match="an adapter or an earlier stage computes it"):
        make_plan(load_config(documents), plan(as_llama(phi)).options)
    with pytest.raises(ConfigError, match="layout: expected llama, not 'gpt'"):
        load_config("merge_method: passthrough\nmodels: [{model: {model: a, layout: gpt}}]\n")


def test_a_fused_tensor_of_another_size(tmp_path: Path) -> None:
    phi = make_model(tmp_path / "phi", "Phi3")
    import json

    settings = json.loads((phi / "config.json").read_text())
    found = tensors(phi)
    shutil.rmtree(phi)
    write_model(phi, found, {**settings, "num_key_value_heads": 1})
    with pytest.raises(CheckpointError, match=r"qkv_proj.weight' has shape \[64, 32\], and config.json says 48 rows"):
        plan(as_llama(phi))
