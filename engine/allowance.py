"""What this process may use of the machine: memory and cores, within its container, pod, batch job or service.

Linux keeps such limits in control groups, a tree of folders. A process is bound by its own group and by every one above it, and
may see only some of them: a container sees its own group as the root.

    /proc/self/cgroup      which group the process is in, in the one hierarchy of version 2, or in one a resource
    /proc/self/mountinfo   where a hierarchy is mounted, and which of its groups is the folder at the top
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")

LEAST = 64 << 20
"""Bytes that are said to be available at least: what is too little for a merge says how much would do."""

UNKNOWN = 4 << 30
"""Bytes that are taken to be available where the system tells nothing."""

_MOST_WORKERS = 8

_RECLAIMABLE = ("inactive_file", "active_file", "slab_reclaimable")
"""What of a group's memory the kernel gives up when somebody wants it: copies of files, and its own caches."""


@dataclass(frozen=True, slots=True)
class _Names:
    """How a version of control groups calls its files."""

    limits: tuple[str, ...]
    usage: str
    total: str
    """Put before a name in memory.stat for what a group and those below it hold together."""


_FIRST = _Names(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_")
_SECOND = _Names(("memory.max", "memory.high"), "memory.current", "")


def available_memory(root: Path = ROOT) -> int:
    """Bytes of memory that can be had without swapping; `root` stands for the root of the file system."""
    found = list(_free_in_groups(root))
    with suppress(OSError, ValueError, KeyError):
        found.append(_table(root / "proc/meminfo")["MemAvailable:"] << 10)
    if not found:
        with suppress(ValueError, OSError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(min(found, default=UNKNOWN), LEAST)


def default_workers(root: Path = ROOT) -> int:
    """One worker a core that this process may use, at most eight: merging is bound by memory and disk, not by arithmetic."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _MOST_WORKERS, *_quotas(root)))


def _free_in_groups(root: Path) -> Iterator[int]:
    """For each group that bounds this process: its limit, less what it holds and cannot give up."""
    for names, group in _groups("memory", root):
        statistics: Mapping[str, int] = {}
        with suppress(OSError, ValueError):
            statistics = _table(group / "memory.stat")
        limits = [
            statistics[key] for key in ("hierarchical_memory_limit",) if key in statistics
        ]  # of groups that are not seen, too
        for name in names.limits:
            with suppress(OSError, ValueError):  # "max": there is no limit
                limits.append(int((group / name).read_text()))
        with suppress(OSError, ValueError):
            used = int((group / names.usage).read_text())
            held = used - sum(statistics.get(names.total + name, statistics.get(name, 0)) for name in _RECLAIMABLE)
            yield from (limit - max(held, 0) for limit in limits)


def _quotas(root: Path) -> Iterator[int]:
    """For each group that bounds this process: so many cores' time it may take, rounded up."""
    for names, group in _groups("cpu", root):
        with suppress(OSError, ValueError, ZeroDivisionError):
            if names is _SECOND:
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
            if quota > 0:
                yield math.ceil(quota / period)


def _groups(controller: str, root: Path) -> Iterator[tuple[_Names, Path]]:
    """The folders of this process's group and of those above it, as far as they are mounted here."""
    with suppress(OSError, ValueError):
        paths = _own_paths(root / "proc/self/cgroup")
        for mount in _mounts(root / "proc/self/mountinfo"):
            if mount.kind == "cgroup2" and "" in paths:
                names, path = _SECOND, paths[""]
            elif mount.kind == "cgroup" and controller in mount.settings and controller in paths:
                names, path = _FIRST, paths[controller]
            else:
                continue
            below = _below(mount.top, path)
            for count in range(len(below), -1, -1):
                yield names, (root / mount.point.lstrip("/")).joinpath(*below[:count])


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted file system: folder `top` of it is seen at `point`."""

    top: str
    point: str
    kind: str
    settings: tuple[str, ...]


def _mounts(file: Path) -> Iterator[_Mount]:
    for line in file.read_text(errors="surrogateescape").splitlines():
        before, _, after = (part.split() for part in line.partition(" - "))
        if len(before) >= 5 and len(after) >= 3:
            yield _Mount(_unescaped(before[3]), _unescaped(before[4]), after[0], tuple(after[2].split(",")))


def _own_paths(file: Path) -> dict[str, str]:
    """The process's group by controller; that of version 2 under ""."""
    found = {}
    for line in file.read_text(errors="surrogateescape").splitlines():
        number, controllers, path, *_ = *line.split(":", 2), "", ""
        for controller in controllers.split(",") if number != "0" else [""]:
            found[controller] = path
    return found


def _below(top: str, path: str) -> list[str]:
    """The way from the group that is mounted to the process's own; none where the mount shows another part of the tree."""
    above, own = ([name for name in text.split("/") if name] for text in (top, path))
    if own[: len(above)] != above or ".." in own:
        return []
    return own[len(above) :]


def _table(file: Path) -> dict[str, int]:
    """A file of lines of a name and a number."""
    return {words[0]: int(words[1]) for line in file.read_text().splitlines() if len(words := line.split()) >= 2}


def _unescaped(text: str) -> str:
    """A field of mountinfo: blanks and their like stand there as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
