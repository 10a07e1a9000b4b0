"""Devices: which one `auto` means, and how its memory is measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError where there is no such device.

    `auto` is the CPU: merging is bound by reading and writing, and weft's tiles keep a CPU's caches busy enough for that.
    """
    if wanted in ("auto", "cpu"):
        return "cpu"
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if match is None:
        raise ConfigError(f"--device {wanted}: choose auto, cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(f"--device {wanted}: torch sees {count} CUDA devices here; choose --device cpu")
    return f"cuda:{index}"


def processor_name(device: str) -> str:
    """What the driver calls a CUDA device, which decides a sum's last bits; "" for the CPU."""
    if device == "cpu":
        return ""
    import torch

    return f"cuda on {torch.cuda.get_device_name(torch.device(device))}"


def free_device_memory(device: str) -> int:
    """Free bytes of a CUDA device; 0 for the CPU, whose memory is RAM."""
    if device == "cpu":
        return 0
    import torch

    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(free)


def reset_device_memory(device: str) -> None:
    """Let `peak_device_memory` count from now on, without what torch still keeps of earlier runs."""
    if device != "cpu":
        import torch

        torch.cuda.init()  # type: ignore[no-untyped-call]  # statistics of a device that nothing has used yet are an error
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(torch.device(device))


def peak_device_memory(device: str) -> int:
    """The most bytes that torch held on the device at once."""
    if device == "cpu":
        return 0
    import torch

    return int(torch.cuda.max_memory_reserved(torch.device(device)))


def release_device_memory(device: str) -> None:
    """Give back what torch keeps of a device's memory for later, now that nothing uses it."""
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()


def pin(memory: torch.Tensor) -> None:
    """Fix host memory in its place, so that a device copies from it by itself. Where that is refused, copies are slower only.

    torch's own pinned memory comes in powers of two, and a budget is a promise.
    """
    import torch

    torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)  # type: ignore[no-untyped-call]


def unpin(memory: torch.Tensor) -> None:
    """Undo `pin`, once nothing copies any more."""
    import torch

    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]


def settle(device: str) -> None:
    """Return when what this thread began on the device is done, so that other threads may use it."""
    if device != "cpu":
        import torch

        torch.cuda.current_stream(torch.device(device)).synchronize()


@contextmanager
def own_threads() -> Iterator[None]:
    """Workers tell torch to use no threads of its own; afterwards it has as many as before."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
