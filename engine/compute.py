"""The arithmetic of one task: blocks of the loaded inputs through a kernel, into the output buffer. No I/O, no threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ops.declare import Kernel, Sampling, Statistic
from ..planner.dtypes import ITEM_SIZES
from .journal import Facts
from .scan import Scanner

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def arithmetic() -> AbstractContextManager[object]:
    """Within it, torch keeps no books for gradients."""
    import torch

    return torch.inference_mode()


@dataclass(frozen=True, slots=True)
class Tile:
    """The loaded inputs of one task, flat, beginning at element `start` of the tensor; `cast` as in `Workspace.feed`."""

    views: list[torch.Tensor]
    start: int
    cast: torch.dtype | None


class Fold:
    """Merges the partial statistics of a tensor's runs in their order, whatever order they arrive in."""

    def __init__(self, statistic: Statistic) -> None:
        self._statistic = statistic
        self._waiting: dict[int, tuple[int, Any]] = {}
        self._next = 0
        self._total: Any = None
        self._lock = threading.Lock()

    def add(self, begin: int, end: int, partial: Any) -> int:
        """Take the partial result of elements `begin` to `end` of the tensor; how many are merged by that, which may be none."""
        merged = 0
        with self._lock:
            self._waiting[begin] = end, partial
            while self._next in self._waiting:
                first = self._next == 0
                self._next, right = self._waiting.pop(self._next)
                self._total = right if first else self._statistic.merge(self._total, right)
                merged += 1
        return merged

    def finish(self, earlier: Sequence[Any]) -> Any:
        """The statistic, once all runs are in."""
        return self._statistic.finish(self._total, earlier)


def blocks(low: int, high: int, step: int) -> list[tuple[int, int]]:
    """Elements `low` to `high` in runs of `step`; of nothing, one empty run."""
    return [(begin, min(begin + step, high)) for begin in range(low, high, step)] or [(low, high)]


def gather(
    kernel: Kernel,
    statistic: Statistic,
    tile: Tile,
    low: int,
    high: int,
    space: Workspace,
    earlier: Sequence[Any],
) -> Any:
    """The partial statistic of elements `low` to `high` of a tile; None of nothing."""
    if low == high:
        return None
    stride = statistic.stride if isinstance(statistic, Sampling) else 1
    ranges = blocks(low, high, kernel.block * space.blocks * stride)
    sampled = [(begin + -(tile.start + begin) % stride, end) for begin, end in ranges]
    total: Any = None
    for number, rows in enumerate(space.feed(kernel, tile.views, sampled, tile.cast, stride)):
        partial = statistic.block(rows, tile.start + ranges[number][0], space, earlier)
        total = partial if number == 0 else statistic.merge(total, partial)
    space.finish()
    return total


def transform(
    kernel: Kernel,
    tile: Tile,
    out: torch.Tensor,
    low: int,
    high: int,
    space: Workspace,
    statistics: Sequence[Any],
) -> None:
    """Compute elements `low` to `high` of a tile into `out`."""
    ranges = blocks(low, high, kernel.block * space.blocks) if low < high else []
    for (begin, end), rows in zip(ranges, space.feed(kernel, tile.views, ranges, tile.cast), strict=True):
        space.store(kernel.map(rows, tile.start + begin, space, statistics), out[begin:end])
    space.finish()


def as_written(view: torch.Tensor, dtype: torch.dtype) -> Callable[[int, int], memoryview]:
    """The bytes of a run of an input's elements as they stand in a tensor of `dtype`."""
    import torch

    return lambda low, high: view[low:high].to(dtype).view(torch.uint8).numpy().data


def examine(data: memoryview, dtype: str, base: memoryview | None, scanner: Scanner) -> Facts:
    """The facts of elements of a safetensors dtype; `base`: the base model's own, in the same dtype."""
    compared = len(data) // ITEM_SIZES[dtype] if base is not None else 0
    differing = scanner.differing(data, base, dtype) if base is not None and base is not data else 0
    return Facts(compared, differing, *scanner.nonfinite(data, dtype))
