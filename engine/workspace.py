"""One worker's reused memory: float32 rows and float64 rows of one block each, on the device that computes."""

from __future__ import annotations

import torch

from ..ops.declare import BLOCK
from .pool import Pool


class Workspace:
    """Scratch of one worker; `length` elements of each row are in use. Implements `weft.ops.declare.Scratch`.

    Rows 0 to `inputs` - 1 hold the inputs of a block; a kernel's own scratch rows follow.
    """

    def __init__(self, device: torch.device, rows: int, pool: Pool | None, offset: int) -> None:
        self.device = device
        self.length = BLOCK
        self.inputs = 0
        if pool is not None:
            self._rows = pool.tensor(offset, "F32", rows * BLOCK).view(rows, BLOCK)
            self._doubles = pool.tensor(offset + 4 * rows * BLOCK, "F64", 2 * BLOCK).view(2, BLOCK)
            self._staging: torch.Tensor | None = None
        else:
            self._rows = torch.empty(rows, BLOCK, device=device)
            self._doubles = torch.empty(2, BLOCK, device=device, dtype=torch.float64)
            self._staging = torch.empty(8 * BLOCK, device=device, dtype=torch.uint8)

    def row(self, index: int) -> torch.Tensor:
        """Float32 scratch row `index`, as long as the current block."""
        return self._rows[self.inputs + index, : self.length]

    def double(self, index: int) -> torch.Tensor:
        """Float64 scratch row `index`, as long as the current block."""
        return self._doubles[index, : self.length]

    def spare(self) -> torch.Tensor:
        """The last row, which no kernel uses, for the engine's own checks."""
        return self._rows[-1, : self.length]

    def load(self, views: list[torch.Tensor], low: int, high: int, cast: torch.dtype | None) -> list[torch.Tensor]:
        """Elements `low` to `high` of each input, as float32 in this worker's rows; rounded to `cast` first, if that is given."""
        self.length, self.inputs = high - low, len(views)
        rows = [self._rows[i, : self.length] for i in range(len(views))]
        for row, view in zip(rows, views, strict=True):
            row.copy_(self._here(view[low:high]))
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
