"""Exact selection of the k largest magnitudes by counting, without a sort.

A float32's magnitude orders like its bit pattern without the sign. One pass counts the high 15 bits; a second counts the low 16
bits inside the bucket that holds the k-th largest, block by block. Of the elements of exactly that magnitude the lowest indices
are kept, so exactly k elements are. Several ranks of one row of values are found in the same passes.

Where the blocks' counts become too many to keep (many different values in one bucket), a third pass counts where in the tensor
the elements of the magnitude stand; it is seldom needed, because models in 16 bits differ by few different values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..method import BLOCK, PART, Fallback, Found, Pass, Step

HIGH_BUCKETS = 1 << 15
LOW_BUCKETS = 1 << 16

BLOCK_VALUES = 2048
"""Different low halves of one block that are noted; more, and the third pass is made."""

TENSOR_VALUES = 1 << 16
"""The same of a whole tensor."""

Ranks: TypeAlias = Sequence[Sequence[int]]
"""For each row of values, which k are wanted: the k-th largest magnitudes, 1 being the largest. None: it is not looked at."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a selection of k elements ends: every bit pattern above `bits` is in it, and of the equal ones the first.

    Blocks before `start` have all their equal elements in it, the block at `start` its first `equal`, later blocks none.
    """

    bits: int
    start: int
    equal: int


EVERYTHING = Cut(-1, 0, 0)
"""Selects every element."""

NOTHING = Cut(0x7FFFFFFF, 0, 0)
"""Selects none."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """The bucket of a k-th largest of row `row`, and how many of its elements belong to the k."""

    row: int
    high: int
    keep: int


@dataclass(frozen=True, slots=True)
class Level:
    """A k-th largest bit pattern of row `row`, how many elements of exactly that pattern belong to the k, and, where that is
    known already, the cut.
    """

    row: int
    bits: int
    keep: int
    cut: Cut | None


def descend(counts: NDArray[Any], rank: int) -> tuple[int, int]:
    """The index at which the `rank`-th from the top stands, and its rank among the elements there."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, rank - above


@dataclass(frozen=True, slots=True)
class High(Pass):
    """First pass: how many elements of each row of values have each value of the high bits; int64 [rows, 2¹⁵]."""

    step: Step
    ranks: Callable[[Found], Ranks]

    def merge(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        """Integer sums, exact in any order."""
        left += right
        return left

    def finish(self, total: NDArray[np.int64] | None, found: Found) -> tuple[Bucket, ...]:
        """The bucket of each row's ranks, in order."""
        wanted = [(row, rank) for row, ranks in enumerate(self.ranks(found)) for rank in ranks]
        if total is None:
            return tuple(Bucket(row, 0, 0) for row, _ in wanted)
        return tuple(Bucket(row, *descend(total[row], rank)) for row, rank in wanted)


@dataclass(frozen=True, slots=True)
class LowCounts:
    """The low halves inside each bucket: how many of each, int64 [buckets, 2¹⁶] (of one part int32), and by block which there are
    and how many of each (None: too many to keep).
    """

    counts: NDArray[Any]
    blocks: tuple[tuple[tuple[int, NDArray[np.int32]], ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Low(Pass):
    """Second pass: the low halves inside the buckets that the pass before it found."""

    step: Step

    def merge(self, left: LowCounts, right: LowCounts) -> LowCounts:
        """Integer sums, and one block's after another's."""
        counts = left.counts.astype(np.int64, copy=False)  # of a part they are int32
        counts += right.counts
        joined = []
        for a, b in zip(left.blocks, right.blocks, strict=True):
            both = None if a is None or b is None else a + b
            if both is not None and sum(len(noted) for _, noted in both) > TENSOR_VALUES:
                both = None
            joined.append(both)
        return LowCounts(counts, tuple(joined))

    def finish(self, total: LowCounts | None, found: Found) -> tuple[Level, ...]:
        """The exact bit pattern of each rank, and its cut if the blocks' counts were kept."""
        buckets: Sequence[Bucket] = found[-1]
        if total is None:
            return tuple(Level(bucket.row, 0, 0, NOTHING) for bucket in buckets)
        levels = []
        for bucket, counts, blocks in zip(buckets, total.counts, total.blocks, strict=True):
            low, keep = descend(counts, bucket.keep)
            bits = (bucket.high << 16) | low
            cut = None
            if keep == int(counts[low]):  # all that are equal
                cut = Cut(bits - 1, 0, 0)
            elif blocks is not None:
                equal = ((start, int(noted[noted[:, 0] == low, 1].sum())) for start, noted in blocks)
                cut = cut_of(bits, keep, equal)
            levels.append(Level(bucket.row, bits, keep, cut))
        return tuple(levels)


@dataclass(frozen=True, slots=True)
class Equal(Pass, Fallback):
    """Third pass, made where some cut is not known: by block, how many elements of exactly each level there are."""

    step: Step

    def needed(self, found: Found) -> bool:
        """Whether a cut is not known."""
        return any(level.cut is None for level in found[-1])

    def merge(
        self, left: list[tuple[int, tuple[int, ...]]], right: list[tuple[int, tuple[int, ...]]]
    ) -> list[tuple[int, tuple[int, ...]]]:
        """One block's after another's; what no level has is left out."""
        return left + right

    def finish(self, total: list[tuple[int, tuple[int, ...]]], found: Found) -> tuple[Cut, ...]:
        """The cut of each level."""
        levels: Sequence[Level] = found[-1]
        return tuple(
            level.cut or cut_of(level.bits, level.keep, [(start, counts[i]) for start, counts in total])
            for i, level in enumerate(levels)
        )


def cut_of(bits: int, keep: int, blocks: Any) -> Cut:
    """The cut at a bit pattern, given how many elements of exactly it each block holds: (start, how many), in order."""
    for start, count in blocks:
        if count >= keep:
            return Cut(bits, start, keep)
        keep -= count
    raise AssertionError("a pass over the same data found fewer equal elements than the one before")


PASSES = 3
"""What `find_cuts` makes."""


def find_cuts(
    function: Callable[..., object], ranks: Callable[[Found], Ranks], numbers: Callable[[Found], Mapping[str, object]]
) -> tuple[Pass, Pass, Pass]:
    """The passes that find the cuts of the values that `function` returns; `cuts` reads what they find."""
    step = Step(function, numbers)
    return High(step, ranks), Low(step), Equal(step)


def cuts(found: Found, at: int, ranks: Ranks) -> list[list[Cut]]:
    """The cuts of each row's ranks that the passes from number `at` on found."""
    known: Sequence[Cut] = found[at + 2] or [level.cut for level in found[at + 1]]
    flat = iter(known)
    return [[next(flat) for _ in row] for row in ranks]


def state_bytes(ranks: Ranks) -> int:
    """Most bytes of one of the passes over a tensor."""
    wanted = sum(map(len, ranks))
    return max(8 * HIGH_BUCKETS * len(ranks), wanted * (8 * LOW_BUCKETS + 8 * (TENSOR_VALUES + BLOCK_VALUES))) + 4096


def partial_bytes(ranks: Ranks) -> int:
    """The same of one part, and of what it is counted in."""
    wanted = sum(map(len, ranks))
    blocks = PART // BLOCK
    return max(8 * HIGH_BUCKETS * len(ranks), wanted * (8 * LOW_BUCKETS + 2 * 8 * BLOCK_VALUES * blocks)) + 4096
