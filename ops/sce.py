"""SCE: select the elements on which models differ most, calculate the models' weights, erase minority signs (Wan et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .combine import elect_flips
from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch, Statistic
from .gram import Vectors, task_vectors
from .select import COUNTER_BYTES, CountEqual, CountHigh, CountLow, Cut, mark_selected

if TYPE_CHECKING:
    from torch import Tensor

_VARIANCE, _SPARE, _SIGN = 0, 1, 2
"""Scratch rows."""


def _variance(deltas: Sequence[Tensor], scratch: Scratch) -> Tensor:
    """The population variance over models, element by element, in its scratch row.

    Taken of the differences from the first, so that it is exactly 0 where all are equal.
    """
    import torch

    mean, total = scratch.row(_SIGN).zero_(), scratch.row(_VARIANCE).zero_()
    for delta in deltas[1:]:
        mean.add_(torch.sub(delta, deltas[0], out=scratch.row(_SPARE)))
    mean.div_(len(deltas))
    for delta in deltas:
        away = torch.sub(delta, deltas[0], out=scratch.row(_SPARE)).sub_(mean)
        total.addcmul_(away, away)
    return total.div_(len(deltas))


@dataclass(frozen=True, slots=True)
class _Nonzero:
    """How many elements have a variance at all."""

    vectors: Vectors

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> int:
        """The count of one block."""
        return int(_variance(self.vectors(x), scratch).ne_(0.0).sum())

    def merge(self, left: int, right: int) -> int:
        """Their sum."""
        return left + right

    def finish(self, total: int, earlier: Sequence[Any]) -> int:
        """The count itself."""
        return total


@dataclass(frozen=True, slots=True)
class _Squares:
    """Each model's share of Σ δ² over the selected elements: its weight."""

    vectors: Vectors
    size: int
    selects: bool

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[float]:
        """Σ δ² of one block in float64, by model."""
        import torch

        deltas = self.vectors(x)
        if self.selects:
            _keep_selected(deltas, earlier[3][0], start, scratch)
        wide = scratch.double(0)
        return [float(torch.dot(wide.copy_(delta), wide)) for delta in deltas]

    def merge(self, left: list[float], right: list[float]) -> list[float]:
        """Model by model."""
        return [a + b for a, b in zip(left, right, strict=True)]

    def finish(self, total: list[float], earlier: Sequence[Any]) -> list[float]:
        """The weights: shares of the sum of mean squares, equal where there is next to nothing."""
        means = [square / max(self.size, 1) for square in total]
        whole = sum(means)
        return [1.0 / len(means)] * len(means) if whole < 1e-6 else [mean / whole for mean in means]


def _keep_selected(deltas: Sequence[Tensor], cuts: Sequence[Cut], start: int, scratch: Scratch) -> None:
    """Zero, in place, the elements that were not selected (no cut: none was)."""
    if not cuts:
        for delta in deltas:
            delta.zero_()
        return
    variance = _variance(deltas, scratch)
    marks = mark_selected(variance, cuts[0], start, scratch.row(_SPARE))
    for delta in deltas:
        delta.mul_(marks)


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    assert base is not None, "the planner gives this method a base"
    vectors = task_vectors(base)
    share = float(arguments.shared["select_topk"])
    selects = share < 1.0

    def ranks(earlier: Sequence[Any]) -> list[tuple[int, ...]]:
        keep = math.floor(share * earlier[0])
        return [(keep,) if keep else ()]

    def variance(x: Sequence[Tensor], scratch: Scratch) -> Sequence[Tensor]:
        return [_variance(vectors(x), scratch)]

    find: tuple[Statistic, ...] = (
        _Nonzero(vectors),
        CountHigh([True], ranks, variance, _SPARE),
        CountLow(variance, _SPARE),
        CountEqual(variance, _SPARE),
    )
    weigh = _Squares(vectors, arguments.size, selects)

    def merge(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        import torch

        deltas = vectors(x)
        if not deltas:
            return x[base]
        if selects:
            _keep_selected(deltas, statistics[3][0], start, scratch)
        spare, weight = scratch.row(_SPARE), scratch.row(_VARIANCE).zero_()
        flips = elect_flips(deltas, scratch.row(_SIGN))
        total = None
        for delta, share in zip(deltas, statistics[-1], strict=True):
            delta.view(torch.int32).bitwise_xor_(flips)
            weight.add_(torch.gt(delta, 0.0, out=spare), alpha=share)
            delta.clamp_min_(0.0).mul_(share)
            total = delta if total is None else total.add_(delta)
        assert total is not None
        total.div_(weight.clamp_min_(1e-6)).view(torch.int32).bitwise_xor_(flips)
        return x[base].add_(total)

    if len(arguments.models) == 1:
        return Kernel(merge, rows=3)
    return Kernel(merge, statistics=(*find, weigh) if selects else (weigh,), rows=3, state_bytes=COUNTER_BYTES)


METHODS = (
    Method(
        name="sce",
        summary="Select by variance, weigh models by how much they changed, erase minority signs.",
        source="Wan et al. 2024, FuseChat, section 3.3",
        base=BaseRole.REQUIRED,
        models=(0, None),
        parameters=(
            Parameter("select_topk", "number", "global", "share of the varying elements to keep", default=1.0, low=0.0),
            Parameter("int8_mask", "boolean", "global", "", inert="it never changed values, only another tool's memory"),
        ),
        kernel=_kernel,
    ),
)
