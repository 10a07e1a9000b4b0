"""Ways to thin out a task vector before vectors are added: by magnitude, without outliers, at random, or by rank at random."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .bracket import PASSES, cuts, find_cuts, partial_bytes, state_bytes
from .declare import BLOCK, Arguments, MethodError, Scratch, Statistic, row_block
from .random_bits import TABLE_BYTES, keep_marked, keep_with_probability, random_bits
from .select import Cut, Prepare, Ranks, selected

if TYPE_CHECKING:
    from torch import Tensor

SCRATCH_ROWS = 2
"""Scratch rows 0 and 1 belong to the sparsifier; the map that uses it takes those from 2 on."""

Thin: TypeAlias = "Callable[[Sequence[Tensor], int, Scratch, Sequence[Any]], Sequence[float]]"
"""Thins the task vectors of the block at an element, in place, given the statistics; the factors that make up for it."""


@dataclass(frozen=True, slots=True)
class Sparsifier:
    """What thins task vectors, and the statistics it needs."""

    apply: Thin
    statistics: tuple[Statistic, ...] = ()
    state_bytes: int = 1024
    partial_bytes: int | None = None
    shared_bytes: int = 0
    block: int = BLOCK


Sparsify: TypeAlias = Callable[[Arguments, Sequence[int], Prepare], Sparsifier]
"""Builds a sparsifier from the arguments, the inputs that are task vectors, and what turns a block into them."""


def keep_all(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Every element stays."""
    return Sparsifier(lambda deltas, start, scratch, statistics: [1.0] * len(deltas))


