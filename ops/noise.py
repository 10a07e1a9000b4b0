"""Normal noise from counter-based random bits: a function of (seed, tensor, element index) and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declare import Kernel, Scratch
from .random_bits import TABLE_BYTES, random_bits

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Noise:
    """An expert's change of one tensor: (x + scale·z)·factor with z standard normal, each element on its own."""

    scale: float
    factor: float


def unit_uniform(stream: str, part: int, start: int, out: Tensor, spare: Tensor) -> Tensor:
    """Uniform float32 numbers in (0, 1], multiples of 2⁻²⁴ and half a step, over the memory of `out`."""
    bits = random_bits(stream, part, start, spare).bitwise_right_shift_(8)  # 24 bits with a sign: exact in float32
    return out.copy_(bits).add_((1 << 23) + 0.5).mul_(2.0**-24)


def standard_normal(stream: str, start: int, out: Tensor, spare: Tensor, more: Tensor) -> Tensor:
    """Standard normal float32 numbers for the elements `start`, `start` + 1, …, written over `out` (Box and Muller 1958)."""
    radius = unit_uniform(stream, 0, start, out, spare).log_().mul_(-2.0).sqrt_()
    angle = unit_uniform(stream, 1, start, more, spare).mul_(2 * math.pi).cos_()
    return radius.mul_(angle)


def noise_kernel(noise: Noise, stream: str) -> Kernel:
    """The kernel that adds noise to its one input and scales the sum."""

    def add(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        z = standard_normal(stream, start, scratch.row(0), scratch.row(1), scratch.row(2))
        x[0].add_(z, alpha=noise.scale)
        return x[0] if noise.factor == 1.0 else x[0].mul_(noise.factor)

    return Kernel(add, rows=3, shared_bytes=TABLE_BYTES)
