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


def part_ranges(count: int, part: int) -> list[tuple[int, int]]:
    """A tile's elements cut into the parts that workers take: the same blocks whatever the tile."""
    return [(low, min(low + part, count)) for low in range(0, count, part)]


@dataclass(frozen=True, slots=True)
class Tile:
    """The loaded inputs of one task, flat, beginning at element `start` of the tensor; `cast` as in `Workspace.load`."""

    views: list[torch.Tensor]
    start: int
    cast: torch.dtype | None


class Fold:
    """Merges the parts' partial statistics in the order of the parts, whatever order they arrive in."""

    def __init__(self, statistic: Statistic) -> None:
        self._statistic = statistic
        self._waiting: dict[int, Any] = {}
        self._next = 0
        self._total: Any = None
        self._lock = threading.Lock()

    def add(self, part: int, partial: Any) -> None:
        """Take the partial result of part number `part` of the tensor."""
        with self._lock:
            self._waiting[part] = partial
            while self._next in self._waiting:
                right = self._waiting.pop(self._next)
                self._total = right if self._next == 0 else self._statistic.merge(self._total, right)
                self._next += 1

    def finish(self, earlier: Sequence[Any]) -> Any:
        """The statistic, once all parts are in."""
        return self._statistic.finish(self._total, earlier)


def gather(
    kernel: Kernel,
    statistic: Statistic,
    tile: Tile,
    low: int,
    high: int,
    space: Workspace,
    earlier: Sequence[Any],
) -> Any:
    """The partial statistic of elements `low` to `high` of a tile."""
    total: Any = None
    space.arrange(len(tile.views), kernel)
    stride = statistic.stride if isinstance(statistic, Sampling) else 1
    for begin in range(low, high, kernel.block * stride):
        first = begin + -(tile.start + begin) % stride
        rows = space.load(tile.views, first, min(begin + kernel.block * stride, high), tile.cast, stride)
        partial = statistic.block(rows, tile.start + begin, space, earlier)
        total = partial if begin == low else statistic.merge(total, partial)
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
    space.arrange(len(tile.views), kernel)
    for begin in range(low, high, kernel.block):
        end = min(begin + kernel.block, high)
        rows = space.load(tile.views, begin, end, tile.cast)
        space.store(kernel.map(rows, tile.start + begin, space, statistics), out[begin:end])


def as_written(view: torch.Tensor, dtype: torch.dtype) -> Callable[[int, int], memoryview]:
    """The bytes of a run of an input's elements as they stand in a tensor of `dtype`."""
    import torch

    return lambda low, high: view[low:high].to(dtype).view(torch.uint8).numpy().data


def examine(data: memoryview, dtype: str, base: memoryview | None, scanner: Scanner) -> Facts:
    """The facts of elements of a safetensors dtype; `base`: the base model's own, in the same dtype."""
    compared = len(data) // ITEM_SIZES[dtype] if base is not None else 0
    differing = scanner.differing(data, base, dtype) if base is not None and base is not data else 0
    return Facts(compared, differing, *scanner.nonfinite(data, dtype))
