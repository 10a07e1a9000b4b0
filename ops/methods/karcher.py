"""The Karcher (Riemannian) mean of directions on the sphere, scaled by the mean length (Karcher 1977).

The iteration runs on the Gram matrix: every iterate is a combination of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..lib.gram import Matrix, gram, span
from ..method import Arguments, BaseRole, Kernel, Method, Parameter, Step

NO_DIRECTION = 1e-7
"""About the rounding of float32 inputs: shorter sums of directions, and angles that near π, point nowhere in particular."""


def karcher_weights(gram: Matrix, max_iter: int, tol: float) -> list[float]:
    """Coefficients of the inputs from their Gram matrix, all inputs weighing the same."""
    count = len(gram)
    norms = [math.sqrt(gram[i][i]) for i in range(count)]
    length = sum(norms) / count
    used = [i for i in range(count) if not norms[i] <= tol]
    if not used:
        return [0.0] * count
    share = 1.0 / count
    cosines = [[gram[i][j] / (norms[i] * norms[j]) for j in used] for i in used]
    mean = _normalised(cosines, [share] * len(used), max(tol, NO_DIRECTION)) or [1.0] + [0.0] * (len(used) - 1)
    for _ in range(max_iter):
        tangent = [0.0] * len(used)
        for i in range(len(used)):
            cosine = min(1.0, max(-1.0, sum(c * m for c, m in zip(cosines[i], mean, strict=True))))
            angle = math.acos(cosine)
            sine = math.sin(angle)
            if angle < tol or sine < NO_DIRECTION:
                continue
            factor = share * angle / sine
            tangent = [t - factor * cosine * m for t, m in zip(tangent, mean, strict=True)]
            tangent[i] += factor
        size = math.sqrt(max(_square(cosines, tangent), 0.0))
        if size == 0.0 or not size >= tol:
            break
        moved = [m * math.cos(size) + t / size * math.sin(size) for m, t in zip(mean, tangent, strict=True)]
        mean = _normalised(cosines, moved, NO_DIRECTION) or mean
    weights = [0.0] * count
    for i, m in zip(used, mean, strict=True):
        weights[i] = length * m / norms[i]
    return weights


def _square(cosines: Matrix, a: Sequence[float]) -> float:
    return sum(a[i] * cosines[i][j] * a[j] for i in range(len(a)) for j in range(len(a)))


def _normalised(cosines: Matrix, a: Sequence[float], least: float) -> list[float] | None:
    size = math.sqrt(max(_square(cosines, a), 0.0))
    return None if size < least else [c / size for c in a]


def _kernel(arguments: Arguments) -> Kernel:
    max_iter, tol = int(arguments.shared["max_iter"]), float(arguments.shared["tol"])
    find = gram(lambda matrix: karcher_weights(matrix, max_iter, tol))
    return Kernel(Step(span, lambda found: {"weights": list(found[0]) or [1.0] * len(arguments.models)}), (find,))


karcher = Method(
    name="karcher",
    summary="The mean on the sphere of any number of models, all weighing the same.",
    source="Karcher 1977, Riemannian center of mass; iteration of Pennec 2006, section 3",
    base=BaseRole.ORDINARY,
    models=(1, None),
    parameters=(
        Parameter("max_iter", "number", "global", "steps at most", default=10, low=0),
        Parameter(
            "tol", "number", "global", "stop where a step is shorter; angles and lengths below it count as none", default=1e-5
        ),
    ),
    kernel=_kernel,
    version=2,
)
