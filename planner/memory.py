"""How a memory budget is divided: what a process needs whatever it merges, scratch for each worker, and buffers in the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest

from ..errors import BudgetError
from ..ops.backends.limits import LIVE, SCRATCH
from ..ops.method import Kernel, Step
from .sizes import format_size

OVERHEAD = 12 << 20
"""Resident bytes beside the pool once tasks run: thread stacks, code, the allocator's and libraries' own buffers (measured)."""

PASS_OVERHEAD = 1 << 20
"""The same of each pass of statistics: the code of the operations that only it uses becomes resident (measured)."""

PIPELINE = 128 << 20
"""Bytes of the pool that let reading, computing and writing overlap where single steps are small."""

KEPT_FREE = 1 << 20
"""Bytes of freed blocks that the allocator keeps for a thread at most, as glibc does once it has seen blocks of half of it."""

SLOTS = 2
"""Blocks on their way to a device, or from it, at once: one is copied while the other is computed with."""

DEVICE_ELEMENTS = 1 << 24
"""Elements that a device handles at once at most: enough that starting the work costs little beside doing it."""

SEGMENT = 2 << 20
"""Bytes in which torch asks a device for memory."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What the run may use. `device` is cpu or cuda:N, `processor` what the system calls that device ("" for the CPU)."""

    ram: int
    vram: int
    workers: int
    device: str = "cpu"
    processor: str = ""

    @property
    def on_host(self) -> bool:
        """Whether tensors are computed in the same memory into which they are read."""
        return self.device == "cpu"


@dataclass(frozen=True, slots=True)
class Division:
    """A budget's parts in bytes: `overhead` beside all buffers, the `workspace` of one worker, host `scratch`, all partial
    statistics, the pool, the device.

    On a device a worker handles `blocks` of a kernel's blocks at once, and has `staging` for what is on its way in and out.
    `compiled`: loops are compiled, which is part of `overhead`.
    """

    overhead: int
    workspace: int
    staging: int
    blocks: int
    scratch: int
    state: int
    pool: int
    vram: int
    compiled: bool = False

    @property
    def fixed(self) -> int:
        """RAM beside the pool."""
        return self.overhead + self.scratch + self.state


def active_steps(workers: int) -> int:
    """Steps that may be computed at the same time: so many that a worker never waits for another's last part."""
    return 2 * workers


def unmerged_parts(workers: int) -> int:
    """Parts whose partial statistics are being gathered or wait for those of an earlier part: one of each for a worker."""
    return 2 * workers


def device_workers(budget: Budget) -> int:
    """Threads that keep a device busy: while one waits for its last result, the other has work queued."""
    return min(budget.workers, 2)


def staging_bytes(kernel: Kernel, sizes: Sequence[int]) -> int:
    """Device memory for a block of every input and of the output, as they stand in files, in each slot."""
    return SLOTS * sum(aligned(kernel.block * size) for size in sizes)


def aligned(nbytes: int) -> int:
    """Rounded up so that any element type may begin there."""
    return -(-nbytes // 64) * 64


def workspace_rows(inputs: int) -> int:
    """Float32 rows of a device's workspace: the inputs', and one for rounding."""
    return inputs + 1


def workspace_bytes(kernel: Kernel, inputs: int) -> int:
    """A device's scratch for a kernel: float32 rows of a block each."""
    return aligned(kernel.block * 4 * workspace_rows(inputs))


def scratch_bytes(kernel: Kernel, inputs: int) -> int:
    """What one worker holds beside the pool while NumPy runs a kernel in host memory: chunks of all that is alive at once.

    A function that looks at rows needs whole ones, a direct map its inputs' blocks in float32 and what it makes of them.
    """
    if not isinstance(kernel.map, Step):
        return kernel.scratch_bytes or 4 * kernel.block * (inputs + 6)
    return max(SCRATCH, 8 * LIVE * kernel.width) + SCRATCH // 2


LOOP = 8 << 20
"""Bytes that compiling one loop takes and keeps (measured)."""

LEAST_COMPILED = 1 << 26
"""Elements, each input's counted in each pass, from which on compiled loops pay: some seconds of NumPy's."""


def loops_of(kernels: Sequence[Kernel], inputs: Sequence[int]) -> int:
    """How many different loops these kernels could ask for."""
    found = set()
    for kernel, count in zip(kernels, inputs, strict=True):
        for each in (*kernel.statistics, kernel.map):
            step = getattr(each, "step", each)
            if isinstance(step, Step):
                found.add((type(each), step.function, count))
    return len(found)


def divide(budget: Budget, kernels: Sequence[Kernel], sizes: Sequence[Sequence[int]], *, compiled: bool = False) -> Division:
    """Split a budget for these kernels, one a tensor that is computed; the pool gets what is left.

    `sizes`: bytes of an element of each input and of the output. `compiled`: loops may be compiled for them on the host; they are
    not where that would take more than an eighth of the budget. Raises BudgetError where the device's memory is too small.
    """
    passes = max((len(kernel.statistics) for kernel in kernels), default=0)
    overhead = OVERHEAD + PASS_OVERHEAD * passes + max((kernel.shared_bytes for kernel in kernels), default=0)
    totals = nlargest(active_steps(budget.workers), (kernel.state_bytes for kernel in kernels))
    partial = max((kernel.partial_bytes or kernel.state_bytes for kernel in kernels), default=0)
    # Partial statistics: a total for each tensor that is being computed and one that is joined into a whole, those of parts, and
    # for each worker that of a block beside that of the part to which it is added.
    states = sum(totals) + max(totals, default=0) + (unmerged_parts(budget.workers) + budget.workers) * partial
    states += budget.workers * min(partial, KEPT_FREE)
    if budget.on_host:
        workspace = max((scratch_bytes(k, len(s) - 1) for k, s in zip(kernels, sizes, strict=True)), default=0)
        scratch = budget.workers * workspace
        loops = LOOP * loops_of(kernels, [len(each) - 1 for each in sizes]) if compiled else 0
        compiled = 0 < loops <= budget.ram // 8
        overhead += loops if compiled else 0
        return Division(overhead, workspace, 0, 1, scratch, states, budget.ram - overhead - scratch - states, 0, compiled)

    def on_device(blocks: int) -> Division:
        pairs = list(zip(kernels, sizes, strict=True))
        workspace = max((workspace_bytes(k, len(s) - 1) * blocks for k, s in pairs), default=0)
        staging = max((staging_bytes(k, s) * blocks for k, s in pairs), default=0)
        temporary = max((8 * LIVE * k.block * blocks for k in kernels), default=0)
        each = sum(-(-n // SEGMENT) * SEGMENT for n in (workspace, staging, temporary))
        vram = device_workers(budget) * each + -(-states // SEGMENT) * SEGMENT
        return Division(overhead, workspace, staging, blocks, 0, states, budget.ram - overhead - states, vram)

    blocks = max(DEVICE_ELEMENTS // max((kernel.block for kernel in kernels), default=DEVICE_ELEMENTS), 1)
    while blocks > 1 and on_device(blocks).vram > budget.vram:
        blocks //= 2
    division = on_device(blocks)
    if division.vram > budget.vram:
        needed = division.vram
        raise BudgetError(
            f"--vram {format_size(budget.vram)} is too little: it needs at least {format_size(needed)} (or --device cpu)", needed
        )
    return division
