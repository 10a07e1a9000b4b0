"""How a memory budget is divided: what a process needs whatever it merges, scratch for each worker, and buffers in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BudgetError
from ..ops.declare import Kernel
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
    """A budget's parts in bytes: one worker's `workspace` and device `staging`, all partial statistics, the pool, the device."""

    workspace: int
    staging: int
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


def workspace_rows(kernel: Kernel, inputs: int) -> int:
    """Float32 rows of a worker's workspace: the inputs', the kernel's own, and one for the engine's checks."""
    return inputs + kernel.rows + 1


def workspace_bytes(kernel: Kernel, inputs: int) -> int:
    """One worker's scratch for a kernel: float32 rows and two float64 rows of a block each."""
    nbytes = kernel.block * (4 * workspace_rows(kernel, inputs) + 2 * 8)
    return -(-nbytes // 64) * 64


def divide(budget: Budget, kernels: Sequence[Kernel], inputs: Sequence[int]) -> Division:
    """Split a budget for these kernels, each with that many inputs; the pool gets what is left.

    Raises BudgetError where the device's memory is too small.
    """
    workspace = max((workspace_bytes(kernel, n) for n, kernel in zip(inputs, kernels, strict=True)), default=0)
    block = max((kernel.block for kernel in kernels), default=0)
    state = max((kernel.state_bytes for kernel in kernels), default=0)
    partial = max((kernel.partial_bytes or kernel.state_bytes for kernel in kernels), default=0)
    scratch = budget.workers * workspace
    # Partial statistics: a total for each active step, and one being filled and one that waits its turn for each worker.
    states = active_steps(budget.workers) * state + 2 * budget.workers * partial
    # On another device, a block of the widest type on its way in or out, and kernels' own temporaries of a few rows.
    staging = 0 if budget.on_host else 8 * block
    vram = 0 if budget.on_host else scratch + states + budget.workers * 4 * staging
    if vram > budget.vram:
        raise BudgetError(
            f"--vram {format_size(budget.vram)} is too little: {format_size(vram)} would do (or --device cpu)", vram
        )
    host = scratch if budget.on_host else 0
    return Division(workspace, staging, host, states, budget.ram - OVERHEAD - host - states, vram)
