"""Exact selection of the k largest magnitudes by counting, without a sort.

A float32's magnitude orders like its bit pattern without the sign. One pass counts the high 15 bits, a second the low 16 bits
inside the bucket that holds the k-th largest, a third where in the tensor the elements of exactly that magnitude stand: of those
the lowest indices are kept, so exactly k elements are. Several ranks of one row are found in the same passes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .declare import Scratch

if TYPE_CHECKING:
    from torch import Tensor

HIGH_BUCKETS = 1 << 15
LOW_BUCKETS = 1 << 16
STRETCH = 1 << 8
COUNTER_BYTES = 8 * (LOW_BUCKETS + 2)
"""Bytes of the counters of one rank."""

Prepare: TypeAlias = "Callable[[Sequence[Tensor], Scratch], Sequence[Tensor]]"
"""Turns the inputs of a block into the rows to select from."""

Ranks: TypeAlias = Sequence[Sequence[int]]
"""For each row, which k are wanted: the k-th largest magnitudes, 1 being the largest. None wanted: the row is not looked at."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a selection of k elements ends: every bit pattern above `bits` is in it, and of the equal ones the first.

    Blocks before `start` have all their equal elements in it, the block at `start` its first `equal`, later blocks none.
    """

    bits: int
    start: int
    equal: int


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The bucket of a k-th largest, and how many of its elements belong to the k."""

    high: int
    keep: int


@dataclass(frozen=True, slots=True)
class Level:
    """A k-th largest bit pattern, and how many elements of exactly that pattern belong to the k."""

    bits: int
    keep: int


def _descend(counts: Tensor, rank: int) -> tuple[int, int]:
    """The index at which the `rank`-th from the top stands, and its rank among the elements there."""
    # First in which stretch of the counters, then where in it: sums over all of them would take as much memory again.
    stretches = counts.view(-1, STRETCH)
    stretch, left = _descend_in(stretches.sum(1), rank)
    index, left = _descend_in(stretches[stretch], left)
    return stretch * STRETCH + index, left


def _descend_in(counts: Tensor, rank: int) -> tuple[int, int]:
    above = counts.flip(0).cumsum(0)
    before = int((above < rank).sum())
    return len(counts) - 1 - before, rank - (int(above[before - 1]) if before else 0)


def magnitude_bits(row: Tensor, scratch: Tensor) -> Tensor:
    """The bit patterns of |row| as int32, in the memory of `scratch`."""
    import torch

    return torch.bitwise_and(row.view(torch.int32), 0x7FFFFFFF, out=scratch.view(torch.int32))


