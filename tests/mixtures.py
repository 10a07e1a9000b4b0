"""Small dense models of every kind that mixtures are made of, and configs that mix them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
TOKENIZER = GOLDEN / "models" / "llama-base"
LENGTH = 14
"""Tokens of the texts on which models are compared: more than a window of `SLIDING` sees."""

SLIDING: dict[str, Any] = {"sliding_window": 5}
LLAMA3: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    }
}
SMALL: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(folder: Path, kind: str, seed: int = 0, **settings: Any) -> Path:
    """A checkpoint with weights large enough that every part of it matters to its logits."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**SMALL, **settings})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    for path in TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(path, folder)
    return folder


@cache
def text() -> torch.Tensor:
    return torch.randint(3, 288, (2, LENGTH), generator=torch.Generator().manual_seed(5))


def logits(folder: Path) -> torch.Tensor:
    """Of a model that takes every weight and misses none."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {key: info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]}
    assert not wrong, wrong
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(text()).logits
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


PROMPTS = (["solve 12 + 30", "the sum of two numbers"], ["import torch"], ["once upon a time in a far away land"])


def mixture(base: Path | str, experts: Sequence[Path | str], **more: Any) -> dict[str, Any]:
    """A config with prompts of its own for each expert."""
    items = [{"source_model": str(e), "positive_prompts": PROMPTS[i % 3]} for i, e in enumerate(experts)]
    return {"base_model": str(base), "experts": items, **more}
