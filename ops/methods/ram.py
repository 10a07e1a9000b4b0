"""RAM and RAM+: average what several models changed, keep what only one did, perhaps amplified."""

from __future__ import annotations

from collections.abc import Sequence

from ..expression import Value, maximum, where
from ..lib.sparsify import task_vectors
from ..method import Arguments, BaseRole, Count, Found, Kernel, Method, Parameter, Step, elementwise


def _changes(base: Value, models: Sequence[Value], epsilon: Value) -> tuple[list[Value], list[Value], Value]:
    """The differences without those that are no changes, which ones are changes, and how many models changed the element."""
    vectors = task_vectors(base, models)
    changed = [~(abs(vector) <= epsilon) for vector in vectors]
    kept = [where(yes, vector, 0.0) for yes, vector in zip(changed, vectors, strict=True)]
    count = sum(where(yes, 1.0, 0.0) for yes in changed)
    assert isinstance(count, Value)
    return kept, changed, count


def overlap(base: Value, models: Sequence[Value], epsilon: Value) -> list[Value]:
    """Per model, whether it changed the element and others did too, and whether it alone did."""
    _, changed, count = _changes(base, models, epsilon)
    found = []
    for yes in changed:
        found += [yes & (count > 1.0), yes & (count == 1.0)]
    return found


_EPSILON = Parameter("epsilon", "number", "global", "smaller differences do not count as changes", default=1e-5, low=0.0)


@elementwise(
    name="ram",
    summary="Average each element over the models that changed it.",
    source="Reinforced agent merging (RAM), 2026",
    base=BaseRole.REQUIRED,
    models=(0, None),
    parameters=(_EPSILON,),
    version=2,
)
def ram(base: Value, models: Sequence[Value], epsilon: Value) -> Value:
    """The base and the mean of the changes."""
    if not models:
        return base
    kept, _, count = _changes(base, models, epsilon)
    return base + sum(kept) / maximum(count, 1.0)


def amplified(base: Value, models: Sequence[Value], epsilon: Value, factors: Sequence[Value]) -> Value:
    """The same, with what one model alone changed multiplied by that model's factor."""
    if not models:
        return base
    kept, _, count = _changes(base, models, epsilon)
    alone = count == 1.0
    total = sum(where(alone, vector * factor, vector) for vector, factor in zip(kept, factors, strict=True))
    return base + total / maximum(count, 1.0)


def _kernel(arguments: Arguments) -> Kernel:
    epsilon, r, alpha = (float(arguments.shared[name]) for name in ("epsilon", "r", "alpha"))

    def numbers(found: Found) -> dict[str, object]:
        counts = found[0] or [0] * (2 * len(arguments.apart))
        pairs = zip(counts[::2], counts[1::2], strict=True)
        # Where a model changed nothing alone there is nothing to amplify, and with epsilon 0 nothing to divide by.
        ratios = (both / max(alone, epsilon) if alone else 0.0 for both, alone in pairs)
        factors = [1.0 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]
        return {"epsilon": epsilon, "factors": factors}

    if not arguments.apart:
        return Kernel(Step(amplified, lambda found: {"epsilon": epsilon, "factors": []}), base=arguments.base)
    counting = Count(Step(overlap, lambda found: {"epsilon": epsilon}))
    return Kernel(Step(amplified, numbers), (counting,), base=arguments.base)


ramplus_tl = Method(
    name="ramplus_tl",
    summary="As ram, and what one model alone changed is amplified by how much it shares with others.",
    source="Reinforced agent merging (RAM+), 2026",
    base=BaseRole.REQUIRED,
    models=(0, None),
    parameters=(
        Parameter("r", "number", "global", "strength of the amplification", default=0.1),
        Parameter("alpha", "number", "global", "upper bound of the ratio that it grows with", default=0.2),
        _EPSILON,
    ),
    kernel=_kernel,
    version=2,
)