@dataclass(frozen=True, slots=True)
class CountHigh:
    """First pass: how many elements of each row have each value of the high bits.

    `ranks` is given the statistics of earlier passes once the row is counted.
    """

    wanted: Sequence[bool]
    ranks: Callable[[Sequence[Any]], Ranks]
    prepare: Prepare
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[Tensor | None]:
        """Counts of one block, a histogram of 2¹⁵ a row (None for rows of which nothing is wanted)."""
        spare = scratch.row(self.row)
        return [
            magnitude_bits(row, spare).bitwise_right_shift_(16).bincount(minlength=HIGH_BUCKETS) if wanted else None
            for row, wanted in zip(self.prepare(x, scratch), self.wanted, strict=True)
        ]

    def merge(self, left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
        """Integer sums, exact in any order."""
        return [None if a is None or b is None else a.add_(b) for a, b in zip(left, right, strict=True)]

    def finish(self, total: list[Tensor | None], earlier: Sequence[Any]) -> list[list[_Bucket]]:
        """For each row and rank, the bucket in which it lies."""
        return [
            [] if counts is None else [_Bucket(*_descend(counts, rank)) for rank in ranks]
            for counts, ranks in zip(total, self.ranks(earlier), strict=True)
        ]


@dataclass(frozen=True, slots=True)
class CountLow:
    """Second pass: inside each bucket, how many elements have each value of the low bits."""

    prepare: Prepare
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[list[Tensor]]:
        """Counts of one block, a histogram of 2¹⁶ for each row and rank."""
        buckets: list[list[_Bucket]] = earlier[-1]
        spare = scratch.row(self.row)
        counts: list[list[Tensor]] = []
        for row, wanted in zip(self.prepare(x, scratch), buckets, strict=True):
            counts.append([])
            for bucket in wanted:
                # Bit patterns below the bucket become negative and those above too large: clamping sends both to
                # two spare counters at the ends, so no element has to be gathered.
                low = magnitude_bits(row, spare).sub_((bucket.high << 16) - 1).clamp_(0, LOW_BUCKETS + 1)
                counts[-1].append(low.bincount(minlength=LOW_BUCKETS + 2)[1:-1])
        return counts

    def merge(self, left: list[list[Tensor]], right: list[list[Tensor]]) -> list[list[Tensor]]:
        """Integer sums, exact in any order."""
        return [[a.add_(b) for a, b in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]

    def finish(self, total: list[list[Tensor]], earlier: Sequence[Any]) -> list[list[Level]]:
        """For each row and rank, the exact bit pattern."""
        levels: list[list[Level]] = []
        for counts, buckets in zip(total, earlier[-1], strict=True):
            levels.append([])
            for histogram, bucket in zip(counts, buckets, strict=True):
                low, keep = _descend(histogram, bucket.keep)
                levels[-1].append(Level((bucket.high << 16) | low, keep))
        return levels


Places: TypeAlias = list[list[tuple[tuple[int, int], ...]]]
"""For each row and rank, the blocks that hold elements of its magnitude: (block's start, how many)."""


@dataclass(frozen=True, slots=True)
class CountEqual:
    """Third pass: how many elements of exactly each rank's magnitude each block holds."""

    prepare: Prepare
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Places:
        """The places of one block."""
        import torch

        levels: list[list[Level]] = earlier[-1]
        spare = scratch.row(self.row)
        found: Places = []
        for row, wanted in zip(self.prepare(x, scratch), levels, strict=True):
            found.append([])
            for level in wanted:
                # A float32 row of zeros and ones sums much faster than truth values, and 2²⁴ ones are exact.
                bits = magnitude_bits(row, spare).bitwise_xor_(level.bits)
                count = int(torch.eq(bits, 0, out=spare).sum())
                found[-1].append(((start, count),) if count else ())
        return found

    def merge(self, left: Places, right: Places) -> Places:
        """Concatenation, in block order."""
        return [[a + b for a, b in zip(p, q, strict=True)] for p, q in zip(left, right, strict=True)]

    def finish(self, total: Places, earlier: Sequence[Any]) -> list[list[Cut]]:
        """The cut of each row and rank."""
        return [
            [cut_of(level, blocks) for blocks, level in zip(places, levels, strict=True)]
            for places, levels in zip(total, earlier[-1], strict=True)
        ]


def cut_of(level: Level, blocks: Sequence[tuple[int, int]]) -> Cut:
    """The cut at a level, given how many elements of exactly its magnitude each block holds: (start, how many), in order."""
    left = level.keep
    for start, count in blocks:
        if count >= left:
            return Cut(level.bits, start, left)
        left -= count
    raise AssertionError("a pass over the same data found fewer equal elements than the one before")


_INFINITY = 0x7F800000


def mark_selected(row: Tensor, cut: Cut, start: int, out: Tensor) -> Tensor:
    """1.0 where an element of `row` (the block at `start`) belongs to the cut's selection, else 0.0, over `out`."""
    import torch

    bits = magnitude_bits(row, out)
    if start == cut.start:
        equal = _equal_beyond(bits, cut)
        marks = torch.ge(bits, cut.bits, out=out)
        marks[equal] = 0.0
        return marks
    if start < cut.start:
        return torch.ge(bits, cut.bits, out=out)
    return torch.gt(bits, cut.bits, out=out)


def selected(row: Tensor, cut: Cut, start: int, out: Tensor, spare: Tensor) -> Tensor:
    """Elements of `row` (the block at `start`) that belong to the cut's selection, else 0.0, over `out`, which may be `row`.

    One operation, unless the selection ends in this block or among NaNs: of the numbers up to a threshold hardshrink makes 0.
    """
    import torch

    if cut.bits > _INFINITY:
        marks = mark_selected(row, cut, start, spare)
        return torch.mul(row, marks, out=out)
    beyond = _equal_beyond(magnitude_bits(row, spare), cut) if start == cut.start else None
    threshold = cut.bits if start > cut.start else cut.bits - 1
    if threshold >= 0:
        torch.ops.aten.hardshrink.out(row, _magnitude(threshold), out=out)
    elif out is not row:
        out.copy_(row)
    if beyond is not None:
        out[beyond] = 0.0
    return out


def _equal_beyond(bits: Tensor, cut: Cut) -> Tensor:
    """Where in the block in which a selection ends the elements of its magnitude stand that are no longer in it."""
    import torch

    return torch.nonzero(bits == cut.bits).flatten()[cut.equal :]


def _magnitude(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])
