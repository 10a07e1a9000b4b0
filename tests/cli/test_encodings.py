"""Terminals of every encoding, and streams that the caller closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.models import SLICES, write_model
from merges import environment


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), shards=2, seed=1)
    Path("merge.yaml").write_text(SLICES + "dtype: float16\n")


EVERY_COMMAND = """
import sys
from unittest.mock import patch
from weft.cli.main import _command
from weft.cli.terminal import print_anything
COMMANDS = [
    ["--help"], ["plan", "merge.yaml", "-v"], ["run", "merge.yaml", "out", "-v"], ["explain", "merge.yaml", "*layers.0.mlp.up*"],
    ["inspect", "a"], ["diff", "a", "b"], ["verify", "out"], ["status", "out"], ["methods"], ["plan", "nichts-f\\u00fcr.yaml"],
]
for words in COMMANDS:
    with patch.object(sys, "argv", ["weft", *words]):
        message, code = _command()
    assert code in (0, 2), (words, code, message)
    print(message)
"""


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_no_command_ends_at_a_character(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EVERY_COMMAND],
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    shown = done.stdout.decode(encoding)
    assert "->" in shown and "1.06 K parameters" in shown and "nichts-f" in shown


def test_closed_streams_get_no_file_of_ours() -> None:
    """A file that got number 1 or 2 would take whatever a library prints."""
    command = f"{sys.executable} -m weft run merge.yaml out <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=environment(), check=False).returncode == 0
    assert (Path("out") / "weft.json").is_file()


def test_a_full_disk_behind_the_output_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no such device")
    command = f"{sys.executable} -m weft methods > /dev/full"
    done = subprocess.run(["sh", "-c", command], capture_output=True, env=environment(), check=False)
    assert done.returncode == 3 and b"Traceback" not in done.stderr and b"could not be written" in done.stderr


def test_output_that_is_lost_in_the_end_is_no_success() -> None:
    """A short text waits in Python's buffer until the command ends."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no such device")
    command = f"{sys.executable} -m weft --version > /dev/full"
    assert subprocess.run(["sh", "-c", command], env=environment() | {"PYTHONUNBUFFERED": ""}, check=False).returncode == 1
