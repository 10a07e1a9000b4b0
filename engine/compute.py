"""The arithmetic of one task: elements of the loaded inputs through a kernel, into the output buffer. No I/O, no threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..ops.backends.host import Bound, LoopFor, Output, bind, run_map, run_pass
from ..ops.backends.host import Tile as HostTile
from ..ops.method import Kernel, Pass, Step
from ..planner.dtypes import ITEM_SIZES
from .journal import Facts
from .scan import Scanner

if TYPE_CHECKING:
    import torch

    from .device_workspace import DeviceWorkspace


def arithmetic() -> AbstractContextManager[object]:
    """Within it, torch keeps no books for gradients."""
    import torch

    return torch.inference_mode()


@dataclass(frozen=True, slots=True)
class DeviceTile:
    """The loaded inputs of one task, flat, beginning at element `start` of the tensor, to be computed on a device; those of other
    types than `cast` are rounded to it first.
    """

    views: list[torch.Tensor]
    start: int
    cast: torch.dtype | None


class Fold:
    """Merges the partial results of a tensor's parts in their order, whatever order they arrive in."""

    def __init__(self, statistic: Pass) -> None:
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
        """The statistic, once all parts are in."""
        return self._statistic.finish(self._total, earlier)


def blocks(low: int, high: int, step: int) -> list[tuple[int, int]]:
    """Elements `low` to `high` in runs of `step`; of nothing, one empty run."""
    return [(begin, min(begin + step, high)) for begin in range(low, high, step)] or [(low, high)]


def bound_pass(kernel: Kernel, statistic: Pass, inputs: int, found: Sequence[Any]) -> Bound | None:
    """The program of a pass with its numbers; None of a direct one."""
    step = getattr(statistic, "step", None)
    return bind(step, kernel, inputs, found) if isinstance(step, Step) else None


def bound_map(kernel: Kernel, inputs: int, found: Sequence[Any]) -> Bound | None:
    """The program of the map with its numbers; None of a direct one."""
    return bind(kernel.map, kernel, inputs, found) if isinstance(kernel.map, Step) else None


def gather(
    kernel: Kernel,
    statistic: Pass,
    bound: Bound | None,
    tile: HostTile,
    low: int,
    high: int,
    found: Sequence[Any],
    loops: LoopFor,
) -> Any:
    """The partial result of a pass for elements `low` to `high` of a tile; None of nothing."""
    return run_pass(kernel, statistic, bound, tile, low, high, found, loops)


def transform(
    kernel: Kernel,
    bound: Bound | None,
    tile: HostTile,
    out: Output,
    low: int,
    high: int,
    found: Sequence[Any],
    loops: LoopFor,
) -> Facts:
    """Compute elements `low` to `high` of a tile into `out`; what there is to note of them."""
    noted = run_map(kernel, bound, tile, low, high, out, found, loops)
    return Facts(high - low if out.base is not None else 0, noted.changed, noted.nan, noted.inf)


def gather_on_device(
    kernel: Kernel,
    statistic: Pass,
    bound: Bound | None,
    tile: DeviceTile,
    low: int,
    high: int,
    space: DeviceWorkspace,
    found: Sequence[Any],
) -> Any:
    """As `gather`, block by block on a device."""
    from ..ops.backends.device import pass_block

    if low == high:
        return None
    ranges = blocks(low, high, kernel.block * space.blocks)
    total: Any = None
    for number, rows in enumerate(space.feed(kernel, tile.views, ranges, tile.cast)):
        partial = pass_block(kernel, statistic, bound, rows, tile.start + ranges[number][0], found)
        total = partial if number == 0 else statistic.merge(total, partial)
    space.finish()
    return total


def transform_on_device(
    kernel: Kernel,
    bound: Bound | None,
    tile: DeviceTile,
    out: torch.Tensor,
    low: int,
    high: int,
    space: DeviceWorkspace,
    found: Sequence[Any],
) -> None:
    """As `transform`; what there is to note is looked at afterwards."""
    from ..ops.backends.device import map_block

    ranges = blocks(low, high, kernel.block * space.blocks) if low < high else []
    for (begin, end), rows in zip(ranges, space.feed(kernel, tile.views, ranges, tile.cast), strict=True):
        space.store(map_block(kernel, bound, rows, tile.start + begin, found), out[begin:end])
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
