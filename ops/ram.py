"""RAM and RAM+: average what several models changed, keep what only one did, perhaps amplified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch
from .gram import Vectors, task_vectors

if TYPE_CHECKING:
    from torch import Tensor


def _changed(delta: Tensor, epsilon: float, out: Tensor) -> Tensor:
    """1.0 where |delta| > epsilon, else 0.0, over `out`."""
    import torch

    return torch.abs(delta, out=out).gt_(epsilon)


def _count(deltas: Sequence[Tensor], epsilon: float, scratch: Scratch) -> Tensor:
    """Zero, in place, what is no change, and count in scratch row 0 how many models changed each element."""
    count, mask = scratch.row(0).zero_(), scratch.row(1)
    for delta in deltas:
        delta.mul_(_changed(delta, epsilon, mask))
        count.add_(mask)
    return count


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Per model, how many of its changed elements others changed too, and how many it alone changed."""

    vectors: Vectors
    epsilon: float

    def block(self, x: Sequence[Tensor], start: int, scratch: Scratch, earlier: Sequence[Any]) -> list[tuple[int, int]]:
        """The two counts of one block, a pair a model."""
        import torch

        deltas = self.vectors(x)
        count, spare = _count(deltas, self.epsilon, scratch), scratch.row(1)
        pairs = []
        for delta in deltas:
            changed = torch.ne(delta, 0.0, out=delta)
            everything = int(changed.sum())
            alone = int(changed.mul_(torch.eq(count, 1.0, out=spare)).sum())
            pairs.append((everything - alone, alone))
        return pairs

    def merge(self, left: list[tuple[int, int]], right: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Pair by pair."""
        return [(a + c, b + d) for (a, b), (c, d) in zip(left, right, strict=True)]

    def finish(self, total: list[tuple[int, int]], earlier: Sequence[Any]) -> list[tuple[int, int]]:
        """The counts themselves."""
        return total


def _kernel(*, amplify: bool) -> Callable[[Arguments], Kernel]:
    def kernel(arguments: Arguments) -> Kernel:
        base = arguments.base
        assert base is not None, "the planner gives these methods a base"
        epsilon = float(arguments.shared["epsilon"])
        vectors = task_vectors(base)

        def factors(statistics: Sequence[Any]) -> list[float]:
            """λ of each model (1 without amplification)."""
            r, alpha = float(arguments.shared["r"]), float(arguments.shared["alpha"])
            # Where a model changed nothing alone there is nothing to amplify, and with epsilon 0 nothing to divide by.
            ratios = (both / max(alone, epsilon) if alone else 0.0 for both, alone in statistics[0])
            return [1.0 + r * min(max(ratio, 0.0), alpha) for ratio in ratios]

        def merge(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
            import torch

            deltas = vectors(x)
            if not deltas:
                return x[base]
            count = _count(deltas, epsilon, scratch)
            if amplify:
                alone = torch.eq(count, 1.0, out=scratch.row(1))
                for delta, factor in zip(deltas, factors(statistics), strict=True):
                    # δ·(1 + (λ − 1)·[only this model changed it])
                    torch.mul(delta, alone, out=scratch.row(2))
                    delta.add_(scratch.row(2), alpha=factor - 1.0)
            total = deltas[0]
            for delta in deltas[1:]:
                total.add_(delta)
            return x[base].add_(total.div_(count.clamp_min_(1.0)))

        return Kernel(merge, statistics=(_Overlap(vectors, epsilon),) if amplify else (), rows=3)

    return kernel


_EPSILON = Parameter("epsilon", "number", "global", "smaller differences do not count as changes", default=1e-5, low=0.0)

METHODS = (
    Method(
        name="ram",
        summary="Average each element over the models that changed it.",
        source="Reinforced agent merging (RAM), 2026",
        base=BaseRole.REQUIRED,
        models=(0, None),
        parameters=(_EPSILON,),
        kernel=_kernel(amplify=False),
    ),
    Method(
        name="ramplus_tl",
        summary="As ram, and what one model alone changed is amplified by how much it shares with others.",
        source="Reinforced agent merging (RAM+), 2026",
        base=BaseRole.REQUIRED,
        models=(0, None),
        parameters=(
            Parameter("r", "number", "global", "strength of the amplification", default=0.1),
            Parameter("alpha", "number", "global", "upper bound of the ratio that it grows with", default=0.2),
            _EPSILON,
        ),
        kernel=_kernel(amplify=True),
    ),
)
