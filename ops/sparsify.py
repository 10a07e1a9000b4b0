"""Ways to thin out a task vector before vectors are added: by magnitude (TIES), at random (DARE), or not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .declare import Arguments, MethodError, Scratch, Statistic
from .random_bits import keep_with_probability, random_bits
from .select import HIGH_BUCKETS, LOW_BUCKETS, CountEqual, CountHigh, CountLow, Cut, Prepare, apply_cut

if TYPE_CHECKING:
    from torch import Tensor

SCRATCH_ROWS = 2
"""Scratch rows 0 and 1 belong to the sparsifier; the map that uses it takes those from 2 on."""


@dataclass(frozen=True, slots=True)
class Sparsifier:
    """`apply` thins the task vectors of one block in place, given the statistics."""

    apply: Callable[[Sequence[Tensor], int, Scratch, Sequence[Any]], None]
    statistics: tuple[Statistic, ...] = ()
    state_bytes: int = 1024


Sparsify: TypeAlias = Callable[[Arguments, Sequence[int], Prepare], Sparsifier]
"""Builds a sparsifier from the arguments, the inputs that are task vectors, and what turns a block into them."""


def keep_all(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Every element stays."""
    return Sparsifier(lambda deltas, start, scratch, statistics: None)


@dataclass(frozen=True, slots=True)
class _Mass:
    """Σ|δ| before and after the cut, for `rescale`; follows the three passes that find the cuts."""

    prepare: Prepare

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[tuple[float, float]]:
        """The two sums of one block in float64, a pair a task vector."""
        wide = scratch.double(0)
        sums = []
        for row, cut in zip(self.prepare(x, scratch), earlier[2], strict=True):
            before = float(wide.copy_(row).abs_().sum())
            if cut is not None:
                apply_cut(row, cut, start, scratch.row(0))
            sums.append((before, float(wide.copy_(row).abs_().sum())))
        return sums

    def merge(self, left: list[tuple[float, float]], right: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Pair by pair."""
        return [(a + c, b + d) for (a, b), (c, d) in zip(left, right, strict=True)]

    def finish(self, total: list[tuple[float, float]], earlier: Sequence[Any]) -> list[float]:
        """The factor that restores each vector's mass; 1 where there is none."""
        return [before / after if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after in total]


def by_magnitude(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Keep the ⌊density·n⌋ largest |δ| of each vector (Yadav et al. 2023, section 4, "trim").

    Raises MethodError where a density keeps nothing.
    """
    densities = [float(arguments.models[i]["density"]) for i in tasks]
    keep = [None if density >= 1.0 else math.floor(density * arguments.size) for density in densities]
    for density, count in zip(densities, keep, strict=True):
        if count == 0:
            raise MethodError(f"density {density:g} keeps none of the tensor's {arguments.size} elements: raise the density")
    if all(count is None for count in keep):
        return keep_all(arguments, tasks, prepare)
    passes: list[Statistic] = [CountHigh(keep, prepare, 0), CountLow(prepare, 0), CountEqual(prepare, 0)]
    rescale = bool(arguments.shared["rescale"])
    if rescale:
        passes.append(_Mass(prepare))

    def apply(deltas: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> None:
        cuts: list[Cut | None] = statistics[2]
        for index, (delta, cut) in enumerate(zip(deltas, cuts, strict=True)):
            if cut is not None:
                apply_cut(delta, cut, start, scratch.row(0))
            if rescale and statistics[3][index] != 1.0:
                delta.mul_(statistics[3][index])

    counters = 8 * max(HIGH_BUCKETS, LOW_BUCKETS + 2)
    return Sparsifier(apply, tuple(passes), state_bytes=counters * len(tasks))


def at_random(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Keep each element with probability `density`, and divide by it if `rescale` (Yu et al. 2023, section 3.2, "DARE")."""
    densities = [min(float(arguments.models[i]["density"]), 1.0) for i in tasks]
    rescale = bool(arguments.shared["rescale"])

    def apply(deltas: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> None:
        for index, (delta, density) in enumerate(zip(deltas, densities, strict=True)):
            if density >= 1.0:
                continue
            if density <= 0.0:
                delta.zero_()
                continue
            bits = random_bits(arguments.stream, index, start, scratch.row(0), scratch.row(1))
            delta.mul_(keep_with_probability(density, bits))
            if rescale:
                delta.mul_(1.0 / density)

    return Sparsifier(apply)
