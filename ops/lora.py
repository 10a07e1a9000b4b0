"""Applying a low-rank adapter: W + scale·B·A, a block of W's rows at a time, so the product never stands in memory whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .declare import Kernel, Scratch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 18
"""Elements of W in a block, if a row is not longer: larger than other methods' blocks, as both factors are widened for each."""


def lora_kernel(
    shape: tuple[int, ...], a_shape: tuple[int, ...], b_shape: tuple[int, ...], scale: float, transposed: bool
) -> Kernel:
    """The kernel of inputs W, A [r, in] and B [out, r]: W + scale·B·A, or W + scale·(B·A)ᵀ if `transposed`.

    Both are a product of one side's rows that belong to the block with the other side whole. Factors are widened into scratch a
    few ranks at a time, so many that they fit, and the product is summed up before W gets it, so W is rounded once.
    """
    rank, width = a_shape[0], shape[1]
    side = (width, shape[0]) if transposed else shape
    assert (b_shape[0], a_shape[1], b_shape[1]) == (*side, rank), "the planner checks shapes"

    def apply(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        weight = x[0].view(-1, width)
        a, b = x[1].view(a_shape), x[2].view(b_shape)
        first, rows = start // width, len(weight)
        product = scratch.row(0).view(rows, width)
        step = min(rows, width)
        for low in range(0, rank, step):
            high = min(low + step, rank)
            if transposed:
                left = _widened(a[low:high, first : first + rows], scratch.row(1)).t()
                right = _widened(b[:, low:high], scratch.row(2)).t()
            else:
                left = _widened(b[first : first + rows, low:high], scratch.row(1))
                right = _widened(a[low:high], scratch.row(2))
            product.addmm_(left, right, beta=0 if low == 0 else 1)
        weight.add_(product, alpha=scale)
        return x[0]

    rows = 1 << max((BLOCK // max(width, 1)).bit_length() - 1, 0)
    return Kernel(apply, rows=3, block=max(width, 1) * rows, whole=(1, 2))


def _widened(part: Tensor, row: Tensor) -> Tensor:
    """A part of a factor as float32, in a scratch row: the alignment of operands, on which a product's bits depend, is fixed."""
    return row[: part.numel()].view(part.shape).copy_(part)
