"""Arcee Fusion: take over only the elements that matter: large changes in rows whose distribution changed."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .declare import Arguments, BaseRole, Kernel, Method, Scratch, row_block
from .select import COUNTER_BYTES, CountHigh, CountLow, Level

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-8
"""Added to probabilities, so that their logarithms are finite."""

LEAST = 1e-20
"""The divergence of a row where rounding says that it is below 0, which none is."""

_IMPORTANCE, _SPARE = 0, 1
"""Scratch rows."""


def _importance(base: Tensor, other: Tensor, width: int, scratch: Scratch) -> Tensor:
    """|x − b| times the row's Kullback-Leibler divergence of softmax(x) from softmax(b).

    The divergence is in float32, as in the method's own implementation: it is so small that its rounding, some percent of it,
    decides which elements stand at the threshold, and results are compared with that implementation's. Where rounding makes it
    negative it is next to nothing, which keeps importances in the order of their magnitudes.
    """
    import torch

    p = torch.softmax(other.view(-1, width), 1).add_(FLOOR)
    q = torch.softmax(base.view(-1, width), 1).add_(FLOOR)
    divergence = torch.div(p, q, out=q).log_().mul_(p).sum(1, keepdim=True)
    divergence.masked_fill_(divergence < 0.0, LEAST)
    importance = torch.sub(other, base, out=scratch.row(_IMPORTANCE)).abs_()
    importance.view(-1, width).mul_(divergence)
    return importance


def _value(level: Level) -> float:
    """The float32 of a bit pattern."""
    value: float = struct.unpack("<f", struct.pack("<I", level.bits))[0]
    return value


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    assert base is not None, "the planner gives this method a base"
    other, width, last = 1 - base, max(arguments.row, 1), max(arguments.size - 1, 0)
    # The quantile q is the element ⌊q(n − 1)⌋ from below, which is a rank from above.
    ranks = tuple(arguments.size - math.floor(q * last) for q in (0.25, 0.5, 0.75))

    def importance(x: Sequence[Tensor], scratch: Scratch) -> Sequence[Tensor]:
        return [_importance(x[base], x[other], width, scratch)]

    def fuse(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        if not arguments.size:
            return x[base]
        low, middle, high = (_value(level) for level in statistics[1][0])
        marks = importance(x, scratch)[0].ge_(middle + 1.5 * (high - low))
        return x[base].add_(x[other].sub_(x[base]).mul_(marks))

    block = row_block(width)
    return Kernel(
        fuse,
        statistics=(CountHigh([True], lambda earlier: [ranks], importance, _SPARE), CountLow(importance, _SPARE)),
        rows=2,
        state_bytes=3 * COUNTER_BYTES + 4 * 4 * block,
        block=block,
    )


METHODS = (
    Method(
        name="arcee_fusion",
        summary="Take over the elements whose change matters most; the rest stays the base's.",
        source="Arcee AI 2024, Arcee Fusion",
        base=BaseRole.REQUIRED,
        models=(1, 1),
        parameters=(),
        kernel=_kernel,
    ),
)
