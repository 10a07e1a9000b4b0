"""One input, moved or scaled: stacking layers of several models ("frankenmerging")."""

from __future__ import annotations

from collections.abc import Sequence

from ..expression import Value
from ..lib.gram import weighted_sum
from ..method import Arguments, BaseRole, Kernel, Method, Parameter, Step


def scaled(models: Sequence[Value], scale: Value) -> Value:
    """The input times a factor; 0 also where it is NaN, if the factor is 0."""
    return weighted_sum(models, [scale])


def _kernel(arguments: Arguments) -> Kernel:
    scale = float(arguments.models[0].get("scale", 1.0))
    return Kernel(Step(scaled, lambda found: {"scale": scale}), copies=scale == 1.0)


passthrough = Method(
    name="passthrough",
    summary="One model's tensor as it is, or scaled: layer stacking.",
    source="",
    base=BaseRole.ORDINARY,
    models=(1, 1),
    parameters=(Parameter("scale", "number", "model", "factor on the tensor (none: bytes are copied)"),),
    kernel=_kernel,
)
