"""What the benchmarks share: running a whole command and asking the system what it took, and tables in Markdown."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """Seconds and peak resident bytes of a whole process; for weft also its own figures, beyond what it took before its tasks."""

    seconds: float
    peak: int
    measured: int = 0
    predicted: int = 0
    device_measured: int = 0
    device_predicted: int = 0
    merging: float = 0.0
    read: int = 0


def run(command: Sequence[str], out: Path) -> Outcome:
    """Run a command to its end, with folder `out` out of the way; its peak memory is what the system accounts to it."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return Outcome(seconds, usage.ru_maxrss << 10)


MERGE = """
import json, sys, weft
config, out, figures, options = sys.argv[1:]
s = weft.run(weft.plan(config, **json.loads(options)), out)
figures = open(figures, "w")
json.dump([s.measured_ram, s.predicted_ram, s.measured_vram, s.predicted_vram, s.seconds, s.bytes_read], figures)
"""


def merge_with_weft(config: Path, out: Path, ram: str, **options: str) -> Outcome:
    """One run of weft in a process of its own, with its own figures."""
    figures = out.with_suffix(".json")
    settings = json.dumps({"ram": ram, **options})
    outcome = run([sys.executable, "-c", MERGE, str(config), str(out), str(figures), settings], out)
    own = json.loads(figures.read_text())
    figures.unlink()
    return Outcome(outcome.seconds, outcome.peak, *own)


def warm(files: Iterable[str | Path]) -> None:
    """Read files, so that the next to read them finds them in memory."""
    block = bytearray(16 * MIB)
    for name in files:
        with open(name, "rb", buffering=0) as file:  # noqa: PTH123
            while file.readinto(block):
                pass


def machine() -> str:
    """The machine in a few words."""
    processor = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as file:
        processor = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), processor)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return f"{len(os.sched_getaffinity(0))} cores ({processor}), {memory:.0f} GB, torch {torch.__version__}"


def put_table(path: Path | None, name: str, table: str) -> None:
    """Print a table, or put it into a Markdown file between `<!-- name -->` and `<!-- /name -->`."""
    if path is None:
        print(table)
        return
    text = path.read_text()
    marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"{path} has no place for the table: it needs the lines <!-- {name} --> and <!-- /{name} -->")
    path.write_text(marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text))
