"""One worker's reused memory: float32 rows and float64 rows of one block each, and how blocks of inputs come into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from ..ops.declare import Kernel, Scratch
from ..planner.memory import workspace_rows
from .pool import Pool

Ranges = Sequence[tuple[int, int]]
"""Runs of a tile's elements: from, to."""


class Workspace(Scratch, Protocol):
    """Where one worker computes: in the memory into which tensors are read, or on a device beside it."""

    blocks: int
    """How many of a kernel's blocks are handled at once."""

    def feed(
        self, kernel: Kernel, views: list[torch.Tensor], ranges: Ranges, cast: torch.dtype | None, stride: int = 1
    ) -> Iterator[list[torch.Tensor]]:
        """For each range, the elements of each input as float32 rows, rounded to `cast` first if that is given.

        With a stride, every so manieth of them. Inputs that the kernel wants whole are given as they are. Rows are valid until
        the next are asked for, and may be overwritten.
        """

    def store(self, result: torch.Tensor, out: torch.Tensor) -> None:
        """Round a row into a run of the output buffer, once; it is there after `finish`."""

    def finish(self) -> None:
        """Return when everything that was begun is done."""

    def close(self) -> None:
        """Give the memory back; nothing uses it any more."""


class Rows:
    """Scratch rows laid out for a kernel: those of the inputs first, then the kernel's own, then a spare one."""

    def __init__(self, memory: torch.Tensor, blocks: int) -> None:
        self.device, self.blocks, self.length = memory.device, blocks, 0
        self._memory, self._inputs = memory, 0
        self._kernel: Kernel | None = None

    def arrange(self, inputs: int, kernel: Kernel) -> None:
        """Lay out rows for blocks of a kernel with that many inputs."""
        if kernel is self._kernel and inputs == self._inputs:
            return
        block, rows = kernel.block * self.blocks, workspace_rows(kernel, inputs)
        wide = 2 * 8 * block
        self._doubles = self._memory[:wide].view(torch.float64).view(2, block)
        self._rows = self._memory[wide : wide + 4 * rows * block].view(torch.float32).view(rows, block)
        self._kernel, self._inputs = kernel, inputs

    def row(self, index: int) -> torch.Tensor:
        """Float32 scratch row `index`, as long as the current block."""
        return self._rows[self._inputs + index, : self.length]

    def double(self, index: int) -> torch.Tensor:
        """Float64 scratch row `index`, as long as the current block."""
        return self._doubles[index, : self.length]

    def widen(
        self, views: Sequence[torch.Tensor], whole: Sequence[int], cast: torch.dtype | None, rows: list[torch.Tensor]
    ) -> None:
        """Add to `rows` the views as float32, but for those that are taken `whole`; rounded to `cast` first."""
        rows += [view if i in whole else self._rows[i, : self.length] for i, view in enumerate(views)]
        for i, view in enumerate(views):
            if i in whole:
                continue
            rows[i].copy_(view)
            if cast is not None and view.dtype != cast:
                rounded = self._rows[-1, : self.length].view(cast)[: self.length]
                rows[i].copy_(rounded.copy_(rows[i]))


class HostWorkspace(Rows):
    """Computes where tensors are read: nothing is copied but into float32."""

    def __init__(self, nbytes: int) -> None:
        self._pool = Pool(nbytes)
        super().__init__(self._pool.tensor(0, "U8", nbytes), 1)

    def feed(
        self, kernel: Kernel, views: list[torch.Tensor], ranges: Ranges, cast: torch.dtype | None, stride: int = 1
    ) -> Iterator[list[torch.Tensor]]:
        """See `Workspace`."""
        self.arrange(len(views), kernel)
        for low, high in ranges:
            self.length = len(range(low, high, stride))
            here = [view if i in kernel.whole else view[low:high:stride] for i, view in enumerate(views)]
            rows: list[torch.Tensor] = []
            self.widen(here, kernel.whole, cast, rows)
            yield rows

    def store(self, result: torch.Tensor, out: torch.Tensor) -> None:
        """See `Workspace`."""
        out.copy_(result)

    def finish(self) -> None:
        """Nothing is left to wait for."""

    def close(self) -> None:
        """See `Workspace`."""
        self._pool.close()
