"""A few of the kills, power cuts and failing calls that `make torture` tries in turn (see tests/torture.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_whatever_happens_nothing_is_lost() -> None:
    command = [sys.executable, str(TESTS / "torture.py"), "--each", "2", "--moments", "2"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    report = json.loads(done.stdout)
    assert not report["failures"] and done.returncode == 0, (report["seed"], report["failures"], done.stderr)
    assert sum(report["tried"].values()) == 4 * (6 * 2 + 2 * 2), report
    assert report["outcomes"]["kill: killed"] >= 6 and report["outcomes"]["ENOSPC: exit code 3"] >= 6, report
