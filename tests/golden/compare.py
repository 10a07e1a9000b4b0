"""Compares a merged checkpoint with the one that the reference tool made.

Names, shapes and dtypes must agree. Values must agree to float32 rounding (or one step of a 16-bit dtype), for at least the
share of elements that the case's tolerance.json names (default: all): where magnitudes are equal at a cut, or a sum is 0 but for
rounding, two right programs choose differently. Where it says `tokens`, both folders must have the same tokens, and the rows of
embeddings are compared token by token, whatever ids they have; padding rows are not compared.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

STEPS = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SMALL = 256
"""In a tensor of fewer elements, one that differs is no small share."""


def load(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                assert name not in found, f"{name} stands in two shards of {folder}"
                found[name] = file.get_tensor(name)
    assert found, f"no safetensors in {folder}"
    return found


def token_ids(folder: Path) -> dict[str, int]:
    """Every token of a folder's tokenizer.json with its id."""
    document = json.loads((folder / "tokenizer.json").read_text())
    return dict(document["model"]["vocab"]) | {token["content"]: token["id"] for token in document["added_tokens"]}


def difference(out: Path, expected: Path) -> str:
    """The first thing in which the folders disagree; empty where they agree."""
    path = expected / "tolerance.json"
    rules = json.loads(path.read_text()) if path.exists() else {}
    got, want = load(out), load(expected)
    if set(got) != set(want):
        return f"tensor names differ: missing {sorted(set(want) - set(got))[:4]}, extra {sorted(set(got) - set(want))[:4]}"
    if rules.get("tokens"):
        ours, theirs = token_ids(out), token_ids(expected)
        if set(ours) != set(theirs):
            return f"tokens differ: {sorted(set(ours) ^ set(theirs))[:6]}"
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if got[name].shape != want[name].shape:
                return f"{name}: {tuple(got[name].shape)}, expected {tuple(want[name].shape)}"
            got[name] = got[name][list(ours.values())]
            want[name] = want[name][[theirs[token] for token in ours]]
    for name in want:
        fault = _differs(got[name], want[name], rules.get("rtol"), rules.get("share", 1.0))
        if fault:
            return f"{name}: {fault}"
    return ""


def _differs(got: Tensor, want: Tensor, tolerance: float | None, share: float) -> str:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}"
    if not want.is_floating_point():
        return "" if torch.equal(got, want) else "integers differ"
    step = STEPS[want.dtype] if tolerance is None else tolerance
    a, b = got.double(), want.double()
    agree = float(((a - b).abs() <= step * b.abs() + step * 0.05 * b.abs().mean()).double().mean())
    if agree >= share or (want.numel() < SMALL and share < 1 and agree >= 0.75):
        return ""
    return f"{agree:.4%} of the elements agree, wanted {share:.2%}"
