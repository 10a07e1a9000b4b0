"""How a memory budget is divided: what a process needs whatever it merges, scratch for each worker, and buffers in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BudgetError
from ..ops.declare import BLOCK, Kernel
from .sizes import format_size

OVERHEAD = 16 << 20
"""Resident bytes beside the pool once tasks run: thread stacks, the allocator's and libraries' own buffers (measured)."""

PIPELINE = 128 << 20
"""Bytes of the pool that let reading, computing and writing overlap where single steps are small."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the run may use. `device` is cpu or cuda:N."""

    ram: int
    vram: int
    workers: int
    device: str = "cpu"

    @property
    def on_host(self) -> bool:
        """Whether tensors are computed in the same memory into which they are read."""
        return self.device == "cpu"


@dataclass(frozen=True, slots=True)
class Division:
    """A budget's parts in bytes; `rows` float32 rows of scratch a worker."""

    rows: int
    scratch: int
    state: int
    pool: int
    vram: int

    @property
    def fixed(self) -> int:
        """RAM beside the pool."""
        return OVERHEAD + self.scratch + self.state


def active_steps(workers: int) -> int:
    """Steps that may be computed at the same time: so many that a worker never waits for another's last part."""
    return 2 * workers


def scratch_bytes(rows: int) -> int:
    """One worker's scratch: float32 rows, two float64 rows."""
    return BLOCK * (4 * rows + 2 * 8)


def divide(budget: Budget, kernels: Sequence[Kernel], inputs: Sequence[int]) -> Division:
    """Split a budget for these kernels, each with that many inputs. Raises BudgetError where nothing is left for the pool."""
    rows = max((n + kernel.rows for n, kernel in zip(inputs, kernels, strict=True)), default=0) + 1
    state = max((kernel.state_bytes for kernel in kernels), default=0)
    scratch = budget.workers * scratch_bytes(rows)
    # Partial statistics: a total for each active step, and one being filled and one that waits its turn for each worker.
    states = (active_steps(budget.workers) + 2 * budget.workers) * state
    vram = 0 if budget.on_host else scratch + states + budget.workers * _STAGING
    if vram > budget.vram:
        raise BudgetError(
            f"--vram {format_size(budget.vram)} is too little: {format_size(vram)} would do (or --device cpu)",
            vram,
        )
    host = scratch if budget.on_host else 0
    return Division(rows, host, states, budget.ram - OVERHEAD - host - states, vram)


_STAGING = 3 * 8 * BLOCK
"""Bytes of a worker's blocks on the device that are on their way in or out."""
