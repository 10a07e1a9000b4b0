"""Laying out an embedding's rows by another vocabulary: what a row's tokens mean moves with the tokens.

All inputs have the output's shape: input 0 holds the model's own rows in their new places, the others the rows that it lacks and
other models have. Rows that nobody filled are listed as exceptions and never read.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..method import Found, Kernel, Pass, row_block
from .arrays import as_float32, as_float64


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
class MeanRow(Pass):
    """The mean of the real rows, made in float64: the padding rows."""

    layout: RowLayout
    width: int

    def block(self, x: Sequence[Any], start: int) -> Any:
        """The sum of one block's real rows."""
        rows = _filled(self.layout, x, start, self.width)
        return as_float64(rows[: max(self.layout.real - start // self.width, 0)]).sum(0)

    def merge(self, left: Any, right: Any) -> Any:
        """Element by element."""
        return left + right

    def finish(self, total: Any, found: Found) -> Any:
        """Their mean, as float32."""
        return None if total is None else as_float32(total / max(self.layout.real, 1))


def _filled(layout: RowLayout, x: Sequence[Any], start: int, width: int) -> Any:
    """The block's rows [rows, width] with exceptions filled in; padding rows are left as they are."""
    rows = x[0].reshape(-1, width)
    first = start // width
    index = bisect_left(layout.exceptions, (first, ()))
    while index < len(layout.exceptions) and layout.exceptions[index][0] < first + len(rows):
        row, sources = layout.exceptions[index]
        target = rows[row - first]
        target[:] = 0.0
        for source in sources:
            target += x[source].reshape(-1, width)[row - first]
        if len(sources) > 1:
            target /= len(sources)
        index += 1
    return rows


@dataclass(frozen=True, slots=True)
class RowsMap:
    """Fills in exceptions and, from row `layout.real` to `end`, padding."""

    layout: RowLayout
    width: int
    end: int

    def __call__(self, x: Sequence[Any], start: int, found: Found) -> Any:
        """A block of whole rows."""
        rows = _filled(self.layout, x, start, self.width)
        if self.layout.real < self.end:
            first = start // self.width
            rows[max(self.layout.real - first, 0) : max(self.end - first, 0)] = found[0]
        return rows.reshape(-1)


def rows_kernel(shape: tuple[int, ...], layout: RowLayout) -> Kernel:
    """The kernel that fills an embedding of `shape`."""
    width = max(math.prod(shape[1:]) if layout.width is None else layout.width, 1)
    end = math.prod(shape) // width if layout.padded is None else layout.padded
    passes = (MeanRow(layout, width),) if layout.real < end else ()
    return Kernel(RowsMap(layout, width, end), passes, state_bytes=24 * width, block=row_block(width))
