"""Spherical linear interpolation of two models (Shoemake 1985, section 3.3), whole tensor as one vector."""

from __future__ import annotations

import math

from ..lib.gram import Matrix, gram, span
from ..method import Arguments, BaseRole, Kernel, Method, Parameter, Step

NEARLY_PARALLEL = 0.9995
"""Above this cosine the arc is taken as a line: sin θ is too small to divide by."""

NO_LENGTH = 1e-8


def slerp_weights(matrix: Matrix, t: float) -> tuple[float, float]:
    """Coefficients of v₀ and v₁ at `t` from their 2 × 2 Gram matrix; the *unnormalised* vectors are mixed."""
    lengths = [math.sqrt(matrix[i][i]) for i in range(2)]
    norms = [length if length > NO_LENGTH else 1.0 for length in lengths]
    cosine = matrix[0][1] / (norms[0] * norms[1])
    if not abs(cosine) <= NEARLY_PARALLEL:  # also where the inputs hold NaN: a line keeps them visible
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _kernel(arguments: Arguments) -> Kernel:
    t = float(arguments.shared["t"])
    # `t` counts from the base, whichever of the two it is.
    from_first = 1.0 - t if arguments.base == 1 else t
    return Kernel(
        Step(span, lambda found: {"weights": list(found[0]) or [1.0 - from_first, from_first]}),
        (gram(lambda matrix: slerp_weights(matrix, from_first)),),
    )


slerp = Method(
    name="slerp",
    summary="Along the arc from the base model to the other.",
    source="Shoemake 1985, Animating rotation with quaternion curves, section 3.3",
    base=BaseRole.MEMBER,
    models=(2, 2),
    parameters=(Parameter("t", "number", "global", "0 is the base model, 1 the other", required=True),),
    kernel=_kernel,
    version=2,
)
