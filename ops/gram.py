"""The Gram matrix of a tensor's inputs: all that the geometric means need to know about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from .declare import Scratch

if TYPE_CHECKING:
    from torch import Tensor

Matrix: TypeAlias = list[list[float]]


class Gram:
    """Statistic ⟨xᵢ, xⱼ⟩ over the whole tensor, in float64, summed block by block in block order."""

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Matrix:
        """Inner products of one block; a symmetric K × K matrix."""
        import torch

        left, right = scratch.double(0), scratch.double(1)
        gram = [[0.0] * len(x) for _ in x]
        for i, row in enumerate(x):
            left.copy_(row)
            gram[i][i] = float(torch.dot(left, left))
            for j in range(i):
                right.copy_(x[j])
                gram[i][j] = gram[j][i] = float(torch.dot(left, right))
        return gram

    def merge(self, left: Matrix, right: Matrix) -> Matrix:
        """Element by element."""
        return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]

    def finish(self, total: Matrix, earlier: Sequence[Any]) -> Matrix:
        """The sum itself."""
        return total
