"""Normal noise from counter-based random words: a function of (seed, tensor, element index) and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..expression import Value, narrow, random_word, sqrt
from ..method import Kernel, Step
from .random_bits import TABLE_BYTES
from .transcendental import cosine_of_turns, logarithm


@dataclass(frozen=True, slots=True)
class Noise:
    """An expert's change of one tensor: (x + scale·z)·factor with z standard normal, each element on its own."""

    scale: float
    factor: float


def unit_uniform(like: Value, stream: int) -> Value:
    """Uniform float32 numbers in (0, 1): multiples of 2⁻²⁴ and half a step."""
    return narrow((random_word(like, stream) >> 8) + (1 << 23)) * 2.0**-24 + 2.0**-25


def standard_normal(like: Value) -> Value:
    """Standard normal float32 numbers from streams 0 and 1 (Box and Muller 1958)."""
    radius = sqrt(logarithm(unit_uniform(like, 0)) * -2.0)
    return narrow(radius * cosine_of_turns(unit_uniform(like, 1)))


def normal_numbers(models: Sequence[Value]) -> Value:
    """Standard normal numbers, whatever the input is."""
    return standard_normal(models[0])


def uniform_numbers(models: Sequence[Value]) -> Value:
    """Uniform numbers from 0 to 1."""
    return unit_uniform(models[0], 0)


def with_noise(models: Sequence[Value], scale: Value, factor: Value) -> Value:
    """(x + scale·z)·factor."""
    return (models[0] + standard_normal(models[0]) * scale) * factor


def noise_kernel(noise: Noise, stream: str) -> Kernel:
    """The kernel that adds noise to its one input and scales the sum."""
    numbers: dict[str, object] = {"scale": noise.scale, "factor": noise.factor}
    return Kernel(Step(with_noise, lambda found: numbers), random=stream, shared_bytes=TABLE_BYTES)
