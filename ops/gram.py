"""The Gram matrix of a tensor's inputs: all that the geometric means need to know about them.

Every such mean lies in the span of its inputs, Σ cᵢ xᵢ, and its coefficients depend on inner products alone, so even an iteration
runs on the K × K matrix and costs no pass over the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .declare import Scratch

if TYPE_CHECKING:
    from torch import Tensor

Matrix: TypeAlias = list[list[float]]

Coefficients: TypeAlias = Callable[[Matrix], Sequence[float]]
"""What a mean makes of the Gram matrix: the factors of its inputs."""

Vectors: TypeAlias = Callable[[Sequence["Tensor"]], Sequence["Tensor"]]
"""Turns the inputs of a block into the vectors that are meant, in place: the inputs themselves, or task vectors."""


def inputs_themselves(x: Sequence[Tensor]) -> Sequence[Tensor]:
    """The inputs as they are."""
    return x


def task_vectors(base: int | None) -> Vectors:
    """The differences from input `base`, which is left out; the inputs themselves where there is none."""
    if base is None:
        return inputs_themselves

    def subtract(x: Sequence[Tensor]) -> Sequence[Tensor]:
        return [row.sub_(x[base]) for i, row in enumerate(x) if i != base]

    return subtract


@dataclass(frozen=True, slots=True)
class Gram:
    """Statistic ⟨xᵢ, xⱼ⟩ over the whole tensor, in float64, summed block by block in block order.

    Ends in the matrix, or in what `coefficients` makes of it.
    """

    vectors: Vectors = inputs_themselves
    coefficients: Coefficients | None = None

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Matrix:
        """Inner products of one block; a symmetric K × K matrix."""
        import torch

        left, right = scratch.double(0), scratch.double(1)
        rows = self.vectors(x)
        gram = [[0.0] * len(rows) for _ in rows]
        for i, row in enumerate(rows):
            left.copy_(row)
            gram[i][i] = float(torch.dot(left, left))
            for j in range(i):
                right.copy_(rows[j])
                gram[i][j] = gram[j][i] = float(torch.dot(left, right))
        return gram

    def merge(self, left: Matrix, right: Matrix) -> Matrix:
        """Element by element."""
        return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]

    def finish(self, total: Matrix, earlier: Sequence[Any]) -> Matrix | Sequence[float]:
        """The sum itself, or the coefficients."""
        return self.coefficients(total) if self.coefficients and total else total


@dataclass(frozen=True, slots=True)
class ColumnGram:
    """The same for every vector along the first dimension: a float64 tensor [K, K, columns].

    Blocks must be whole rows of `columns` elements.
    """

    vectors: Vectors
    columns: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Tensor:
        """Inner products of the columns' parts in one block."""
        return batched_gram(self.vectors(x), self.columns, 0, scratch)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Element by element."""
        return left.add_(right)

    def finish(self, total: Tensor, earlier: Sequence[Any]) -> Tensor:
        """The sum itself."""
        return total


def batched_gram(rows: Sequence[Tensor], width: int, along: int, scratch: Scratch) -> Tensor:
    """Gram matrices of a block seen as a matrix of rows of `width`: of its columns (`along` 0) or of its rows (`along` 1).

    Returns a float64 tensor [K, K, vectors].
    """
    import torch

    left, right = scratch.double(0), scratch.double(1)
    count = width if along == 0 else len(rows[0]) // max(width, 1)
    gram = torch.empty(len(rows), len(rows), count, dtype=torch.float64, device=rows[0].device)
    for i in range(len(rows)):
        for j in range(i + 1):
            left.copy_(rows[i]).mul_(right.copy_(rows[j]))
            torch.sum(left.view(-1, width), along, out=gram[i, j])
            gram[j, i] = gram[i, j]
    return gram
