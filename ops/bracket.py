"""The k-th largest magnitude in one pass: a sample says between which two values it must lie, and what lies there is looked at.

    a sample         ·  ·   ··  · ·  ·  ·   · ·  · ·   ·
    sorted                 low ├──── k? ────┤ high          the k-th largest of all is in between
    one pass         counts what is above, at `high` and at `low`, and gathers the few values in between

Floyd and Rivest 1975, Expected time bounds for selection (section 2), with the sample's ends as counts of their own: models in
16 bits differ by few distinct values, so a single value may be that of a tenth of all elements, and gathering it would gather
them. What the pass finds is exact whatever the sample was. Where the sample misled (there is structure that it fell in step
with), nothing is found, and the counting passes of `select.py` look at everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .declare import PART, Fallback, Sampling, Scratch, Statistic
from .select import COUNTER_BYTES, CountEqual, CountHigh, CountLow, Cut, Level, Prepare, Ranks, cut_of

if TYPE_CHECKING:
    from torch import Tensor

ERRORS = 5.0
"""Width of the bracket on either side, in standard errors of the sample's rank: missed once in two million draws."""

Values = NDArray[np.float32]


@cache
def sample_stride(size: int) -> int:
    """Every how many elements one is looked at: a prime or 1, so that rows and columns of a matrix take turns.

    The sample grows with the two-thirds power of the size: then it and what lies in the bracket are about as many.
    """
    if size <= 1 << 16:
        return 1
    stride = round(math.cbrt(size) / 4)
    while stride > 1 and any(stride % d == 0 for d in range(2, math.isqrt(stride) + 1)):
        stride -= 1
    return int(max(stride, 1))


def sample_error(size: int, rank: int) -> float:
    """Half the width of a bracket, in elements of the sample."""
    stride, share = sample_stride(size), rank / size
    return 0.0 if stride == 1 else ERRORS * math.sqrt(size / stride * share * (1.0 - share)) + 1.0


