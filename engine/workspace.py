"""One worker's reused memory: float32 rows and float64 rows of one block each, on the device that computes."""

from __future__ import annotations

import torch

from ..ops.declare import Kernel
from ..planner.memory import workspace_rows
from .pool import Pool


class Workspace:
    """Scratch of one worker. Implements `weft.ops.declare.Scratch`.

    `arrange` lays rows out for a kernel: those of the inputs first, then the kernel's own, then one for the engine's checks.
    """

    def __init__(self, device: torch.device, nbytes: int, staging: int) -> None:
        self.device = device
        self.length = 0
        self.inputs = 0
        self._kernel: Kernel | None = None
        self._staging: torch.Tensor | None = None
        if device.type == "cpu":
            self._memory = Pool(nbytes).tensor(0, "U8", nbytes)
        else:
            self._memory = torch.empty(nbytes, device=device, dtype=torch.uint8)
            self._staging = torch.empty(staging, device=device, dtype=torch.uint8)

    def arrange(self, inputs: int, kernel: Kernel) -> None:
        """Lay out rows for blocks of a kernel with that many inputs."""
        if kernel is self._kernel and inputs == self.inputs:
            return
        block, rows = kernel.block, workspace_rows(kernel, inputs)
        wide = 2 * 8 * block
        self._doubles = self._memory[:wide].view(torch.float64).view(2, block)
        self._rows = self._memory[wide : wide + 4 * rows * block].view(torch.float32).view(rows, block)
        self._kernel, self.inputs = kernel, inputs

    def row(self, index: int) -> torch.Tensor:
        """Float32 scratch row `index`, as long as the current block."""
        return self._rows[self.inputs + index, : self.length]

    def double(self, index: int) -> torch.Tensor:
        """Float64 scratch row `index`, as long as the current block."""
        return self._doubles[index, : self.length]

    def spare(self) -> torch.Tensor:
        """The last row, which no kernel uses, for the engine's own checks."""
        return self._rows[-1, : self.length]

    def load(
        self, views: list[torch.Tensor], low: int, high: int, cast: torch.dtype | None, stride: int = 1
    ) -> list[torch.Tensor]:
        """Elements `low` to `high` of each input, as float32 in this worker's rows; rounded to `cast` first, if that is given.

        With a stride, every so manieth of them. Inputs that the kernel wants whole are given as they are.
        """
        self.length = len(range(low, high, stride))
        whole = self._kernel.whole if self._kernel is not None else ()
        rows = [self._rows[i, : self.length] for i in range(len(views))]
        for i, (row, view) in enumerate(zip(rows, views, strict=True)):
            if i in whole:
                rows[i] = view.to(self.device)
                continue
            row.copy_(self._here(view[low:high:stride]))
            if cast is not None and view.dtype != cast:
                rounded = self.spare().view(cast)[: self.length]
                row.copy_(rounded.copy_(row))
        return rows

    def store(self, result: torch.Tensor, out: torch.Tensor) -> None:
        """Round `result` into the output buffer, once."""
        if self._staging is None or result.dtype == out.dtype:
            out.copy_(result)
        else:
            out.copy_(self._staged(out).copy_(result))

    def _here(self, view: torch.Tensor) -> torch.Tensor:
        """On another device than the pool's, raw bytes are moved first and widened there."""
        return view if self._staging is None else self._staged(view).copy_(view)

    def _staged(self, like: torch.Tensor) -> torch.Tensor:
        assert self._staging is not None
        return self._staging[: like.numel() * like.element_size()].view(like.dtype)
