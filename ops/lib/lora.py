"""Applying a low-rank adapter: W + scale·B·A, a block of W's rows at a time, so the product never stands in memory whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..method import Found, Kernel

BLOCK = 1 << 18
"""Elements of W in a block, if a row is not longer: larger than other methods' blocks, as both factors are widened for each."""


@dataclass(frozen=True, slots=True)
class LowRankMap:
    """W + scale·B·A of inputs W, A [r, in] and B [out, r], or W + scale·(B·A)ᵀ if `transposed`; `width`: elements of W's rows.

    Both are a product of one side's rows that belong to the block with the other side whole.
    """

    width: int
    rank: int
    scale: float
    transposed: bool

    def __call__(self, x: Sequence[Any], start: int, found: Found) -> Any:
        """The rows of a block; the product is made in float32 and W gets it once."""
        weight, a, b = x[0].reshape(-1, self.width), x[1], x[2]
        rows = slice(start // self.width, start // self.width + len(weight))
        everything = slice(None)
        # Contiguous factors: on how they lie in memory the bits of a product depend.
        if self.transposed:
            product = _rows_first(a[everything, rows]) @ _rows_first(b[everything, everything])
        else:
            product = b[rows, everything] @ a[everything, everything]
        product *= self.scale
        weight = weight + product
        return weight.reshape(-1)


def _rows_first(factor: Any) -> Any:
    """The transpose, in memory of its own."""
    return factor.T.copy() if hasattr(factor, "copy") else factor.T.contiguous()


def lora_kernel(
    shape: tuple[int, ...], a_shape: tuple[int, ...], b_shape: tuple[int, ...], scale: float, transposed: bool
) -> Kernel:
    """The kernel of inputs W, A [r, in] and B [out, r]: W + scale·B·A, or W + scale·(B·A)ᵀ if `transposed`."""
    rank, width = a_shape[0], shape[1]
    side = (width, shape[0]) if transposed else shape
    assert (b_shape[0], a_shape[1], b_shape[1]) == (*side, rank), "the planner checks shapes"
    rows = 1 << max((BLOCK // max(width, 1)).bit_length() - 1, 0)
    block = max(width, 1) * rows
    factors = rank * (a_shape[1] + b_shape[0]) * 4
    return Kernel(
        LowRankMap(max(width, 1), rank, scale, transposed),
        block=block,
        scratch_bytes=4 * 3 * block + 2 * factors,
        whole=(1, 2),
        whole_shapes=(a_shape, b_shape),
    )
