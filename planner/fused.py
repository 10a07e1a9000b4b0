"""Phi-3 in the layout of Llama: its fused projections are read as the row ranges they consist of, so nothing is computed.

`self_attn.qkv_proj` holds the rows of q_proj, k_proj and v_proj, `mlp.gate_up_proj` those of gate_proj and up_proj.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint, InputTensor
from .dense_config import check_sizes, head_width
from .dtypes import ITEM_SIZES
from .recipe import Recipe
from .rope import read_rope

_QKV, _GATE_UP = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"
_DROPPED = ("architectures", "auto_map", "model_type", "embd_pdrop", "resid_pdrop", "rope_parameters", "partial_rotary_factor")


def as_llama(checkpoint: Checkpoint) -> Checkpoint:
    """A Phi-3 checkpoint as one of Llama's family. Raises CheckpointError for another model, or what Llama has no place for."""
    if checkpoint.config.get("model_type") != "phi3":
        raise CheckpointError(
            f"{checkpoint.label}: 'layout: llama' is for Phi-3, and this is {checkpoint.config.get('model_type')}: leave it out"
        )
    check_sizes(checkpoint.label, checkpoint.config)
    config = _llama_config(checkpoint.label, checkpoint.config)
    tensors: dict[str, InputTensor | Recipe] = {}
    for name, tensor in checkpoint.tensors.items():
        pieces = _pieces(name, config)
        if pieces is None:
            tensors[name] = tensor
        else:
            tensors |= _split(checkpoint.label, name, tensor, pieces)
    return replace(checkpoint, config=config, tensors=tensors)


def _pieces(name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, int]] | None:
    """For a fused tensor the start of its pieces' names, and each piece's end with its rows; else None."""
    if name.endswith(_QKV):
        heads, groups, width = (int(config[key]) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        rows = {"q_proj.weight": heads * width, "k_proj.weight": groups * width, "v_proj.weight": groups * width}
        return name.removesuffix("qkv_proj.weight"), rows
    if name.endswith(_GATE_UP):
        inner = int(config["intermediate_size"])
        return name.removesuffix("gate_up_proj.weight"), {"gate_proj.weight": inner, "up_proj.weight": inner}
    return None


def _split(
    label: str, name: str, tensor: InputTensor | Recipe, pieces: tuple[str, dict[str, int]]
) -> Iterator[tuple[str, InputTensor]]:
    """The row ranges of a fused tensor, each a tensor of its own in the same file."""
    prefix, rows = pieces
    if not isinstance(tensor, InputTensor):
        raise CheckpointError(
            f"{label}: '{name}' cannot be split, because an adapter or an earlier stage computes it: "
            "write that model to a folder of its own first"
        )
    if len(tensor.shape) != 2 or tensor.shape[0] != sum(rows.values()):
        raise CheckpointError(
            f"{label}: '{name}' has shape {list(tensor.shape)}, and config.json says {sum(rows.values())} rows: "
            "the two are not of one model"
        )
    width = tensor.shape[1] * ITEM_SIZES[tensor.dtype]
    offset = tensor.offset
    for end, count in rows.items():
        yield prefix + end, InputTensor(prefix + end, tensor.dtype, (count, tensor.shape[1]), tensor.file, offset, count * width)
        offset += count * width


def _llama_config(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the same model as a Llama, or as a Mistral where attention looks through a window."""
    rope = read_rope(label, config)
    if rope.partial != 1.0:
        raise CheckpointError(
            f"{label}: rotates only {rope.partial:g} of each head (partial_rotary_factor), which Llama's layout cannot express: "
            "merge it with models of its own kind"
        )
    windowed = config.get("sliding_window") is not None
    kept = {key: value for key, value in config.items() if key not in _DROPPED}
    return kept | {
        "architectures": ["MistralForCausalLM" if windowed else "LlamaForCausalLM"],
        "model_type": "mistral" if windowed else "llama",
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
        "head_dim": head_width(config),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        **({} if windowed else {"attention_bias": False, "mlp_bias": False}),
        **rope.settings(),
    }
