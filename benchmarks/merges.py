"""Five merges under one budget, against another tool if it is there: time, and peak resident memory seen from outside.

    python benchmarks/merges.py FOLDER [--size 0.85B] [--ram 1GiB] [--runs 3] [--other PATH/TO/mergekit-yaml]

FOLDER gets the checkpoints, if they are not there, and the results, which are removed. Input files are read once before each run,
so that they are warm. Prints a table in Markdown; docs/benchmarks.md has one with the machine it was made on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from bench_models import make

MIB = 1 << 20


@dataclass(frozen=True)
class Outcome:
    """Seconds and peak resident bytes of a whole process; for weft also its own figures, beyond what it took before its tasks."""

    seconds: float
    peak: int
    measured: int = 0
    predicted: int = 0


def configs(folder: Path) -> dict[str, object]:
    """The five merges."""

    def model(name: str, **parameters: float) -> dict[str, object]:
        return {"model": str(folder / name)} | ({"parameters": parameters} if parameters else {})

    base = str(folder / "base")
    return {
        "passthrough": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [model("base") | {"layer_range": [0, 12]}]},
                {"sources": [model("a") | {"layer_range": [8, 16]}]},
            ],
        },
        "linear": {"merge_method": "linear", "models": [model("a", weight=0.6), model("b", weight=0.4)]},
        "slerp": {"merge_method": "slerp", "base_model": base, "models": [model("base"), model("a")], "parameters": {"t": 0.4}},
        "ties": {
            "merge_method": "ties",
            "base_model": base,
            "models": [model("a", weight=0.6, density=0.5), model("b", weight=0.4, density=0.5)],
        },
        "dare_ties": {
            "merge_method": "dare_ties",
            "base_model": base,
            "models": [model(name, weight=0.3, density=0.53) for name in ("a", "b", "c")],
        },
    }


def run(command: Sequence[str], out: Path) -> Outcome:
    """Run a command to its end; its peak memory is what the system accounts to it."""
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


def merge_with_weft(config: Path, out: Path, ram: str) -> Outcome:
    """One run of weft; its figures come from the last line that a small wrapper prints."""
    code = (
        "import sys, json, weft; s = weft.run(weft.plan(sys.argv[1], ram=sys.argv[3]), sys.argv[2]); "
        "json.dump([s.measured_ram, s.predicted_ram], open(sys.argv[4], 'w'))"
    )
    figures = out.with_suffix(".json")
    outcome = run([sys.executable, "-c", code, str(config), str(out), ram, str(figures)], out)
    measured, predicted = json.loads(figures.read_text())
    figures.unlink()
    return Outcome(outcome.seconds, outcome.peak, measured, predicted)


def warm(folder: Path) -> None:
    """Read all input files, so that every run finds them in memory."""
    for path in folder.glob("*/*.safetensors"):
        with path.open("rb") as file:
            while file.read(16 * MIB):
                pass


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="0.85B")
    parser.add_argument("--ram", default="1GiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--other", help="path of mergekit-yaml, to race against")
    parser.add_argument("--only", nargs="*", help="which merges")
    given = parser.parse_args()
    models, out = given.folder / given.size, given.folder / "out"
    make(models, given.size)
    print("| merge | weft | peak beyond start-up | predicted | whole process | other tool | its peak | times faster |")
    print("|---|---|---|---|---|---|---|---|")
    for name, config in configs(models).items():
        if given.only and name not in given.only:
            continue
        path = given.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "dtype": "bfloat16"}))  # type: ignore[dict-item]
        ours, theirs = [], []
        for _ in range(given.runs):
            warm(models)
            ours.append(merge_with_weft(path, out, given.ram))
            if given.other:
                warm(models)
                theirs.append(run([given.other, str(path), str(out), "--lazy-unpickle", "--quiet"], out))
        shutil.rmtree(out, ignore_errors=True)
        print(row(name, ours, theirs), flush=True)


def row(name: str, ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> str:
    """A line of the table: medians of times, maxima of memory."""
    seconds = statistics.median(o.seconds for o in ours)
    cells = [
        name,
        f"{seconds:.1f} s",
        f"{max(o.measured for o in ours) / MIB:.0f} MiB",
        f"{ours[0].predicted / MIB:.0f} MiB",
        f"{max(o.peak for o in ours) / MIB:.0f} MiB",
    ]
    if theirs:
        other = statistics.median(o.seconds for o in theirs)
        cells += [f"{other:.1f} s", f"{max(o.peak for o in theirs) / MIB:.0f} MiB", f"{other / seconds:.1f}"]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
