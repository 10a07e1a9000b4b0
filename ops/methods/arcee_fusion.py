"""Arcee Fusion: take over only the elements that matter: large changes in rows whose distribution changed."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..expression import ByRow, Value, where
from ..lib.selection import High, Level, Low, partial_bytes, state_bytes
from ..method import Arguments, BaseRole, Found, Kernel, Method, Pass, Step, row_block

FLOOR = 1e-8
"""Added to probabilities, so that their logarithms are finite."""

LEAST = 1e-20
"""The divergence of a row where rounding says that it is below 0, which none is."""


@dataclass(frozen=True, slots=True)
class RowDivergence(Pass):
    """Each row's Kullback-Leibler divergence of softmax(x) from softmax(b).

    In float32 and by torch, as in the method's own implementation: it is so small that its rounding, some percent of it, decides
    which elements stand at the threshold, and results are compared with that implementation's. Where rounding makes it negative
    it is next to nothing, which keeps importances in the order of their magnitudes.
    """

    base: int
    width: int

    def block(self, x: Sequence[Any], start: int) -> list[float]:
        """Those of one block's rows."""
        import torch

        rows = [torch.as_tensor(each).reshape(-1, self.width) for each in x]
        p = torch.softmax(rows[1 - self.base], 1).add_(FLOOR)
        q = torch.softmax(rows[self.base], 1).add_(FLOOR)
        divergence = torch.div(p, q, out=q).log_().mul_(p).sum(1)
        found: list[float] = divergence.masked_fill_(divergence < 0.0, LEAST).tolist()
        return found

    def merge(self, left: list[float], right: list[float]) -> list[float]:
        """One block's after another's."""
        left.extend(right)
        return left

    def finish(self, total: list[float] | None, found: Found) -> ByRow:
        """All of them."""
        return ByRow(total or [])


def importance(base: Value, models: Sequence[Value], divergence: Value) -> Value:
    """|x − b| times the row's divergence."""
    return abs(models[0] - base) * divergence


def fused(base: Value, models: Sequence[Value], divergence: Value, threshold: Value) -> Value:
    """The other model where its change matters, else the base; what is NaN stays so."""
    taken = where(importance(base, models, divergence) >= threshold, 1.0, 0.0)
    return base + (models[0] - base) * taken


def _value(level: Level) -> float:
    """The float32 of a bit pattern."""
    value: float = struct.unpack("<f", struct.pack("<I", level.bits))[0]
    return value


def _kernel(arguments: Arguments) -> Kernel:
    width, last = max(arguments.row, 1), max(arguments.size - 1, 0)
    # The quantile q is the element ⌊q(n − 1)⌋ from below, which is a rank from above.
    ranks = [tuple(arguments.size - math.floor(q * last) for q in (0.25, 0.5, 0.75))]

    def by_row(found: Found) -> dict[str, object]:
        return {"divergence": found[0]}

    def numbers(found: Found) -> dict[str, object]:
        low, middle, high = (_value(level) for level in found[2])
        return {"divergence": found[0], "threshold": middle + 1.5 * (high - low)}

    assert arguments.base is not None, "the planner gives this method a base"
    step = Step(importance, by_row)
    rows = arguments.size // width
    return Kernel(
        Step(fused, numbers),
        (RowDivergence(arguments.base, width), High(step, lambda found: ranks), Low(step)),
        base=arguments.base,
        width=width,
        block=row_block(width),
        state_bytes=max(state_bytes(ranks), 80 * rows),
        partial_bytes=max(partial_bytes(ranks), 6 * 4 * row_block(width)),
    )


arcee_fusion = Method(
    name="arcee_fusion",
    summary="Take over the elements whose change matters most; the rest stays the base's.",
    source="Arcee AI 2024, Arcee Fusion",
    base=BaseRole.REQUIRED,
    models=(1, 1),
    parameters=(),
    kernel=_kernel,
    version=2,
)
