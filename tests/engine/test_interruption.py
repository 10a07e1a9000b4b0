"""Runs that are killed, stopped, or begun twice: the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.command import weft
from merges import (
    MIB,
    command,
    environment,
    hashes,
    merge,
    nothing_looks_finished,
    recipe,
    write_config,
)
from weft.engine.status import status

CHILD = """
import sys
from pathlib import Path
from weft.engine.events import BytesRead, RunFinished, RunStarted, TensorDurable, TensorWritten
from weft.engine.run import run
from weft.planner.config import read_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, make_plan

def say(event):
    if isinstance(event, (BytesRead, RunFinished, RunStarted, TensorDurable, TensorWritten)):
        print(type(event).__name__, getattr(event, "reused", ""), flush=True)

run(make_plan(read_config(Path(sys.argv[1])), Options(Budget(int(sys.argv[3]), 0, 1))), Path(sys.argv[2]), say)
"""
"""`weft run` that tells another process what it is at."""


def same(out: Path, undisturbed: Path) -> bool:
    """Whether all files agree; the manifest and summary hold no times."""
    return hashes(out) == hashes(undisturbed)


def start(config: Path, out: Path) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", CHILD, str(config), str(out), str(64 * MIB)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def kill_at(process: subprocess.Popen[str], event: str, number: int) -> tuple[bool, int]:
    """Kill at the event of that kind and number; whether it was reached, and how many tensors had been found done."""
    assert process.stdout is not None
    seen, reused, reached = 0, 0, False
    for line in process.stdout:
        name, *rest = line.split()
        if name == "RunStarted":
            reused = int(rest[0])
        seen += name == event
        if seen == number:
            reached = True
            process.kill()
            break
    process.communicate()
    assert process.returncode == (-signal.SIGKILL if reached else 0)
    return reached, reused


def test_killed_again_and_again(tmp_path: Path, big_models: tuple[Path, Path]) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("ties", *big_models))
    out, chance = tmp_path / "out", random.Random("ties")
    merge(recipe("ties", *big_models), tmp_path / "undisturbed")
    moments = [("RunStarted", 1), ("BytesRead", chance.randint(1, 20)), ("TensorDurable", 1), ("TensorWritten", 2)]
    progress = []
    for event, number in moments:
        reached, reused = kill_at(start(config, out), event, number)
        assert reached, (event, number)
        assert nothing_looks_finished(out) and list(out.glob("*.partial"))
        progress.append(reused)
    assert progress[:3] == [0, 0, 0] and progress[3] >= 1
    reached, reused = kill_at(start(config, out), "never", 1)
    assert not reached and reused >= progress[3]
    result, expected = hashes(out), hashes(tmp_path / "undisturbed")
    assert result == expected
    shutil.rmtree(out)
    shutil.rmtree(tmp_path / "undisturbed")


def test_killed_at_any_time(tmp_path: Path, big_models: tuple[Path, Path]) -> None:
    """The command itself, at moments that nobody chose: after its first partial shard, however long then."""
    config = write_config(tmp_path / "config.yaml", recipe("dare_ties", *big_models))
    chance = random.Random()
    merge(recipe("dare_ties", *big_models), tmp_path / "undisturbed")
    out, waits = tmp_path / "out", [0.0, *sorted(chance.uniform(0, 0.6) for _ in range(3))]
    killed = 0
    for wait in waits:
        process = subprocess.Popen(
            command(config, out, "--ram", "64MiB", "-q", "--workers", "1"), stderr=subprocess.DEVNULL, env=environment()
        )
        while process.poll() is None and not list(out.glob("*.partial")):
            time.sleep(0.002)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        if (out / "weft.json").exists() and not (out / ".weft").exists():
            break
    last = weft("run", config, out, "--ram", "64MiB")
    assert last.code == 0, (waits, last.err)
    assert hashes(out) == hashes(tmp_path / "undisturbed"), waits
    assert killed, waits


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_by_a_signal(tmp_path: Path, big_models: tuple[Path, Path], number: signal.Signals, code: int) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("ties", *big_models))
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(config, out, "--ram", "64MiB", "--workers", "1", "-v"),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment(),
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("written "):
        assert line and not line.startswith("weft:"), line  # what it is at comes first
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert [line for line in errors.splitlines() if "weft" in line] == [
        f"weft: stopped; what is done is kept in {out}: give the same command again to continue"
    ]
    assert errors.endswith("to continue\n") and nothing_looks_finished(out)
    if number != signal.SIGINT:
        return
    again = weft("run", config, out, "--ram", "64MiB")
    assert again.code == 0 and "tensors are done already" in again.err and "reused" in again.out
    merge(recipe("ties", *big_models), tmp_path / "undisturbed")
    assert hashes(out) == hashes(tmp_path / "undisturbed")


def test_two_runs_at_once(tmp_path: Path, big_models: tuple[Path, Path]) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("slerp", *big_models))
    out = tmp_path / "out"
    first = start(config, out)
    assert first.stdout is not None
    while not first.stdout.readline().startswith("TensorWritten"):
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    os.waitpid(first.pid, os.WUNTRACED)  # returns once all its threads stand still
    try:
        before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.partial")}
        seen = status(out)
        assert (seen.state, seen.earlier) == ("running", False) and seen.tensors_done is not None and seen.tensors_done < 14
        second = weft("run", config, out)
        assert second.code == 2
        assert second.err.splitlines()[-1] == f"weft: {out}: another weft is writing to this folder"
        assert {path.name: path.stat().st_mtime_ns for path in out.glob("*.partial")} == before
    finally:
        first.send_signal(signal.SIGCONT)
    first.communicate()
    assert first.returncode == 0
    merge(recipe("slerp", *big_models), tmp_path / "undisturbed")
    assert hashes(out) == hashes(tmp_path / "undisturbed")
