"""NuSLERP: spherical interpolation by relative weights, of whole tensors or vector by vector, of models or of task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .combine import weighted_sum
from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch, Statistic, row_block
from .gram import ColumnGram, Gram, Matrix, batched_gram, task_vectors

if TYPE_CHECKING:
    from torch import Tensor

NO_LENGTH = 1e-8
NO_ANGLE = 1e-6
"""Below this sin θ the coefficients of opposite float32 vectors would be larger than their rounding allows."""


def nuslerp_weights(gram: Matrix, t: float) -> tuple[float, float]:
    """Coefficients of two vectors from their Gram matrix; linear only where sin θ vanishes."""
    norms = [math.sqrt(gram[i][i]) for i in range(2)]
    scale = math.prod(norm if norm > NO_LENGTH else 1.0 for norm in norms)
    cosine = gram[0][1] / scale
    if math.isnan(cosine):
        return 1.0 - t, t
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    sine = math.sin(angle)
    if abs(sine) < NO_ANGLE:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def _batched_weights(gram: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """The same for many pairs at once: `gram` is [2, 2, vectors]; float32 coefficients [vectors]."""
    norms = [gram[i, i].sqrt() for i in range(2)]
    scale = norms[0].where(norms[0] > NO_LENGTH, 1.0) * norms[1].where(norms[1] > NO_LENGTH, 1.0)
    angle = (gram[0, 1] / scale).clamp_(-1.0, 1.0).acos_()
    sine = angle.sin()
    curved = sine.abs() >= NO_ANGLE
    safe = sine.where(curved, 1.0)
    first = ((angle * (1.0 - t)).sin_() / safe).where(curved, 1.0 - t)
    second = ((angle * t).sin_() / safe).where(curved, t)
    return first.float(), second.float()


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    first, second = (float(model["weight"]) for i, model in enumerate(arguments.models) if i != base)
    total = first + second
    t = second / total if abs(total) >= 1e-8 else 0.5
    vectors = task_vectors(base)

    def add_base(x: Sequence[Tensor], mixed: Tensor) -> Tensor:
        return mixed if base is None else mixed.add_(x[base])

    if arguments.shared["nuslerp_flatten"] or len(arguments.shape) < 2:

        def whole(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
            return add_base(x, weighted_sum(vectors(x), nuslerp_weights(statistics[0], t)))

        return Kernel(whole, statistics=(Gram(vectors),))

    along = 0 if arguments.shared["nuslerp_row_wise"] else 1
    width = arguments.size // max(arguments.shape[0], 1) if along == 0 else arguments.row
    statistics: tuple[Statistic, ...] = (ColumnGram(vectors, width),) if along == 0 else ()

    def batched(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        left, right = vectors(x)
        gram = statistics[0] if along == 0 else batched_gram([left, right], width, along, scratch)
        weights = [w if along == 0 else w.unsqueeze(1) for w in _batched_weights(gram, t)]
        left.view(-1, width).mul_(weights[0])
        right.view(-1, width).mul_(weights[1])
        return add_base(x, left.add_(right))

    vectors_at_once = width if along == 0 else max(1, row_block(width) // max(width, 1))
    return Kernel(batched, statistics=statistics, state_bytes=20 * 8 * vectors_at_once, block=row_block(width))


METHODS = (
    Method(
        name="nuslerp",
        summary="Slerp by relative weights, also vector by vector, also of differences from a base.",
        source="Shoemake 1985, section 3.3, on vectors of any length",
        base=BaseRole.OPTIONAL,
        models=(2, 2),
        parameters=(
            Parameter("weight", "number", "model", "relative weight of this model", required=True),
            Parameter("nuslerp_flatten", "boolean", "global", "the whole tensor is one vector", default=True),
            Parameter(
                "nuslerp_row_wise",
                "boolean",
                "global",
                "without flatten: vectors along the first dimension, not the last",
                default=False,
            ),
        ),
        kernel=_kernel,
    ),
)
