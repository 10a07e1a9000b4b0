"""Six merges against mergekit and against plain copying, in turn, with the inputs in memory: time and peak resident memory.

    python benchmarks/versus.py FOLDER [--size 0.85B] [--ram 1GiB] [--runs 5] [--other PATH/TO/mergekit-yaml]

FOLDER gets the checkpoints, if they are not there, and the results, which are removed. `floor` reads the merge's inputs once and
writes as many bytes as its output has, durably, with plain Python: what a merge costs if computing and starting up are free.
Prints a table in Markdown, or with --write FILE puts it between the lines `<!-- versus -->` and `<!-- /versus -->`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from bench_models import make
from measure import MIB, Outcome, machine, merge_with_weft, put_table, run, warm

FLOOR = """
import os, sys
out, size, *files = sys.argv[1:]
block = memoryview(bytearray(16 << 20))
for name in files:
    with open(name, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
with open(out, "wb", buffering=0) as file:
    left = int(size)
    while left > 0:
        left -= file.write(block[: min(left, len(block))])
    os.fdatasync(file.fileno())
"""


def configs(folder: Path) -> dict[str, dict[str, object]]:
    """The six merges."""

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
        "breadcrumbs": {
            "merge_method": "breadcrumbs",
            "base_model": base,
            "models": [model(name, weight=0.5, density=0.9, gamma=0.01) for name in ("a", "b")],
        },
        "dare_ties": {
            "merge_method": "dare_ties",
            "base_model": base,
            "models": [model(name, weight=0.3, density=0.53) for name in ("a", "b", "c")],
        },
    }


def inputs(config: dict[str, object]) -> set[str]:
    """Folders of the models that a config names."""
    found = set()
    waiting: list[object] = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            found |= {str(item[key]) for key in ("model", "base_model") if isinstance(item.get(key), str)}
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="0.85B")
    parser.add_argument("--ram", default="1GiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--other", help="path of mergekit-yaml, to race against")
    parser.add_argument("--other-runs", type=int, help="its runs, if fewer will do")
    parser.add_argument("--only", nargs="*", help="which merges")
    parser.add_argument("--write", type=Path, help="a Markdown file to put the table into")
    given = parser.parse_args()
    models, out = given.folder / given.size, given.folder / "out"
    make(models, given.size)
    rows = []
    for name, config in configs(models).items():
        if given.only and name not in given.only:
            continue
        path = given.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**config, "dtype": "bfloat16"}))
        files = sorted(str(file) for model in inputs(config) for file in Path(model).glob("*.safetensors"))
        ours, theirs, floors = [], [], []
        for number in range(given.runs):
            warm(files)
            ours.append(merge_with_weft(path, out, given.ram))
            size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
            warm(files)
            floors.append(run([sys.executable, "-S", "-c", FLOOR, str(out.with_suffix(".copy")), str(size), *files], out))
            out.with_suffix(".copy").unlink()
            if given.other and number < (given.other_runs or given.runs):
                warm(files)
                theirs.append(run([given.other, str(path), str(out), "--lazy-unpickle", "--quiet"], out))
        shutil.rmtree(out, ignore_errors=True)
        rows.append(row(name, ours, theirs, floors))
        print(rows[-1], flush=True)
    start = statistics.median(run([sys.executable, "-c", "import weft.engine.run, torch"], out).seconds for _ in range(3))
    columns = ["merge", "weft", "beyond start-up", "predicted", "whole process", "floor"]
    columns += ["mergekit", "its memory", "times faster", "times the floor"]
    command = f"python benchmarks/versus.py FOLDER --size {given.size} --ram {given.ram} --runs {given.runs}"
    head = (
        f"{machine()}; start-up (importing torch included) {start:.1f} s. `{command} --other mergekit-yaml`\n\n"
        f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|\n"
    )
    put_table(given.write, "versus", head + "\n".join(rows))


def row(name: str, ours: Sequence[Outcome], theirs: Sequence[Outcome], floors: Sequence[Outcome]) -> str:
    """A line of the table: medians of times, maxima of memory."""
    seconds = statistics.median(o.seconds for o in ours)
    floor = statistics.median(o.seconds for o in floors)
    cells = [
        name,
        f"{seconds:.1f} s",
        f"{max(o.measured for o in ours) / MIB:.0f} MiB",
        f"{ours[0].predicted / MIB:.0f} MiB",
        f"{max(o.peak for o in ours) / MIB:.0f} MiB",
        f"{floor:.1f} s",
    ]
    if theirs:
        other = statistics.median(o.seconds for o in theirs)
        cells += [f"{other:.1f} s", f"{max(o.peak for o in theirs) / MIB:.0f} MiB", f"{other / seconds:.1f}"]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join([*cells, f"{seconds / floor:.1f}"]) + " |"


if __name__ == "__main__":
    main()
