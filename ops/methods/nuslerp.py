"""NuSLERP: spherical interpolation by relative weights, of whole tensors or vector by vector, of models or of task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..expression import ByColumn, Value, acos, maximum, minimum, narrow, row_sum, sin, sqrt, where, wide
from ..lib.arrays import as_float64
from ..lib.gram import Matrix, gram, inner_products, matrix, span, span_from_base
from ..method import Arguments, BaseRole, Found, Kernel, Method, Parameter, Pass, Step, row_block

NO_LENGTH = 1e-8
NO_ANGLE = 1e-6
"""Below this sin θ the coefficients of opposite float32 vectors would be larger than their rounding allows."""


def nuslerp_weights(products: Matrix, t: float) -> tuple[float, float]:
    """Coefficients of two vectors from their Gram matrix; linear only where sin θ vanishes."""
    norms = [math.sqrt(products[i][i]) for i in range(2)]
    scale = math.prod(norm if norm > NO_LENGTH else 1.0 for norm in norms)
    cosine = products[0][1] / scale
    if math.isnan(cosine):
        return 1.0 - t, t
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    sine = math.sin(angle)
    if abs(sine) < NO_ANGLE:
        return 1.0 - t, t
    return math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine


def mix_rows(models: Sequence[Value], t: Value) -> Value:
    """The two vectors of each row, mixed by coefficients of the row's own."""
    products = matrix([row_sum(product) for product in inner_products(models)])
    norms = [sqrt(products[i][i]) for i in range(2)]
    scale = where(norms[0] > NO_LENGTH, norms[0], 1.0) * where(norms[1] > NO_LENGTH, norms[1], 1.0)
    cosine = products[0][1] / scale
    known = cosine == cosine
    angle = acos(where(known, maximum(minimum(cosine, 1.0), -1.0), 0.0))
    sine = sin(angle)
    curved = known & (abs(sine) >= NO_ANGLE)
    safe = where(curved, sine, 1.0)
    share = wide(t)
    first = where(curved, sin(angle * (1.0 - share)) / safe, 1.0 - share)
    second = where(curved, sin(angle * share) / safe, share)
    return models[0] * narrow(first) + models[1] * narrow(second)


def mix_rows_from_base(base: Value, models: Sequence[Value], t: Value) -> Value:
    """The same of differences from the base."""
    return base + mix_rows([model - base for model in models], t)


@dataclass(frozen=True, slots=True)
class ColumnProducts(Pass):
    """The three inner products of the two vectors of each column, in float64: [3, columns]. Blocks are whole rows."""

    base: int | None
    columns: int

    def block(self, x: Sequence[Any], start: int) -> Any:
        """Those of the columns' parts in one block."""
        wide = [as_float64(row).reshape(-1, self.columns) for row in x]
        apart = [row if self.base is None else row - wide[self.base] for i, row in enumerate(wide) if i != self.base]
        a, b = apart
        return [(a * a).sum(0), (a * b).sum(0), (b * b).sum(0)]

    def merge(self, left: Any, right: Any) -> Any:
        """Product by product."""
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, total: Any, found: Found) -> list[list[float]]:
        """As lists."""
        return [] if total is None else [products.tolist() for products in total]


def _column_weights(products: Sequence[Sequence[float]], t: float) -> list[ByColumn]:
    pairs = [nuslerp_weights([[aa, ab], [ab, bb]], t) for aa, ab, bb in zip(*products, strict=True)] if products else []
    found: NDArray[np.float32] = np.array(pairs, np.float32).reshape(-1, 2)
    return [ByColumn(np.ascontiguousarray(found[:, i])) for i in range(2)]


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    first, second = arguments.each("weight")
    total = first + second
    t = second / total if abs(total) >= 1e-8 else 0.5
    mix = span if base is None else span_from_base
    if arguments.shared["nuslerp_flatten"] or len(arguments.shape) < 2:
        find = gram(lambda products: nuslerp_weights(products, t), from_base=base is not None)
        return Kernel(Step(mix, lambda found: {"weights": list(found[0]) or [1.0 - t, t]}), (find,), base=base)
    if arguments.shared["nuslerp_row_wise"]:
        width = max(arguments.size // max(arguments.shape[0], 1), 1)
        by_column = Step(mix, lambda found: {"weights": _column_weights(found[0], t)})
        columns = ColumnProducts(base, width)
        return Kernel(by_column, (columns,), base, width, state_bytes=8 * 3 * 4 * width, block=row_block(width))
    width = max(arguments.row, 1)
    rows = Step(mix_rows if base is None else mix_rows_from_base, lambda found: {"t": t})
    return Kernel(rows, base=base, width=width, block=row_block(width))


nuslerp = Method(
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
    version=2,
)
