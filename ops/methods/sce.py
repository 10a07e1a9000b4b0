"""SCE: select the elements on which models differ most, calculate the models' weights, erase minority signs (Wan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..expression import CutSymbol, Value, maximum, selected, where, wide
from ..lib.selection import NOTHING, Cut, cuts, find_cuts, partial_bytes, state_bytes
from ..lib.sparsify import task_vectors
from ..method import Arguments, BaseRole, Count, Found, Kernel, Method, Parameter, Step, Sum


def variance(base: Value, models: Sequence[Value]) -> Value:
    """The population variance over models, taken of the differences from the first: exactly 0 where all are equal."""
    vectors = task_vectors(base, models)
    away = [vector - vectors[0] for vector in vectors]
    mean = sum(away) / float(len(away))
    total = sum((each - mean) * (each - mean) for each in away)
    assert isinstance(total, Value)
    return total / float(len(away))


def varies(base: Value, models: Sequence[Value]) -> Value:
    """Whether the element has a variance at all."""
    return variance(base, models) != 0.0


def _kept(base: Value, models: Sequence[Value], cut: CutSymbol | None) -> list[Value]:
    """The task vectors' elements that are selected."""
    vectors = task_vectors(base, models)
    if cut is None:
        return vectors
    keep = selected(variance(base, models), cut)
    return [where(keep, vector, 0.0) for vector in vectors]


def squares(base: Value, models: Sequence[Value], cut: CutSymbol | None) -> list[Value]:
    """δ² of each model in float64, of what is selected."""
    return [wide(vector) * wide(vector) for vector in _kept(base, models, cut)]


def fused(base: Value, models: Sequence[Value], cut: CutSymbol | None, weights: Sequence[Value]) -> Value:
    """The base and the weighted mean of what is selected and agrees in sign."""
    if not models:
        return base
    vectors = _kept(base, models, cut)
    everything = sum(vectors)
    assert isinstance(everything, Value)
    positive = everything >= 0.0
    # Signs are elected by the differences themselves, and weighed afterwards.
    weighted = [where(positive, vector > 0.0, vector < 0.0) for vector in vectors]
    total = sum(where(yes, vector * weight, 0.0) for yes, vector, weight in zip(weighted, vectors, weights, strict=True))
    share = sum(where(yes, weight, 0.0) for yes, weight in zip(weighted, weights, strict=True))
    assert isinstance(share, Value)
    return base + where(everything == everything, total / maximum(share, 1e-6), everything)


def _kernel(arguments: Arguments) -> Kernel:
    share = float(arguments.shared["select_topk"])
    count, size = len(arguments.apart), max(arguments.size, 1)
    if not count:
        return Kernel(Step(fused, lambda found: {"cut": None, "weights": []}), base=arguments.base)

    def ranks(found: Found) -> list[tuple[int, ...]]:
        keep = math.floor(share * found[0][0]) if found[0] else 0
        return [(keep,) if keep else ()]

    def cut(found: Found) -> Cut | None:
        if share >= 1.0:
            return None
        own = cuts(found, 1, ranks(found))[0]
        return own[0] if own else NOTHING

    def weigh(sums: Sequence[float], found: Found) -> list[float]:
        """Shares of the sum of mean squares, equal where there is next to nothing."""
        means = [square / size for square in sums] or [0.0] * count
        whole = sum(means)
        return [1.0 / count] * count if whole < 1e-6 else [mean / whole for mean in means]

    def numbers(found: Found) -> dict[str, object]:
        return {"cut": cut(found), "weights": found[-1]}

    weighing = Sum(Step(squares, lambda found: {"cut": cut(found)}), weigh)
    if share >= 1.0:
        return Kernel(Step(fused, numbers), (weighing,), base=arguments.base)
    find = find_cuts(variance, ranks, lambda found: {})
    one: list[tuple[int, ...]] = [(1,)]
    return Kernel(
        Step(fused, numbers),
        (Count(Step(varies)), *find, weighing),
        base=arguments.base,
        state_bytes=state_bytes(one),
        partial_bytes=partial_bytes(one),
    )


sce = Method(
    name="sce",
    summary="Select by variance, weigh models by how much they changed, erase minority signs.",
    source="Wan et al. 2024, FuseChat, section 3.3",
    base=BaseRole.REQUIRED,
    models=(0, None),
    parameters=(
        Parameter("select_topk", "number", "global", "share of the varying elements to keep", default=1.0, low=0.0),
        Parameter("int8_mask", "boolean", "global", "", inert="it never changed values, only another tool's memory"),
    ),
    kernel=_kernel,
    version=2,
)
