"""MultiSLERP: the weighted barycentre of several vectors on the sphere, by one step in the tangent space."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..lib.gram import Matrix, gram, span, span_from_base
from ..lib.weights import shares
from ..method import Arguments, BaseRole, Kernel, Method, MethodError, Parameter, Step

NO_DIRECTION = 1e-7
"""Directions that cancel out up to the rounding of float32 inputs leave a mean about as long as this."""


def multislerp_weights(gram: Matrix, weights: Sequence[float], eps: float) -> list[float]:
    """Coefficients of the vectors from their Gram matrix. Raises MethodError where three or more directions cancel out."""
    norms = [math.sqrt(gram[i][i]) for i in range(len(gram))]
    if not any(norm > eps for norm in norms):
        return list(weights)
    length = sum(w * n for w, n in zip(weights, norms, strict=True))
    # In the basis of the inputs: unit vectors are eᵢ/(‖xᵢ‖ + eps), and m is their weighted sum.
    mean = [w / (n + eps) for w, n in zip(weights, norms, strict=True)]
    size = _length(gram, mean)
    # Whether they cancel out is asked without eps, which shortens short vectors more than long ones. Zeros have no say in it.
    exact = [w / n if n > eps else 0.0 for w, n in zip(weights, norms, strict=True)]
    if size < eps or _length(gram, exact) < NO_DIRECTION * sum(abs(w) for w in weights):
        if len(gram) <= 2:
            return list(weights)
        raise MethodError("the models' weighted directions cancel out, so they have no mean direction: change the weights")
    direction = [c / size for c in mean]
    along = _product(gram, mean, direction)
    tangent = [c - along * d for c, d in zip(mean, direction, strict=True)]
    angle = _length(gram, tangent) + eps
    turn = math.sin(angle) / angle
    return [length * (d * math.cos(angle) + c * turn) for d, c in zip(direction, tangent, strict=True)]


def _length(gram: Matrix, a: Sequence[float]) -> float:
    return math.sqrt(max(_product(gram, a, a), 0.0))


def _product(gram: Matrix, a: Sequence[float], b: Sequence[float]) -> float:
    return sum(a[i] * gram[i][j] * b[j] for i in range(len(a)) for j in range(len(b)))


def _kernel(arguments: Arguments) -> Kernel:
    weights = arguments.each("weight")
    if arguments.shared["normalize_weights"]:
        weights = shares(weights, "normalize_weights")
    eps = float(arguments.shared["eps"])
    from_base = arguments.base is not None
    find = gram(lambda matrix: multislerp_weights(matrix, weights, eps), from_base=from_base)
    mix = Step(span_from_base if from_base else span, lambda found: {"weights": list(found[0]) or weights})
    return Kernel(mix, (find,), base=arguments.base)


multislerp = Method(
    name="multislerp",
    summary="Weighted mean on the sphere of any number of models, or of their differences from a base.",
    source="Goddard 2025, MultiSLERP; barycentre in the tangent space as in Buss and Fillmore 2001, section 3",
    base=BaseRole.OPTIONAL,
    models=(1, None),
    parameters=(
        Parameter("weight", "number", "model", "weight of this model", required=True),
        Parameter("normalize_weights", "boolean", "global", "divide the weights by their sum", default=True),
        Parameter("eps", "number", "global", "lengths below this count as none", default=1e-8, low=0.0),
    ),
    kernel=_kernel,
    version=2,
)
