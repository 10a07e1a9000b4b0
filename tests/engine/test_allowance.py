"""What the process may use, in file trees as containers, pods, batch jobs and services show them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from weft.engine.allowance import LEAST, available_memory, default_workers

GIB = 1 << 30
NO_LIMIT = 9223372036854771712
MACHINE = 64 * GIB
"""What the machine has left."""

SECOND = "32 24 0:28 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
MEMORY = "35 31 0:32 {top} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"
CPU = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 shared:4 - cgroup cgroup rw,cpu,cpuacct"
OTHER = "31 23 0:28 / / rw - overlay overlay rw,lowerdir=/a:/b"


@dataclass(frozen=True)
class Layout:
    """Files of control groups, and what comes of them: free bytes, and cores."""

    name: str
    cgroup: str
    mounts: tuple[str, ...]
    files: Mapping[str, str]
    free: int = MACHINE
    cores: int = 8


def second(limit: object, current: int, files: int = 0, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """A group of version 2, `files` of whose bytes are copies of files."""
    stat = f"anon {current - files}\nfile {files}\ninactive_file {files // 2}\nactive_file {files - files // 2}\n"
    return {
        "memory.max": f"{limit}\n",
        "memory.high": "max\n",
        "memory.current": f"{current}\n",
        "memory.stat": stat,
        **(more or {}),
    }


def first(limit: int, usage: int, files: int = 0, above: int = NO_LIMIT) -> dict[str, str]:
    """A group of version 1; its own counters are smaller than those with the groups below it."""
    stat = f"inactive_file 4096\nhierarchical_memory_limit {above}\ntotal_inactive_file {files}\ntotal_active_file 0\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{usage}\n", "memory.stat": stat}


def at(folder: str, files: Mapping[str, str]) -> dict[str, str]:
    return {f"sys/fs/cgroup/{folder}/{name}": text for name, text in files.items()}


JOB = "system.slice/slurmstepd.scope/job_7"
LAYOUTS = [
    Layout("a machine without limits", "0::/user.slice/user-0.slice/session-1.scope\n", (SECOND.format(top="/"),), {}),
    Layout(
        "a pod that has just downloaded its models",
        "0::/\n",
        (OTHER, SECOND.format(top="/")),
        at(".", second(8 * GIB, 8 * GIB - 4096, files=7 * GIB, more={"cpu.max": "150000 100000\n"})),
        free=7 * GIB + 4096,
        cores=2,
    ),
    Layout(
        "a container that sees the machine's groups",
        "0::/kubepods.slice/pod1.slice/cri-2.scope\n",
        (SECOND.format(top="/"),),
        at("kubepods.slice/pod1.slice/cri-2.scope", second("max", 1 * GIB))
        | at("kubepods.slice/pod1.slice", second(4 * GIB, 1 * GIB) | {"memory.stat": f"slab_reclaimable {GIB}\n"}),
        free=4 * GIB,
    ),
    Layout(
        "a container whose group's name is not that of its mount",
        "0::/../../docker-3.scope\n",
        (SECOND.format(top="/"),),
        at(".", second(2 * GIB, 1 * GIB)) | at("docker-3.scope", second(1 * GIB, 1 * GIB)),
        free=1 * GIB,
    ),
    Layout(
        "the machine's groups seen from a private root",
        "0::/\n",
        (SECOND.format(top="/../.."),),
        at(".", second(32 * GIB, 2 * GIB)),
        free=30 * GIB,
    ),
    Layout(
        "a group that is slowed down before it is full",
        "0::/app\n",
        (SECOND.format(top="/"),),
        at("app", second(16 * GIB, 2 * GIB) | {"memory.high": f"{4 * GIB}\n"}),
        free=2 * GIB,
    ),
    Layout(
        "a step of a Slurm job",
        f"0::/{JOB}/step_0/user/task_0\n",
        (SECOND.format(top="/"),),
        at(f"{JOB}/step_0/user/task_0", second("max", 1 * GIB))
        | at(f"{JOB}/step_0/user", second("max", 1 * GIB))
        | at(f"{JOB}/step_0", second(20 * GIB, 1 * GIB))
        | at(JOB, second(16 * GIB, 6 * GIB, files=1 * GIB, more={"cpu.max": "max 100000\n"})),
        free=11 * GIB,
    ),
    Layout(
        "a step of a Slurm job, version 1",
        "9:cpuset:/slurm/uid_1/job_7\n5:cpu,cpuacct:/slurm\n4:memory:/slurm/uid_1/job_7/step_0/task_0\n1:name=systemd:/\n",
        (MEMORY.format(top="/"), CPU.format(top="/")),
        at("memory/slurm/uid_1/job_7/step_0/task_0", first(NO_LIMIT, 1 * GIB))
        | at("memory/slurm/uid_1/job_7/step_0", first(10 * GIB, 3 * GIB, files=2 * GIB))
        | at("memory/slurm/uid_1/job_7", first(12 * GIB, 3 * GIB, files=2 * GIB))
        | at("memory", first(NO_LIMIT, 50 * GIB)),
        free=9 * GIB,
    ),
    Layout(
        "Docker, version 1",
        "4:memory:/docker/abc\n5:cpu,cpuacct:/docker/abc\n",
        (MEMORY.format(top="/docker/abc"), CPU.format(top="/docker/abc")),
        at("memory", first(2 * GIB, 2 * GIB, files=1 * GIB))
        | at("cpu,cpuacct", {"cpu.cfs_quota_us": "300000\n", "cpu.cfs_period_us": "100000\n"}),
        free=1 * GIB,
        cores=3,
    ),
    Layout(
        "version 1 under a limit that is not seen",
        "4:memory:/kubepods/pod1/c2\n5:cpu,cpuacct:/kubepods/pod1/c2\n",
        (MEMORY.format(top="/kubepods/pod1/c2"), CPU.format(top="/kubepods/pod1/c2")),
        at("memory", first(NO_LIMIT, 1 * GIB, above=5 * GIB))
        | at("cpu,cpuacct", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}),
        free=4 * GIB,
    ),
    Layout(
        "both versions, memory in the first",
        "4:memory:/job\n0::/user.slice\n",
        (
            "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
            MEMORY.format(top="/"),
        ),
        at("memory/job", first(3 * GIB, 1 * GIB)) | at("unified/user.slice", {"cgroup.procs": "1\n"}),
        free=2 * GIB,
    ),
    Layout(
        "a mount under a name with a blank, beside lines that mean nothing",
        "nonsense\n0::/a\n",
        ("", "nonsense", SECOND.format(top="/").replace("/sys/fs/cgroup", "/control\\040groups")),
        {f"control groups/a/{name}": text for name, text in second(3 * GIB, 1 * GIB).items()},
        free=2 * GIB,
    ),
    Layout(
        "a group that holds more than its limit",
        "0::/\n",
        (SECOND.format(top="/"),),
        at(".", second(1 * GIB, 2 * GIB)),
        free=LEAST,
    ),
    Layout(
        "numbers that are none, and no time at all",
        "0::/\n",
        (SECOND.format(top="/"),),
        at(".", second("many", 2 * GIB, more={"cpu.max": "100 0\n"})),
    ),
    Layout(
        "less than one core",
        "0::/\n",
        (SECOND.format(top="/"),),
        at(".", {"cpu.max": "20000 100000\n"}),
        cores=1,
    ),
]


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_limits_of_control_groups(tmp_path: Path, layout: Layout, many_cores: None) -> None:
    write(tmp_path, layout)
    assert available_memory(tmp_path) == layout.free
    assert default_workers(tmp_path) == layout.cores


def test_what_the_machine_has_left_bounds_all(tmp_path: Path) -> None:
    write(tmp_path, Layout("", "0::/\n", (SECOND.format(top="/"),), at(".", second(80 * GIB, 1 * GIB))))
    assert available_memory(tmp_path) == MACHINE


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert available_memory(tmp_path) >= LEAST
    assert 1 <= default_workers(tmp_path) <= 8


def write(root: Path, layout: Layout) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {MACHINE >> 9} kB\nMemAvailable: {MACHINE >> 10} kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": layout.cgroup,
        "proc/self/mountinfo": "".join(f"{line}\n" for line in layout.mounts),
        **layout.files,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
