"""Weighted average of models ("model soup", Wortsman et al. 2022, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

from ..expression import Value
from ..lib.gram import weighted_sum
from ..lib.weights import shares
from ..method import Arguments, BaseRole, Parameter, elementwise


def _weights(arguments: Arguments) -> dict[str, object]:
    # A base model without a weight of its own only lends its config and tokenizer.
    weights = [float(model.get("weight", 0.0)) for model in arguments.models]
    return {"weight": shares(weights, "normalize") if arguments.shared["normalize"] else weights}


@elementwise(
    name="linear",
    summary="Weighted average of the models.",
    source="Wortsman et al. 2022, Model soups, section 2",
    base=BaseRole.ORDINARY,
    models=(1, None),
    parameters=(
        Parameter("weight", "number", "model", "share of this model", required=True),
        Parameter("normalize", "boolean", "global", "divide by the sum of the weights", default=True),
    ),
    numbers=_weights,
    version=2,
)
def linear(models: Sequence[Value], weight: Sequence[Value]) -> Value:
    """Σ wᵢ xᵢ."""
    return weighted_sum(models, weight)
