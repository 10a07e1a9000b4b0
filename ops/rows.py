"""Laying out an embedding's rows by another vocabulary: what a row's tokens mean moves with the tokens.

All inputs have the output's shape: input 0 holds the model's own rows in their new places, the others the rows that it lacks and
other models have. Rows that nobody filled are listed as exceptions and never read.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declare import Kernel, Scratch, row_block

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Which rows are not the model's own.

    `exceptions`, by ascending row: the positions of the inputs whose mean the row is (none: zeros). Rows from `real` to `padded`
    (None: to the end) are padding, the mean of all real rows. `width`: elements of a row (None: all but the first dimension), for
    tensors in which the rows' dimension is another; those before it count rows too.
    """

    real: int
    exceptions: tuple[tuple[int, tuple[int, ...]], ...]
    padded: int | None = None
    width: int | None = None


@dataclass(frozen=True, slots=True)
class _MeanRow:
    """The mean of the real rows, in float64: the padding rows."""

    layout: RowLayout
    width: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Tensor:
        """The sum of one block's real rows."""
        rows = _fill(self.layout, x, start, self.width)
        wide = scratch.double(0).copy_(rows.view(-1)).view(-1, self.width)
        total: Tensor = wide[: max(self.layout.real - start // self.width, 0)].sum(0)
        return total

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Element by element."""
        return left.add_(right)

    def finish(self, total: Tensor, earlier: Sequence[Any]) -> Tensor:
        """Their mean, as float32."""
        return (total / max(self.layout.real, 1)).float()


def _fill(layout: RowLayout, x: Sequence[Tensor], start: int, width: int) -> Tensor:
    """The block's rows [rows, width] with exceptions filled in; padding rows are left as they are."""
    rows = x[0].view(-1, width)
    first = start // width
    index = bisect_left(layout.exceptions, (first, ()))
    while index < len(layout.exceptions) and layout.exceptions[index][0] < first + len(rows):
        row, sources = layout.exceptions[index]
        target = rows[row - first]
        target.zero_()
        for source in sources:
            target.add_(x[source].view(-1, width)[row - first])
        if len(sources) > 1:
            target.div_(len(sources))
        index += 1
    return rows


def rows_kernel(shape: tuple[int, ...], layout: RowLayout) -> Kernel:
    """The kernel that fills an embedding of `shape`."""
    width = math.prod(shape[1:]) if layout.width is None else layout.width
    end = math.prod(shape) // max(width, 1) if layout.padded is None else layout.padded
    padded = layout.real < end

    def fill(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        rows = _fill(layout, x, start, width)
        if padded:
            first = start // width
            rows[max(layout.real - first, 0) : max(end - first, 0)] = statistics[0]
        return x[0]

    return Kernel(fill, statistics=(_MeanRow(layout, width),) if padded else (), state_bytes=16 * width, block=row_block(width))
