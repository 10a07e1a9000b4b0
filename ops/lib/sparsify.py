"""Ways to thin out a task vector before vectors are added: by magnitude, without outliers, at random, or by rank at random.

A way is a function that thins one vector's element, the numbers it takes, and the passes that find them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..expression import CutSymbol, Value, narrow, random_word, row_rank, selected, where, wide
from ..method import BLOCK, Arguments, Found, MethodError, Pass, Step, Sum, row_block
from .random_bits import TABLE_BYTES
from .selection import NOTHING, PASSES, Cut, Ranks, cuts, find_cuts, partial_bytes, state_bytes


@dataclass(frozen=True, slots=True)
class Sparsifier:
    """What thins task vectors: `numbers` gives `settings` (one entry a vector) and `factors` that make up for what is lost."""

    numbers: Callable[[Found], Mapping[str, object]]
    passes: tuple[Pass, ...] = ()
    state_bytes: int = 1024
    partial_bytes: int | None = None
    shared_bytes: int = 0
    block: int = BLOCK
    width: int = 1


def task_vectors(base: Value, models: Sequence[Value]) -> list[Value]:
    """The models' differences from the base."""
    return [model - base for model in models]


def within_cuts(vector: Value, number: int, chosen: Sequence[CutSymbol]) -> Value:
    """What is among the largest that the first cut selects and, where there is a second, not among the largest of that."""
    if not chosen:
        return vector
    keep = selected(vector, chosen[0])
    if len(chosen) == 2:
        keep = keep & ~selected(vector, chosen[1])
    return where(keep, vector, 0.0)


def at_random(vector: Value, number: int, threshold: Value | None) -> Value:
    """What a random word below the threshold keeps."""
    return vector if threshold is None else where(random_word(vector, number) < threshold, vector, 0.0)


def at_random_by_rank(vector: Value, number: int, ladder: tuple[Value, Value, bool] | None) -> Value:
    """What a uniform number below the probability of its rank in the row keeps, divided by it if the ladder says `rescale`."""
    if ladder is None:
        return vector
    lowest, step, rescale = ladder
    probability = narrow(row_rank(vector)) * step + lowest
    # The 24 high bits as a float32 in [0, 1): exact, so every device keeps the same elements.
    uniform = narrow((random_word(vector, number) >> 8) + (1 << 23)) * 2.0**-24
    return vector * where(uniform < probability, 1.0 / probability if rescale else 1.0, 0.0)


def keep_all(arguments: Arguments) -> Sparsifier:
    """Every element stays."""
    count = len(arguments.apart)
    return Sparsifier(lambda found: {"settings": [[]] * count, "factors": [1.0] * count})


def by_magnitude(arguments: Arguments) -> Sparsifier:
    """Keep the ⌊density·n⌋ largest |δ| of each vector (Yadav et al. 2023, section 4, "trim").

    Raises MethodError where a density keeps nothing.
    """
    ranks = []
    for value in arguments.each("density"):
        density = min(value, 1.0)
        keep = math.floor(density * arguments.size)
        if keep <= 0 and density < 1.0:
            raise MethodError(f"density {density:g} keeps none of the tensor's {arguments.size} elements: raise the density")
        ranks.append((keep,) if density < 1.0 else ())
    return _selecting(arguments, ranks)


def without_outliers(arguments: Arguments) -> Sparsifier:
    """Drop the ⌊gamma·n⌋ largest |δ|, then the smallest until ⌊density·n⌋ remain (Davari and Belilovsky 2023, section 3).

    Where that many would not remain, fewer of the largest are dropped.
    """
    ranks: list[tuple[int, ...]] = []
    for value, share in zip(arguments.each("density"), arguments.each("gamma"), strict=True):
        density, gamma = min(value, 1.0), min(share, 1.0)
        keep = min(math.floor(density * arguments.size), arguments.size)
        top = min(math.floor(gamma * arguments.size), arguments.size - keep)
        # The kept ones are the first top + keep by magnitude without the first top.
        ranks.append((top + keep, top) if top and keep else (keep,) if keep < arguments.size else ())
    return _selecting(arguments, ranks)


