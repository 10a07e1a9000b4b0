"""What Linux and macOS do differently, tried here by taking away what macOS does not have."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.command import weft
from merges import hashes, linear, merge, write_two
from weft.engine.system import sync_data, sync_folder

LINUX_ONLY = ("RWF_NOWAIT", "posix_fallocate", "posix_fadvise", "fdatasync", "O_DIRECT")


def test_a_merge_without_what_only_linux_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = write_two(tmp_path)
    merge(linear(base, other), tmp_path / "linux")
    for name in LINUX_ONLY:
        monkeypatch.delattr(os, name, raising=False)
    merge(linear(base, other), tmp_path / "macos")
    assert hashes(tmp_path / "macos") == hashes(tmp_path / "linux")


@pytest.mark.parametrize("refuses", [False, True], ids=["a file system that flushes", "one that cannot"])
def test_syncs_leave_the_cache_of_a_mac_s_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: bool) -> None:
    called: list[int] = []

    def flush(handle: int, command: int) -> None:
        called.append(command)
        if refuses:
            raise OSError(errno.ENOTSUP, "no")

    synced: list[int] = []
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", flush)
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.delattr(os, "fdatasync", raising=False)
    with (tmp_path / "file").open("wb") as file:
        sync_data(file.fileno())
    sync_folder(tmp_path)
    assert called == [51, 51] and len(synced) == (2 if refuses else 0)


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for command in ("methods", "run"):
        assert weft(command).line == "Windows is not supported: use WSL"
    code = "import sys, weft; sys.platform = 'win32'; weft.run"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("PlatformError: Windows is not supported: use WSL\n"), done.stderr
