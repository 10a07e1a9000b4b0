"""Devices: which one `auto` means, and how its memory is measured."""

from __future__ import annotations

import re

import torch

from ..errors import ConfigError


def choose_device(wanted: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises ConfigError where there is no such device.

    `auto` is the CPU: merging is bound by reading and writing, and weft's tiles keep a CPU's caches busy enough for that.
    """
    if wanted in ("auto", "cpu"):
        return "cpu"
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if match is None:
        raise ConfigError(f"--device {wanted}: choose auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(match[1] or 0)
    if index >= count:
        raise ConfigError(f"--device {wanted}: torch sees {count} CUDA devices here; choose --device cpu")
    return f"cuda:{index}"


def free_device_memory(device: str) -> int:
    """Free bytes of a CUDA device; 0 for the CPU, whose memory is RAM."""
    if device == "cpu":
        return 0
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(free)


def reset_device_memory(device: torch.device) -> None:
    """Let `peak_device_memory` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_device_memory(device: torch.device) -> int:
    """The most bytes that torch held on the device at once."""
    return int(torch.cuda.max_memory_reserved(device)) if device.type == "cuda" else 0
