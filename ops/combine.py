"""Weighted sums, the map of every method whose result lies in the span of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(x: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ xᵢ, in place and in input order; inputs of weight 0 are left out, so that their NaNs are too."""
    used = [(row, weight) for row, weight in zip(x, weights, strict=True) if weight != 0.0]
    if not used:
        return x[0].zero_()
    total, first = used[0]
    if first != 1.0:
        total.mul_(first)
    for row, weight in used[1:]:
        total.add_(row, alpha=weight)
    return total


def elect_signs(vectors: Sequence[Tensor], out: Tensor) -> Tensor:
    """The sign of the sum, element by element, over `out`: +1 where the sum is not negative, else -1 (Yadav et al. 2023)."""
    out.copy_(vectors[0])
    for vector in vectors[1:]:
        out.add_(vector)
    return out.ge_(0.0).mul_(2.0).sub_(1.0)
