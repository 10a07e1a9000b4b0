"""Nearswap: move towards the other model where the two are near, by a fixed step elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from ..expression import Value, maximum, minimum
from ..method import BaseRole, Parameter, elementwise

SMALL = 1e-6


@elementwise(
    name="nearswap",
    summary="The other model where it is within t of the base, and t towards it elsewhere.",
    source="alchemonaut 2024, QuartetAnemoi (nearswap)",
    base=BaseRole.REQUIRED,
    models=(1, 1),
    parameters=(Parameter("t", "number", "global", "how near, in units of the weights", required=True),),
    version=2,
)
def nearswap(base: Value, models: Sequence[Value], t: Value) -> Value:
    """The difference, as much of it as `t` allows."""
    difference = models[0] - base
    return base + difference * maximum(minimum(t / maximum(abs(difference), SMALL), 1.0), 0.0)
