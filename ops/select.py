"""Exact selection of the k largest magnitudes by counting, without a sort.

A float32's magnitude orders like its bit pattern without the sign. One pass counts the high 15 bits, a second the low 16 bits
inside the bucket that holds the k-th largest, a third where in the tensor the elements of exactly that magnitude stand: of those
the lowest indices are kept, so exactly k elements are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .declare import Scratch

if TYPE_CHECKING:
    from torch import Tensor

HIGH_BUCKETS = 1 << 15
LOW_BUCKETS = 1 << 16

Prepare: TypeAlias = "Callable[[Sequence[Tensor], Scratch], Sequence[Tensor]]"
"""Turns the inputs of a block into the rows to select from."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a row's selection ends: every bit pattern above `bits` is kept, and of the equal ones the first.

    Blocks before `start` keep all their equal elements, the block at `start` its first `equal`, later blocks none.
    """

    bits: int
    start: int
    equal: int


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The bucket of the k-th largest, and how many of its elements are to be kept."""

    high: int
    keep: int


@dataclass(frozen=True, slots=True)
class _Level:
    """The k-th largest bit pattern, and how many elements of exactly that pattern are to be kept."""

    bits: int
    keep: int


def _descend(counts: Tensor, keep: int) -> tuple[int, int]:
    """The highest index at which at least `keep` elements stand at or above, and how many of that bucket are to be kept."""
    above = counts.flip(0).cumsum(0)
    rank = int((above < keep).sum())
    bucket = len(counts) - 1 - rank
    return bucket, keep - (int(above[rank - 1]) if rank else 0)


def magnitude_bits(row: Tensor, scratch: Tensor) -> Tensor:
    """The bit patterns of |row| as int32, in the memory of `scratch`."""
    import torch

    return torch.bitwise_and(row.view(torch.int32), 0x7FFFFFFF, out=scratch.view(torch.int32))


@dataclass(frozen=True, slots=True)
class CountHigh:
    """First pass: for each row to be cut, how many elements have each value of the high bits."""

    keep: Sequence[int | None]
    prepare: Prepare
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[Tensor | None]:
        """Counts of one block, a histogram of 2¹⁵ a row (None for rows that keep everything)."""
        spare = scratch.row(self.row)
        return [
            None if keep is None else magnitude_bits(row, spare).bitwise_right_shift_(16).bincount(minlength=HIGH_BUCKETS)
            for row, keep in zip(self.prepare(x, scratch), self.keep, strict=True)
        ]

    def merge(self, left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
        """Integer sums, exact in any order."""
        return _add(left, right)

    def finish(self, total: list[Tensor | None], earlier: Sequence[Any]) -> list[_Bucket | None]:
        """The bucket in which each row's k-th largest lies."""
        return [
            None if counts is None or keep is None else _Bucket(*_descend(counts, keep))
            for counts, keep in zip(total, self.keep, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class CountLow:
    """Second pass: inside the bucket, how many elements have each value of the low bits."""

    prepare: Prepare
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[Tensor | None]:
        """Counts of one block, a histogram of 2¹⁶ a row."""
        buckets: list[_Bucket | None] = earlier[0]
        spare = scratch.row(self.row)
        counts: list[Tensor | None] = []
        for row, bucket in zip(self.prepare(x, scratch), buckets, strict=True):
            if bucket is None:
                counts.append(None)
                continue
            # Bit patterns below the bucket become negative and those above too large: clamping sends both to
            # two spare counters at the ends, so no element has to be gathered.
            low = magnitude_bits(row, spare).sub_((bucket.high << 16) - 1).clamp_(0, LOW_BUCKETS + 1)
            counts.append(low.bincount(minlength=LOW_BUCKETS + 2)[1:-1])
        return counts

    def merge(self, left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
        """Integer sums, exact in any order."""
        return _add(left, right)

    def finish(self, total: list[Tensor | None], earlier: Sequence[Any]) -> list[_Level | None]:
        """The exact bit pattern of each row's k-th largest."""
        levels: list[_Level | None] = []
        for counts, bucket in zip(total, earlier[0], strict=True):
            if counts is None or bucket is None:
                levels.append(None)
                continue
            low, keep = _descend(counts, bucket.keep)
            levels.append(_Level((bucket.high << 16) | low, keep))
        return levels


@dataclass(frozen=True, slots=True)
class CountEqual:
    """Third pass: how many elements of exactly the cut's magnitude each block holds."""

    prepare: Prepare
    row: int

    def block(
        self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]
    ) -> list[tuple[tuple[int, int], ...]]:
        """Per row, the pair (block start, count), or nothing where the block holds none."""
        import torch

        levels: list[_Level | None] = earlier[1]
        spare = scratch.row(self.row)
        found: list[tuple[tuple[int, int], ...]] = []
        for row, level in zip(self.prepare(x, scratch), levels, strict=True):
            if level is None:
                found.append(())
                continue
            # Two zero bits mean equality; a float32 0/1 row sums much faster than a boolean one, and 65,536 ones are exact.
            bits = magnitude_bits(row, spare).bitwise_xor_(level.bits)
            count = int(torch.eq(bits, 0, out=spare).sum())
            found.append(((start, count),) if count else ())
        return found

    def merge(
        self, left: list[tuple[tuple[int, int], ...]], right: list[tuple[tuple[int, int], ...]]
    ) -> list[tuple[tuple[int, int], ...]]:
        """Concatenation, in block order."""
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, total: list[tuple[tuple[int, int], ...]], earlier: Sequence[Any]) -> list[Cut | None]:
        """The cut of each row."""
        cuts: list[Cut | None] = []
        for blocks, level in zip(total, earlier[1], strict=True):
            if level is None:
                cuts.append(None)
                continue
            left = level.keep
            for start, count in blocks:
                if count >= left:
                    cuts.append(Cut(level.bits, start, left))
                    break
                left -= count
        return cuts


def apply_cut(row: Tensor, cut: Cut, start: int, spare: Tensor) -> Tensor:
    """Zero, in place, the elements of `row` (the block at `start`) that the cut leaves out."""
    import torch

    bits = magnitude_bits(row, spare)
    if start == cut.start:
        equal = torch.nonzero(bits == cut.bits).flatten()[cut.equal :]
        kept = torch.ge(bits, cut.bits, out=spare)
        kept[equal] = 0.0
    elif start < cut.start:
        kept = torch.ge(bits, cut.bits, out=spare)
    else:
        kept = torch.gt(bits, cut.bits, out=spare)
    return row.mul_(kept)


def _add(left: list[Tensor | None], right: list[Tensor | None]) -> list[Tensor | None]:
    return [None if a is None or b is None else a.add_(b) for a, b in zip(left, right, strict=True)]
