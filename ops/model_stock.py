"""Model Stock: how far to go from the base towards the mean, from the angles between fine-tuned models (Jang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch, row_block
from .gram import Gram, Matrix, batched_gram, task_vectors

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1e-6


def interpolation_ratio(gram: Matrix) -> float:
    """The paper's t (section 4.2) from the Gram matrix of the task vectors."""
    count = len(gram)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    norms = [math.sqrt(gram[i][i]) for i in range(count)]
    cosine = sum(gram[i][j] / max(norms[i] * norms[j], SMALL) for i, j in pairs) / len(pairs)
    cosine = min(1.0, max(-1.0, cosine))
    below = 1.0 + (count - 1) * cosine
    return count * cosine / below if abs(below) > 1e-12 else 0.0


def _batched_ratio(gram: Tensor) -> Tensor:
    """The same for many Gram matrices at once: [K, K, rows] to float32 [rows]."""
    count = len(gram)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    norms = [gram[i, i].sqrt() for i in range(count)]
    total = gram[0, 0] * 0.0
    for i, j in pairs:
        total += gram[i, j] / (norms[i] * norms[j]).clamp_min_(SMALL)
    cosine = (total / len(pairs)).clamp_(-1.0, 1.0)
    below = 1.0 + (count - 1) * cosine
    safe = below.abs() > 1e-12
    return (count * cosine / below.where(safe, 1.0)).where(safe, 0.0).float()


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    assert base is not None, "the planner gives this method a base"
    vectors = task_vectors(base)
    share = 1.0 / (len(arguments.models) - 1)

    def mean(x: Sequence[Tensor]) -> Tensor:
        rows = vectors(x)
        total = rows[0]
        for row in rows[1:]:
            total.add_(row)
        return total.mul_(share)

    if not arguments.shared["filter_wise"] or len(arguments.shape) < 2:

        def whole(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
            return x[base].add_(mean(x), alpha=interpolation_ratio(statistics[0]))

        return Kernel(whole, statistics=(Gram(vectors),))

    width = arguments.row

    def by_rows(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        rows = vectors(x)
        ratio = _batched_ratio(batched_gram(rows, width, 1, scratch))
        total = rows[0]
        for row in rows[1:]:
            total.add_(row)
        total.mul_(share).view(-1, width).mul_(ratio.unsqueeze(1))
        return x[base].add_(total)

    count = len(arguments.models) - 1
    rows_at_once = row_block(width) // max(width, 1)
    return Kernel(by_rows, state_bytes=8 * (count * count + count + 8) * rows_at_once, block=row_block(width))


METHODS = (
    Method(
        name="model_stock",
        summary="From the base towards the models' mean, as far as their agreement suggests.",
        source="Jang et al. 2024, Model Stock, section 4.2",
        base=BaseRole.REQUIRED,
        models=(2, None),
        parameters=(Parameter("filter_wise", "boolean", "global", "row by row instead of whole tensors", default=False),),
        kernel=_kernel,
    ),
)
