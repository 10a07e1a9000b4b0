"""Weighted average of models ("model soup", Wortsman et al. 2022, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .combine import weighted_sum
from .declare import Arguments, BaseRole, Kernel, Method, MethodError, Parameter, Scratch

if TYPE_CHECKING:
    from torch import Tensor


def _kernel(arguments: Arguments) -> Kernel:
    # A base model without a weight of its own only lends its config and tokenizer.
    weights = [float(model.get("weight", 0.0)) for model in arguments.models]
    if arguments.shared["normalize"]:
        total = sum(weights)
        if abs(total) < 1e-8:
            raise MethodError("the weights sum to 0, so they cannot be normalised: change a weight or set normalize: false")
        weights = [weight / total for weight in weights]

    def average(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        return weighted_sum(x, weights)

    return Kernel(average)


METHODS = (
    Method(
        name="linear",
        summary="Weighted average of the models.",
        source="Wortsman et al. 2022, Model soups, section 2",
        base=BaseRole.ORDINARY,
        models=(1, None),
        parameters=(
            Parameter("weight", "number", "model", "share of this model", required=True),
            Parameter("normalize", "boolean", "global", "divide by the sum of the weights", default=True),
        ),
        kernel=_kernel,
    ),
)
