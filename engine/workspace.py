"""One worker's reused memory on a device: float32 rows of one block each, and how blocks of inputs come into them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..ops.method import Kernel
from ..planner.memory import workspace_rows

Ranges = Sequence[tuple[int, int]]
"""Runs of a tile's elements: from, to."""


class Rows:
    """Rows of float32 laid out for a kernel: those of the inputs, then a spare one."""

    def __init__(self, memory: torch.Tensor, blocks: int) -> None:
        self.device, self.blocks, self.length = memory.device, blocks, 0
        self._memory, self._inputs = memory, 0
        self._kernel: Kernel | None = None

    def arrange(self, inputs: int, kernel: Kernel) -> None:
        """Lay out rows for blocks of a kernel with that many inputs."""
        if kernel is self._kernel and inputs == self._inputs:
            return
        block, rows = kernel.block * self.blocks, workspace_rows(inputs)
        self._rows = self._memory[: 4 * rows * block].view(torch.float32).view(rows, block)
        self._kernel, self._inputs = kernel, inputs

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
