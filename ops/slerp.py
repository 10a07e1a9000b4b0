"""Spherical linear interpolation of two models (Shoemake 1985, section 3.3), whole tensor as one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .combine import weighted_sum
from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch
from .gram import Gram, Matrix

if TYPE_CHECKING:
    from torch import Tensor

NEARLY_PARALLEL = 0.9995
"""Above this cosine the arc is taken as a line: sin θ is too small to divide by."""

NO_LENGTH = 1e-8


def slerp_weights(gram: Matrix, t: float) -> tuple[float, float]:
    """Coefficients of v₀ and v₁ at `t` from their 2 × 2 Gram matrix; the *unnormalised* vectors are mixed."""
    lengths = [math.sqrt(gram[i][i]) for i in range(2)]
    norms = [length if length > NO_LENGTH else 1.0 for length in lengths]
    cosine = gram[0][1] / (norms[0] * norms[1])
    if not abs(cosine) <= NEARLY_PARALLEL:  # also where the inputs hold NaN: a line keeps them visible
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _kernel(arguments: Arguments) -> Kernel:
    t, base = float(arguments.shared["t"]), arguments.base or 0

    def mix(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        gram: Matrix = statistics[0]
        if base == 1:
            gram = [row[::-1] for row in gram[::-1]]
        return weighted_sum([x[base], x[1 - base]], slerp_weights(gram, t))

    return Kernel(mix, statistics=(Gram(),))


METHODS = (
    Method(
        name="slerp",
        summary="Along the arc from the base model to the other.",
        source="Shoemake 1985, Animating rotation with quaternion curves, section 3.3",
        base=BaseRole.MEMBER,
        models=(2, 2),
        parameters=(Parameter("t", "number", "global", "0 is the base model, 1 the other", required=True),),
        kernel=_kernel,
    ),
)
