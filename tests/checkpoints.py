"""Tiny checkpoints on the disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def write_model(folder: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], **side: str) -> Path:
    """A folder with config.json, one model.safetensors, and side files by their names (`tokenizer="…"` is tokenizer.json)."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in side.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def llama_config(layers: int = 2, **changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "num_hidden_layers": layers, "tie_word_embeddings": False, **changes}


def llama_tensors(
    layers: int = 2,
    *,
    hidden: int = 4,
    vocabulary: int = 6,
    dtype: torch.dtype = torch.float32,
    head: bool = True,
    bias: bool = False,
    value: float = 1.0,
) -> Tensors:
    """The tensors of a Llama in little, all elements `value`. `head`: an output projection of its own; `bias`: of q_proj."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (hidden, hidden)
        if bias:
            shapes[f"{prefix}.self_attn.q_proj.bias"] = (hidden,)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, 2 * hidden)
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if head:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return {name: torch.full(shape, value, dtype=dtype) for name, shape in shapes.items()}
