"""Small models on the disk, whole ones and broken ones, and configs that merge two of them, a and b."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
Tensors = dict[str, torch.Tensor]

LINEAR = """\
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 1}
merge_method: linear
"""
SLERP = """\
models: [{model: a}, {model: b}]
base_model: a
merge_method: slerp
parameters: {t: 0.5}
"""
SLICES = """\
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
      - model: b
        layer_range: [0, 4]
base_model: a
merge_method: slerp
parameters: {t: 0.5}
"""


def tensors(
    *, layers: int = 4, hidden: int = 8, vocabulary: int = 16, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Tensors:
    """A llama's tensors in little."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj.weight"] = (hidden, hidden)
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (2 * hidden, hidden)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (hidden,)
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}


def write_model(
    folder: Path, content: Tensors | None = None, *, shards: int = 1, config: Mapping[str, Any] | None = None, **shape: Any
) -> Path:
    """A folder with weights, in one file or in two with an index, config.json and a tokenizer."""
    content = tensors(**shape) if content is None else content
    layers = len({name.split(".")[2] for name in content if name.startswith("model.layers.")})
    folder.mkdir(parents=True)
    settings = {"model_type": "llama", "num_hidden_layers": layers, "torch_dtype": "bfloat16", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(settings | dict(config or {})))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "generation_config.json").write_text("{}")
    if shards == 1:
        save_file(content, folder / "model.safetensors")
        return folder
    names = list(content)
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for shard, part in zip(SHARDS, (names[:half], names[half:]), strict=True):
        save_file({name: content[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file's map; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """A tensor in a safetensors header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, taken literally if it is bytes; `length` lies about it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
