"""The methods once more, from their formulas: whole tensors, float64, sorts and loops where they are plainest. For tests only.

Inputs are float64 tensors of one shape, in the order of a config; `base` is the base model's tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Words: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint32]]"


def linear(x: Sequence[Tensor], weights: Sequence[float], normalize: bool = True) -> Tensor:
    total = sum((w * row for w, row in zip(weights, x, strict=True)), torch.zeros_like(x[0]))
    return total / sum(weights) if normalize else total


def slerp(base: Tensor, other: Tensor, t: float) -> Tensor:
    a, b = base.flatten(), other.flatten()
    lengths = [float(v.norm()) for v in (a, b)]
    lengths = [1.0 if length <= 1e-8 else length for length in lengths]
    cosine = float(a @ b) / (lengths[0] * lengths[1])
    if abs(cosine) > 0.9995:
        return (1 - t) * base + t * other
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * base + math.sin(t * angle) * other) / math.sin(angle)


def passthrough(x: Tensor, scale: float | None = None) -> Tensor:
    return x if scale is None else scale * x


def task_arithmetic(
    base: Tensor, x: Sequence[Tensor], weights: Sequence[float], normalize: bool = False, scale: float = 1.0
) -> Tensor:
    return _add(base, [row - base for row in x], weights, normalize, scale)


def largest(delta: Tensor, keep: int) -> Tensor:
    """Where the `keep` largest magnitudes stand; of equal ones the lowest indices."""
    order = torch.sort(delta.flatten().abs(), descending=True, stable=True).indices
    kept = torch.zeros(delta.numel(), dtype=torch.bool)
    kept[order[:keep]] = True
    return kept.view(delta.shape)


def ties(
    base: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    normalize: bool = True,
    rescale: bool = False,
    scale: float = 1.0,
) -> Tensor:
    deltas = []
    for row, density in zip(x, densities, strict=True):
        delta = row - base
        if density < 1:
            thin = torch.where(largest(delta, math.floor(density * delta.numel())), delta, 0.0)
            before, after = float(delta.abs().sum()), float(thin.abs().sum())
            delta = thin * (before / after) if rescale and before >= 1e-7 and after >= 1e-7 else thin
        deltas.append(delta)
    return _elect(base, deltas, weights, normalize, scale)


def dare(
    base: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    kept: Sequence[Tensor],
    consensus: bool,
    normalize: bool = False,
    rescale: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """`kept` are the elements that chance left, a mask a model."""
    deltas = []
    for row, density, mask in zip(x, densities, kept, strict=True):
        delta = torch.where(mask, row - base, 0.0)
        deltas.append(delta / density if rescale and 0 < density < 1 else delta)
    return (_elect if consensus else _add)(base, deltas, weights, normalize, scale)


def _add(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    total = sum((w * delta for w, delta in zip(weights, deltas, strict=True)), torch.zeros_like(base))
    if normalize and abs(sum(weights)) >= 1e-8:
        total = total / sum(weights)
    return base + scale * total


def _elect(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], normalize: bool, scale: float) -> Tensor:
    weighted = [w * delta for w, delta in zip(weights, deltas, strict=True)]
    total = sum(weighted, torch.zeros_like(base))
    elected = torch.where(total >= 0, 1.0, -1.0).double()
    agreeing = [(row.sign() == elected) for row in weighted]
    added = sum((torch.where(agree, row, 0.0) for agree, row in zip(agreeing, weighted, strict=True)), torch.zeros_like(base))
    if normalize:
        share = sum((agree * w for agree, w in zip(agreeing, weights, strict=True)), torch.zeros_like(base))
        added = added / torch.where(share == 0, 1.0, share)
    return base + scale * added


def bits(stream: str, model: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """The random bits of elements 0 to `count` - 1, one after the other in unsigned arithmetic."""
    import hashlib

    low = np.arange(WORDS)
    tables = [_mix((np.arange(WORDS) + k * WORDS).astype(np.uint32) * np.uint32(0x9E3779B9)) for k in range(3)]
    blocks = []
    for number in range(-(-count // WORDS)):
        digest = hashlib.blake2b(f"{stream}\0{model}\0{number}".encode(), digest_size=6).digest()
        turns = [int.from_bytes(digest[i : i + 2], "little") for i in (0, 2, 4)]
        a, b, c = (table[(low + turn) % WORDS] for table, turn in zip(tables, turns, strict=True))
        blocks.append(a ^ b ^ c)
    return np.concatenate([*blocks, np.zeros(0, np.uint32)])[:count].view(np.int32)


WORDS = 1 << 16


def _mix(x: Words) -> Words:
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    mixed: Words = x ^ (x >> np.uint32(16))
    return mixed
