"""One input, moved or scaled: stacking layers of several models ("frankenmerging")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .combine import weighted_sum
from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch

if TYPE_CHECKING:
    from torch import Tensor


def _kernel(arguments: Arguments) -> Kernel:
    scale = float(arguments.models[0].get("scale", 1.0))

    def scaled(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        return weighted_sum(x, [scale])

    return Kernel(scaled, copies=scale == 1.0)


METHODS = (
    Method(
        name="passthrough",
        summary="One model's tensor as it is, or scaled: layer stacking.",
        source="",
        base=BaseRole.ORDINARY,
        models=(1, 1),
        parameters=(Parameter("scale", "number", "model", "factor on the tensor (none: bytes are copied)"),),
        kernel=_kernel,
    ),
)