def by_magnitude(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Keep the ⌊density·n⌋ largest |δ| of each vector (Yadav et al. 2023, section 4, "trim").

    Raises MethodError where a density keeps nothing.
    """
    ranks = []
    for i in tasks:
        density = min(float(arguments.models[i]["density"]), 1.0)
        keep = math.floor(density * arguments.size)
        if keep <= 0 and density < 1.0:
            raise MethodError(f"density {density:g} keeps none of the tensor's {arguments.size} elements: raise the density")
        ranks.append((keep,) if density < 1.0 else ())

    def thin(delta: Tensor, cuts: Sequence[Cut], start: int, scratch: Scratch) -> None:
        selected(delta, cuts[0], start, delta, scratch.row(0))

    return _selecting(arguments, ranks, prepare, thin)


def without_outliers(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Drop the ⌊gamma·n⌋ largest |δ|, then the smallest until ⌊density·n⌋ remain (Davari and Belilovsky 2023, section 3).

    Where that many would not remain, fewer of the largest are dropped.
    """
    ranks: list[tuple[int, ...]] = []
    for i in tasks:
        density, gamma = (min(float(arguments.models[i][name]), 1.0) for name in ("density", "gamma"))
        keep = min(math.floor(density * arguments.size), arguments.size)
        top = min(math.floor(gamma * arguments.size), arguments.size - keep)
        # The kept ones are the first top + keep by magnitude without the first top.
        ranks.append((top + keep, top) if top and keep else (keep,) if keep < arguments.size else ())

    def thin(delta: Tensor, cuts: Sequence[Cut], start: int, scratch: Scratch) -> None:
        selected(delta, cuts[0], start, delta, scratch.row(0))
        if len(cuts) == 2:
            delta.sub_(selected(delta, cuts[1], start, scratch.row(1), scratch.row(0)))

    return _selecting(arguments, ranks, prepare, thin)


def _selecting(
    arguments: Arguments,
    ranks: Ranks,
    prepare: Prepare,
    thin: Callable[[Tensor, Sequence[Cut], int, Scratch], None],
) -> Sparsifier:
    """A sparsifier by magnitudes: `ranks` for each task vector; a rank of 0 keeps nothing, no ranks keep everything."""
    empty = [0 in wanted[:1] for wanted in ranks]
    counted = [() if nothing else tuple(wanted) for wanted, nothing in zip(ranks, empty, strict=True)]
    rescale = bool(arguments.shared["rescale"])

    def apply(deltas: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Sequence[float]:
        found = cuts(statistics) if statistics else []
        for index, delta in enumerate(deltas):
            if empty[index]:
                delta.zero_()
            elif counted[index]:
                thin(delta, found[index], start, scratch)
        factors: Sequence[float] = statistics[PASSES] if rescale and statistics else [1.0] * len(deltas)
        return factors

    if not any(counted):
        return Sparsifier(apply)
    find = find_cuts(counted, prepare, arguments.size, 0)
    passes: tuple[Statistic, ...] = (*find, _Mass(prepare, counted, thin)) if rescale else find
    return Sparsifier(apply, passes, state_bytes(arguments.size, counted), partial_bytes(counted))


@dataclass(frozen=True, slots=True)
class _Mass:
    """Σ|δ| before and after the cuts, for `rescale`; follows the passes that find the cuts."""

    prepare: Prepare
    counted: Ranks
    thin: Callable[[Tensor, Sequence[Cut], int, Scratch], None]

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[tuple[float, float]]:
        """The two sums of one block in float64, a pair a task vector."""
        wide = scratch.double(0)
        sums = []
        for row, found, wanted in zip(self.prepare(x, scratch), cuts(earlier), self.counted, strict=True):
            before = float(wide.copy_(row).abs_().sum())
            if wanted:
                self.thin(row, found, start, scratch)
            sums.append((before, float(wide.copy_(row).abs_().sum())))
        return sums

    def merge(self, left: list[tuple[float, float]], right: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Pair by pair."""
        return [(a + c, b + d) for (a, b), (c, d) in zip(left, right, strict=True)]

    def finish(self, total: list[tuple[float, float]], earlier: Sequence[Any]) -> list[float]:
        """The factor that restores each vector's mass; 1 where there is none."""
        return [before / after if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after in total]


def at_random(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Keep each element with probability `density`, and divide by it if `rescale` (Yu et al. 2023, section 3.2, "DARE")."""
    densities = [min(float(arguments.models[i]["density"]), 1.0) for i in tasks]
    rescale = bool(arguments.shared["rescale"])

    def apply(deltas: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Sequence[float]:
        for index, (delta, density) in enumerate(zip(deltas, densities, strict=True)):
            if density <= 0.0:
                delta.zero_()
            elif density < 1.0:
                bits = random_bits(arguments.stream, index, start, scratch.row(0))
                keep_marked(delta, keep_with_probability(density, bits))
        return [1.0 / density if rescale and density > 0.0 else 1.0 for density in densities]

    return Sparsifier(apply, shared_bytes=TABLE_BYTES)


def at_random_by_rank(arguments: Arguments, tasks: Sequence[int], prepare: Prepare) -> Sparsifier:
    """Keep an element with a probability that grows with the rank of |δ| in its row (Deep et al. 2024, section 3, "MAGPRUNE").

    The smallest of a row stays with probability density − epsilon, the largest with density + epsilon; `rescale` divides by it.
    Equal magnitudes rank by index. Raises MethodError where a probability is not between 0 and 1.
    """
    settings = []
    for i in tasks:
        density, epsilon = (float(arguments.models[i][name]) for name in ("density", "epsilon"))
        if density < 1.0 and not 0.0 < density - abs(epsilon) <= density + abs(epsilon) < 1.0:
            raise MethodError(
                f"density {density:g} ± epsilon {epsilon:g} leaves the range between 0 and 1: lower epsilon or change the density"
            )
        settings.append((density, epsilon))
    rescale = bool(arguments.shared["rescale"])
    width = max(arguments.row, 1)

    def apply(deltas: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Sequence[float]:
        import torch

        for index, (delta, (density, epsilon)) in enumerate(zip(deltas, settings, strict=True)):
            if density >= 1.0:
                continue
            magnitudes = torch.abs(delta, out=scratch.row(0)).view(-1, width)
            order = magnitudes.argsort(dim=1, stable=True)
            # The only element of a row is its smallest and its largest: halfway.
            lowest, step = (density - epsilon, 2.0 * epsilon / (width - 1)) if width > 1 else (density, 0.0)
            ladder = torch.arange(width, dtype=torch.float32, device=delta.device).mul_(step).add_(lowest)
            probabilities = magnitudes.scatter_(1, order, ladder.expand_as(magnitudes)).view(-1)
            bits = random_bits(arguments.stream, index, start, scratch.row(1))
            # The 24 high bits as a float32 in [0, 1): exact, so every device keeps the same elements.
            uniform = bits.bitwise_right_shift_(8).add_(1 << 23).to(torch.float32).mul_(2.0**-24)
            kept = torch.lt(uniform, probabilities, out=uniform)
            if rescale:
                kept.div_(probabilities)
            delta.mul_(kept)
        return [1.0] * len(deltas)

    return Sparsifier(apply, state_bytes=24 * row_block(width), shared_bytes=TABLE_BYTES, block=row_block(width))
