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


def elect_flips(vectors: Sequence[Tensor], out: Tensor) -> Tensor:
    """The sign of the sum, element by element (Yadav et al. 2023), as int32 over `out`: the sign bit or 0.

    XORed into a vector's bits it makes positive what agrees with the sum, and negative what does not. A sum of 0 counts as
    positive; where every vector holds -0 it may not, and there nothing agrees anyway.
    """
    import torch

    if len(vectors) == 1:
        out.copy_(vectors[0])
    else:
        torch.add(vectors[0], vectors[1], out=out)
    for vector in vectors[2:]:
        out.add_(vector)
    return out.view(torch.int32).bitwise_and_(-(1 << 31))
