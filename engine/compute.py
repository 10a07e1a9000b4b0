"""The arithmetic of one task: blocks of the loaded inputs through a kernel, into the output buffer. No I/O, no threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ops.declare import Kernel, Statistic
from .journal import Facts
from .workspace import Workspace

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    for begin in range(low, high, kernel.block):
        rows = space.load(tile.views, begin, min(begin + kernel.block, high), tile.cast)
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
    base: int | None,
) -> Facts:
    """Compute elements `low` to `high` of a tile into `out`; `base` is the input that is the base model's own tensor."""
    facts = Facts()
    space.arrange(len(tile.views), kernel)
    for begin in range(low, high, kernel.block):
        end = min(begin + kernel.block, high)
        rows = space.load(tile.views, begin, end, tile.cast)
        result = kernel.map(rows, tile.start + begin, space, statistics)
        space.store(result, out[begin:end])
        nan, inf = _nonfinite(result, out[begin:end])
        compared, differing = _differing(out[begin:end], tile.views[base][begin:end], space) if base is not None else (0, 0)
        facts += Facts(compared, differing, nan, inf)
    return facts


def examine(kernel: Kernel, view: torch.Tensor, low: int, high: int, is_base: bool, space: Workspace) -> Facts:
    """The facts of elements that are copied as they are."""
    facts = Facts(compared=high - low if is_base else 0)
    if not view.is_floating_point():
        return facts
    space.arrange(1, kernel)
    for begin in range(low, high, kernel.block):
        piece = view[begin : min(begin + kernel.block, high)]
        rows = space.load([piece], 0, len(piece), None)
        facts += Facts(0, 0, *_nonfinite(rows[0], piece))
    return facts


def _nonfinite(wide: torch.Tensor, out: torch.Tensor) -> tuple[int, int]:
    """How many NaN and Inf `out` has; its float32 form's sum, quickly had, is finite unless there are some or it overflowed."""
    limit = torch.finfo(out.dtype).max
    if limit >= torch.finfo(torch.float32).max / 2 and torch.isfinite(wide.sum()):
        return 0, 0
    if limit < torch.finfo(torch.float32).max / 2 and torch.isfinite(out.sum(dtype=torch.float32)):
        return 0, 0
    return int(torch.isnan(out).sum()), int(torch.isinf(out).sum())


def _differing(out: torch.Tensor, base: torch.Tensor, space: Workspace) -> tuple[int, int]:
    """Elements compared, and how many of them are not the base model's, bit for bit after rounding."""
    if out.dtype != base.dtype:
        base = base.to(out.dtype)
    kind = _INTEGERS[out.element_size()]
    a, b = out.view(kind), base.view(kind)
    if torch.equal(a, b):
        return len(out), 0
    if space.device.type != "cpu" or out.element_size() > 4:
        return len(out), int(torch.count_nonzero(a != b))
    unequal = space.spare().view(kind)[: len(out)]  # 0 and 1 in a row of scratch count faster than truth values
    return len(out), int(torch.ne(a, b, out=unequal).sum(dtype=torch.int32))
