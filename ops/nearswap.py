"""Nearswap: move towards the other model where the two are near, by a fixed step elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch

if TYPE_CHECKING:
    from torch import Tensor

SMALL = 1e-6


def _kernel(arguments: Arguments) -> Kernel:
    base = arguments.base
    assert base is not None, "the planner gives this method a base"
    other, t = 1 - base, float(arguments.shared["t"])

    def swap(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
        import torch

        difference = x[other].sub_(x[base])
        share = torch.abs(difference, out=scratch.row(0)).clamp_min_(SMALL).reciprocal_().mul_(t).clamp_(0.0, 1.0)
        return x[base].add_(difference.mul_(share))

    return Kernel(swap, rows=1)


METHODS = (
    Method(
        name="nearswap",
        summary="The other model where it is within t of the base, and t towards it elsewhere.",
        source="alchemonaut 2024, QuartetAnemoi (nearswap)",
        base=BaseRole.REQUIRED,
        models=(1, 1),
        parameters=(Parameter("t", "number", "global", "how near, in units of the weights", required=True),),
        kernel=_kernel,
    ),
)
