"""Seeded Llama-shaped bfloat16 checkpoints to measure on: a base, and fine-tunes that differ from it a little."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZES = {
    "0.1B": (768, 2048, 8, 32000, 256),
    "0.85B": (2048, 5632, 16, 32000, 512),
    "3B": (3072, 8192, 24, 32000, 1024),
    "8B": (4096, 14336, 32, 128256, 1024),
}
"""Hidden size, intermediate size, layers, vocabulary, key and value width."""

SHARD = 1_000_000_000


def make(folder: Path, size: str, names: tuple[str, ...] = ("base", "a", "b", "c")) -> None:
    """Write the checkpoints that are not there yet; `base` is the first, the others are changes of it."""
    for name in names:
        if not (folder / name / "config.json").exists():
            _write(folder / name, size, None if name == "base" else name)


def _write(folder: Path, size: str, variant: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in _shapes(size):
        nbytes = 2 * torch.Size(shape).numel()
        if groups[-1] and filled + nbytes > SHARD:
            groups.append([])
            filled = 0
        groups[-1].append((name, shape))
        filled += nbytes
    weight_map: dict[str, str] = {}
    for i, group in enumerate(groups, 1):
        file = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: _tensor(name, shape, variant) for name, shape in group}, folder / file, metadata={"format": "pt"})
        weight_map |= {name: file for name, _ in group}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hidden, inter, layers, vocabulary, kv = SIZES[size]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": kv // 64,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))


def _shapes(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inter, layers, vocabulary, kv = SIZES[size]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for i in range(layers):
        head = f"model.layers.{i}."
        yield f"{head}input_layernorm.weight", (hidden,)
        for name, rows in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv), ("o_proj", hidden)):
            yield f"{head}self_attn.{name}.weight", (rows, hidden)
        yield f"{head}post_attention_layernorm.weight", (hidden,)
        yield f"{head}mlp.gate_proj.weight", (inter, hidden)
        yield f"{head}mlp.up_proj.weight", (inter, hidden)
        yield f"{head}mlp.down_proj.weight", (hidden, inter)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocabulary, hidden)


def _tensor(name: str, shape: tuple[int, ...], variant: str | None) -> torch.Tensor:
    chance = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensor = torch.randn(shape, generator=chance) * 0.02 if len(shape) > 1 else torch.ones(shape)
    if variant:
        chance.manual_seed(zlib.crc32(f"{variant}/{name}".encode()))
        tensor += torch.randn(shape, generator=chance) * 0.002
    return tensor.bfloat16()