def _bracket_bytes(size: int, ranks: Ranks) -> int:
    """Most bytes of the sample of each row that has ranks, or of what lies in the brackets."""
    sample = 4 * (size // sample_stride(size) + 1) * sum(map(bool, ranks))
    return max(sample, 4 * sum(_gathered_at_most(size, rank) for row in ranks for rank in row)) + 4096


def _gathered_at_most(size: int, rank: int) -> int:
    """Half as much again as is expected in a bracket, and what chance adds to few; more would mean that the sample misled."""
    return math.ceil(3 * (sample_error(size, rank) + ERRORS) * sample_stride(size))


@dataclass(frozen=True, slots=True)
class Bracket:
    """The k-th largest magnitude is `low`, `high` or between them, as far as the sample tells."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Sample(Sampling):
    """First pass, over every `stride`-th element: brackets for the ranks of each row."""

    ranks: Ranks
    prepare: Prepare
    size: int
    stride: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[list[Values]]:
        """Magnitudes of the sampled elements of one block, for each row of which something is wanted."""
        rows = self.prepare(x, scratch)
        return [[_host(row.abs_()).copy()] if ranks else [] for row, ranks in zip(rows, self.ranks, strict=True)]

    def merge(self, left: list[list[Values]], right: list[list[Values]]) -> list[list[Values]]:
        """Concatenation."""
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, total: list[list[Values]], earlier: Sequence[Any]) -> list[list[Bracket]]:
        """For each row and rank, its bracket; NumPy sorts in place what has been joined."""
        return [
            _brackets(np.concatenate(pieces), wanted, self.size) if wanted else []
            for pieces, wanted in zip(total, self.ranks, strict=True)
        ]


def _brackets(sample: Values, ranks: Sequence[int], size: int) -> list[Bracket]:
    """Places counted from the top: an element that is no number counts as the largest, as NumPy sorts it."""
    count = len(sample)
    places = []
    for rank in ranks:
        error = sample_error(size, rank)
        middle = rank * count / size
        places.append((math.floor(middle - error) - (error > 0), math.ceil(middle + error)))
    wanted = sorted({count - place for pair in places for place in pair if 0 < place <= count})
    if wanted:
        sample.partition(wanted)

    def at(place: int) -> float:
        return math.inf if place < 1 else -1.0 if place > count else float(sample[count - place])

    return [Bracket(at(low), at(high)) for high, low in places]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one block holds, seen from one bracket."""

    start: int
    above: int
    at_high: int
    between: int
    at_low: int


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of one rank: its blocks in order, and the values between the ends (None: too many to keep)."""

    blocks: tuple[_Seen, ...]
    values: tuple[Values, ...] | None

    def __add__(self, other: _Found) -> _Found:
        values = None if self.values is None or other.values is None else self.values + other.values
        return _Found(self.blocks + other.blocks, values)


@dataclass(frozen=True, slots=True)
class LookWithin:
    """Second pass: the exact cut of each rank whose bracket holds it."""

    ranks: Ranks
    prepare: Prepare
    size: int
    row: int

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[list[_Found]]:
        """What lies where in one block, for each row and rank."""
        import torch

        brackets: list[list[Bracket]] = earlier[-1]
        rows = self.prepare(x, scratch)
        spare = scratch.row(self.row)
        found: list[list[_Found]] = []
        for row, wanted in zip(rows, brackets, strict=True):
            magnitudes = torch.abs(row, out=row) if wanted else row
            look = _look_here if row.device.type == "cpu" else _look_there
            found.append([look(magnitudes, bracket, start, spare) for bracket in wanted])
        return found

    def merge(self, left: list[list[_Found]], right: list[list[_Found]]) -> list[list[_Found]]:
        """Concatenation, in block order."""
        return [
            [_bounded(a + b, _gathered_at_most(self.size, rank)) for a, b, rank in zip(p, q, ranks, strict=True)]
            for p, q, ranks in zip(left, right, self.ranks, strict=True)
        ]

    def finish(self, total: list[list[_Found]], earlier: Sequence[Any]) -> list[list[Cut | None]]:
        """The cut of each row and rank, None where the bracket did not hold it."""
        return [
            [_cut(found, bracket, rank) for found, bracket, rank in zip(row, brackets, ranks, strict=True)]
            for row, brackets, ranks in zip(total, earlier[-1], self.ranks, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class IfMissed(Fallback):
    """A counting pass of `select.py`, made only where some bracket did not hold its rank; it stands behind the two above."""

    count: Statistic

    def needed(self, earlier: Sequence[Any]) -> bool:
        """Whether a cut was not found."""
        return any(cut is None for row in earlier[1] for cut in row)

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> Any:
        """As the pass itself."""
        return self.count.block(x, start, scratch, earlier[2:])

    def merge(self, left: Any, right: Any) -> Any:
        """As the pass itself."""
        return self.count.merge(left, right)

    def finish(self, total: Any, earlier: Sequence[Any]) -> Any:
        """As the pass itself."""
        return self.count.finish(total, earlier[2:])


def find_cuts(ranks: Ranks, prepare: Prepare, size: int, row: int) -> tuple[Statistic, ...]:
    """The passes that find the cuts of each row's ranks; `cuts` reads them. `row` is a scratch row they may use."""
    return (
        Sample(ranks, prepare, size, sample_stride(size)),
        LookWithin(ranks, prepare, size, row),
        IfMissed(CountHigh([bool(wanted) for wanted in ranks], lambda earlier: ranks, prepare, row)),
        IfMissed(CountLow(prepare, row)),
        IfMissed(CountEqual(prepare, row)),
    )


PASSES = 5
"""Statistics of `find_cuts`."""


def cuts(statistics: Sequence[Any]) -> list[list[Cut]]:
    """What `find_cuts` found: the cut of each row and rank."""
    found: list[list[Cut]] = statistics[1] if statistics[PASSES - 1] is None else statistics[PASSES - 1]
    return found


def state_bytes(size: int, ranks: Ranks) -> int:
    """Most bytes of a statistic: the counters', should they be needed, or the sample's, or what lies in the brackets."""
    wanted = sum(map(len, ranks))
    return max(COUNTER_BYTES * wanted, _bracket_bytes(size, ranks))


def partial_bytes(ranks: Ranks) -> int:
    """The same of one part: of a block no more than a quarter is gathered."""
    return max(COUNTER_BYTES, PART) * sum(map(len, ranks))


def _bounded(found: _Found, limit: int) -> _Found:
    if found.values is not None and sum(map(len, found.values)) > limit:
        return _Found(found.blocks, None)
    return found


def _host(row: Tensor) -> Values:
    array: Values = row.cpu().numpy()
    return array


def _look_here(magnitudes: Tensor, bracket: Bracket, start: int, spare: Tensor) -> _Found:
    """With NumPy, whose comparisons and selections are the fastest there are on a CPU."""
    values = _host(magnitudes)
    scratch = _host(spare).view(np.bool_)
    marks, others = scratch[: len(values)], scratch[len(values) : 2 * len(values)]
    high, low = np.float32(bracket.high), np.float32(bracket.low)
    to_high = int(np.count_nonzero(np.less_equal(values, high, out=marks)))
    under_high = int(np.count_nonzero(np.less(values, high, out=marks)))
    above, at_high = len(values) - to_high, to_high - under_high
    if not low < high:
        return _Found((_Seen(start, above, at_high, 0, 0),), ())
    from_low = len(values) - int(np.count_nonzero(np.less(values, low, out=others)))
    over_low = len(values) - int(np.count_nonzero(np.less_equal(values, low, out=others)))
    between = under_high - (len(values) - over_low)
    seen = _Seen(start, above, at_high, between, from_low - over_low)
    if between > len(values) // 4 and len(values) > 4096:
        return _Found((seen,), None)
    inside = values[np.greater(marks, others, out=marks)] if between else values[:0].copy()
    return _Found((seen,), (inside,))


def _look_there(magnitudes: Tensor, bracket: Bracket, start: int, spare: Tensor) -> _Found:
    """On another device: one transfer for all counts, and one for the values."""
    import torch

    length, (high, low) = len(magnitudes), (bracket.high, bracket.low)
    under = magnitudes < high
    counts = torch.stack([(magnitudes <= high).sum(), under.sum(), (magnitudes < low).sum(), (magnitudes <= low).sum()])
    to_high, under_high, under_low, to_low = counts.tolist()
    if not low < high:
        return _Found((_Seen(start, length - to_high, to_high - under_high, 0, 0),), ())
    between = under_high - to_low
    seen = _Seen(start, length - to_high, to_high - under_high, between, to_low - under_low)
    if between > length // 4 and length > 4096:
        return _Found((seen,), None)
    inside = _host(magnitudes[under & (magnitudes > low)]) if between else np.empty(0, np.float32)
    return _Found((seen,), (inside,))


def _cut(found: _Found, bracket: Bracket, rank: int) -> Cut | None:
    left = rank - sum(block.above for block in found.blocks)
    at_high = sum(block.at_high for block in found.blocks)
    if left <= 0:
        return None
    if left <= at_high:
        return cut_of(Level(_bits(bracket.high), left), [(block.start, block.at_high) for block in found.blocks])
    left -= at_high
    between = sum(block.between for block in found.blocks)
    if left <= between:
        if found.values is None:
            return None
        together = np.concatenate(found.values)
        value = np.partition(together, len(together) - left)[len(together) - left]
        keep = left - int(np.count_nonzero(together > value))
        equal = [int(np.count_nonzero(values == value)) for values in found.values]
        return cut_of(Level(_bits(float(value)), keep), [(b.start, n) for b, n in zip(found.blocks, equal, strict=True)])
    left -= between
    if left <= sum(block.at_low for block in found.blocks):
        return cut_of(Level(_bits(bracket.low), left), [(block.start, block.at_low) for block in found.blocks])
    return None


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))