def _selecting(arguments: Arguments, ranks: Ranks) -> Sparsifier:
    """A sparsifier by magnitudes: `ranks` for each task vector; a rank of 0 keeps nothing, no ranks keep everything."""
    empty = [0 in wanted[:1] for wanted in ranks]
    looked_for = [() if nothing else tuple(wanted) for wanted, nothing in zip(ranks, empty, strict=True)]
    rescale = bool(arguments.shared["rescale"])

    def settings(found: Found) -> list[list[Cut]]:
        known = cuts(found, 0, looked_for) if any(looked_for) else [[] for _ in looked_for]
        return [[NOTHING] if nothing else own for nothing, own in zip(empty, known, strict=True)]

    def numbers(found: Found) -> Mapping[str, object]:
        factors = found[PASSES] if rescale and any(looked_for) else [1.0] * len(ranks)
        return {"settings": settings(found), "factors": factors}

    if not any(looked_for):
        return Sparsifier(numbers)
    passes: tuple[Pass, ...] = find_cuts(task_vectors, lambda found: looked_for, lambda found: {})
    if rescale:
        passes += (Sum(Step(masses, lambda found: {"settings": settings(found)}), restoring_factors),)
    return Sparsifier(numbers, passes, state_bytes(looked_for), partial_bytes(looked_for))


def masses(base: Value, models: Sequence[Value], settings: Sequence[Sequence[CutSymbol]]) -> list[Value]:
    """|δ| before and after the cuts, for `rescale`: two values a vector, in float64."""
    found = []
    for number, (vector, own) in enumerate(zip(task_vectors(base, models), settings, strict=True)):
        found += [wide(abs(vector)), wide(abs(within_cuts(vector, number, own)))]
    return found


def restoring_factors(sums: Sequence[float], found: Found) -> list[float]:
    """The factor that restores each vector's mass; 1 where there is none."""
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return [before / after if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after in pairs]


def randomly(arguments: Arguments) -> Sparsifier:
    """Keep each element with probability `density`, and divide by it if `rescale` (Yu et al. 2023, section 3.2, "DARE")."""
    densities = [min(value, 1.0) for value in arguments.each("density")]
    rescale = bool(arguments.shared["rescale"])
    thresholds = [None if density >= 1.0 else threshold(density) for density in densities]
    factors = [1.0 / density if rescale and density > 0.0 else 1.0 for density in densities]
    return Sparsifier(lambda found: {"settings": thresholds, "factors": factors}, shared_bytes=TABLE_BYTES)


def threshold(probability: float) -> int:
    """Below it a uniform int32 is with this probability."""
    return max(min(round(probability * (1 << 32)) - (1 << 31), (1 << 31) - 1), -(1 << 31))


def randomly_by_rank(arguments: Arguments) -> Sparsifier:
    """Keep an element with a probability that grows with the rank of |δ| in its row (Deep et al. 2024, section 3, "MAGPRUNE").

    The smallest of a row stays with probability density − epsilon, the largest with density + epsilon; `rescale` divides by it.
    Equal magnitudes rank by index. Raises MethodError where a probability is not between 0 and 1.
    """
    width = max(arguments.row, 1)
    rescale = bool(arguments.shared["rescale"])
    ladders: list[tuple[float, float, bool] | None] = []
    for density, epsilon in zip(arguments.each("density"), arguments.each("epsilon"), strict=True):
        if density < 1.0 and not 0.0 < density - abs(epsilon) <= density + abs(epsilon) < 1.0:
            raise MethodError(
                f"density {density:g} ± epsilon {epsilon:g} leaves the range between 0 and 1: lower epsilon or change the density"
            )
        # The only element of a row is its smallest and its largest: halfway.
        lowest, step = (density - epsilon, 2.0 * epsilon / (width - 1)) if width > 1 else (density, 0.0)
        ladders.append(None if density >= 1.0 else (lowest, step, rescale))
    return Sparsifier(
        lambda found: {"settings": ladders, "factors": [1.0] * len(ladders)},
        shared_bytes=TABLE_BYTES,
        block=row_block(width),
        width=width,
    )
