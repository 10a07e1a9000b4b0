"""Makes checkpoints and runs merges, in this process or another, for tests of the engine."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from weft.engine.events import Observer, Summary, ignore
from weft.engine.run import run
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan

MIB = 1 << 20
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "vocab_size": 40,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
SIDE = {
    "tokenizer.json": b'{"version": "1.0", "odd":   "spacing \xc3\xa9"}\n',
    "tokenizer_config.json": b"{}",
    "generation_config.json": b'{"eos_token_id": 2}\n\n',
    "chat_template.jinja": b"{{ messages }}\r\n",
    "tokenizer.model": bytes(range(256)),
}
MODULES = {
    "modules.json": b"""[{"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}]""",
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "2_Dense/config.json": b'{"in_features": 16}',
    "2_Dense/model.safetensors": bytes(range(200)),
}
"""What makes a sentence-transformers model of one."""


def small_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A model of two layers in the usual names."""
    chance = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, generator=chance).to(dtype)

    tensors = {"model.embed_tokens.weight": make(40, 16)}
    for layer in range(2):
        head = f"model.layers.{layer}"
        tensors |= {
            f"{head}.self_attn.q_proj.weight": make(16, 16),
            f"{head}.mlp.down_proj.weight": make(16, 48),
            f"{head}.input_layernorm.weight": make(16),
        }
    return tensors | {"model.norm.weight": make(16), "lm_head.weight": make(40, 16)}


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None = None, side: Mapping[str, bytes] | None = None
) -> Path:
    """A checkpoint folder in one file."""
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    write_sides(folder, config, side)
    return folder


def write_sides(folder: Path, config: Mapping[str, Any] | None = None, side: Mapping[str, bytes] | None = None) -> None:
    """config.json and what stands beside the weights."""
    (folder / "config.json").write_text(json.dumps(config or CONFIG))
    for name, data in (SIDE if side is None else side).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def write_two(root: Path, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Two small models, `base` and `other`."""
    return write_model(root / "base", small_tensors(1, dtype)), write_model(root / "other", small_tensors(2, dtype))


def big_model(folder: Path, seed: int) -> Path:
    """About 68 MB in bfloat16: one embedding of 48 MB, three layers, and their norms."""
    chance = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=chance) * 0.02).bfloat16()

    hidden, inner = 512, 1536
    tensors = {"model.embed_tokens.weight": make(47_001, hidden)}
    for layer in range(3):
        head = f"model.layers.{layer}"
        tensors |= {
            f"{head}.self_attn.q_proj.weight": make(hidden, hidden),
            f"{head}.self_attn.o_proj.weight": make(hidden, hidden),
            f"{head}.mlp.up_proj.weight": make(inner, hidden),
            f"{head}.mlp.down_proj.weight": make(hidden, inner),
            f"{head}.input_layernorm.weight": make(hidden),
        }
    tensors["model.norm.weight"] = make(hidden)
    config = {**CONFIG, "num_hidden_layers": 3, "hidden_size": hidden, "vocab_size": 47_001, "tie_word_embeddings": True}
    return write_model(folder, tensors, config)


def linear(base: Path, other: Path, **more: Any) -> dict[str, Any]:
    """The config of a mean."""
    models = [{"model": str(path), "parameters": {"weight": 0.5}} for path in (base, other)]
    return {"merge_method": "linear", "base_model": str(base), "models": models, **more}


def recipe(method: str, base: Path, other: Path) -> dict[str, Any]:
    """A config of each of the methods whose kernels differ in kind."""
    task = {"model": str(other), "parameters": {"weight": 0.7, "density": 0.4}}
    return {
        "linear": linear(base, other),
        "slerp": {
            "merge_method": "slerp",
            "base_model": str(base),
            "models": [{"model": str(base)}, {"model": str(other)}],
            "parameters": {"t": 0.4},
        },
        "ties": {"merge_method": "ties", "base_model": str(base), "models": [task]},
        "dare_ties": {"merge_method": "dare_ties", "base_model": str(base), "models": [task]},
        "sce": {
            "merge_method": "sce",
            "base_model": str(base),
            "models": [{"model": str(base)}, {"model": str(other)}],
            "parameters": {"select_topk": 0.1},
        },
        "passthrough": {"merge_method": "passthrough", "models": [{"model": str(other)}]},
    }[method]


METHODS = ["linear", "slerp", "ties", "dare_ties", "passthrough"]


def options(ram: int = 512 * MIB, workers: int = 2, **more: Any) -> Options:
    return Options(Budget(ram, 0, workers), **more)


def plan(config: Mapping[str, Any], **more: Any) -> Plan:
    return make_plan(load_config(yaml.safe_dump(dict(config), sort_keys=False)), options(**more))


def merge(config: Mapping[str, Any], out: Path, observer: Observer = ignore, **more: Any) -> Summary:
    """Plan and run in this process."""
    summary = run(plan(config, **more), out, observer)
    assert summary is not None
    return summary


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return path


def command(config: Path, out: Path, *arguments: str) -> list[str]:
    """The command line of `weft run`."""
    return [sys.executable, "-m", "weft", "run", str(config), str(out), *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error:::weft"}


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every file of a finished result, by its path there."""
    assert not (out / ".weft").exists() and not list(out.glob("*.partial")), sorted(path.name for path in out.iterdir())
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def nothing_looks_finished(out: Path, also: Sequence[str] = ()) -> bool:
    """Whether no loader would take the folder for a model."""
    if not out.exists():
        return True
    names = {path.name for path in out.iterdir()}
    return not names & {"config.json", "weft.json", "model.safetensors.index.json", *also} and not any(
        name.endswith(".safetensors") for name in names
    )
