"""Merges keep to their budget, measured from inside and from outside, and give the same bytes whatever it is."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import weft.engine.parts
from merges import METHODS, MIB, environment, linear, merge, plan, recipe, write_config, write_two
from weft.engine.compute import gather
from weft.engine.run import run
from weft.errors import BudgetError
from weft.ops.backends.host import Bound, Tile
from weft.ops.method import Kernel, Pass
from weft.planner.memory import unmerged_parts

CHILD = """
import sys
from pathlib import Path
import numpy, safetensors, weft.engine.finish
from weft.engine.run import run
from weft.planner.config import read_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, make_plan

plan = make_plan(read_config(Path(sys.argv[1])), Options(Budget(int(sys.argv[3]), 0, int(sys.argv[4]))))
if plan.division.compiled:
    weft.ops.backends.compiled.start()  # part of what the process takes before its first task
print("ready", flush=True)
sys.stdin.readline()
summary = run(plan, Path(sys.argv[2]))
print(summary.predicted_ram, summary.measured_ram, flush=True)
"""


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("method", "mebibytes", "workers"),
    [*((method, 64, 2) for method in METHODS), ("ties", 256, 2), ("slerp", 128, 3), ("sce", 128, 2)],
)
def test_memory_keeps_to_the_budget(
    tmp_path: Path, big_models: tuple[Path, Path], method: str, mebibytes: int, workers: int
) -> None:
    config, budget = write_config(tmp_path / "config.yaml", recipe(method, *big_models)), mebibytes * MIB
    arguments = [sys.executable, "-c", CHILD, str(config), str(tmp_path / "out"), str(budget), str(workers)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    before = peak = resident(process.pid)
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.poll() is None:
        now = resident(process.pid)
        peak = max(peak, now)
        if (tmp_path / "out" / "weft.json").exists():
            break
        time.sleep(0.002)
    predicted, measured = map(int, process.communicate()[0].split())
    assert process.returncode == 0
    grown = peak - before
    assert predicted <= budget, "the plan itself is over the budget"
    assert measured <= predicted, f"measured {measured / MIB:.1f} MiB, predicted {predicted / MIB:.1f} MiB"
    assert grown <= predicted, f"seen from outside {grown / MIB:.1f} MiB, predicted {predicted / MIB:.1f} MiB"
    assert measured >= grown / 2 > 4 * MIB, f"{measured / MIB:.1f} MiB from inside, {grown / MIB:.1f} MiB from outside"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_bytes_in_any_memory_with_any_workers(tmp_path: Path, big_models: tuple[Path, Path], method: str) -> None:
    seen = set()
    config = recipe(method, *big_models)
    tiled = []
    for mebibytes, workers in ((64, 1), (96, 3), (1024, 2)):
        out = tmp_path / f"out-{mebibytes}"
        made = plan(config, ram=mebibytes * MIB, workers=workers)
        tiled.append(len(made.schedule.steps) > len(made.recipes))
        merge(config, out, ram=mebibytes * MIB, workers=workers)
        data = out / "model.safetensors"
        seen.add(hashlib.sha256(data.read_bytes()).hexdigest())
        data.unlink()
    assert len(seen) == 1
    assert tiled[0], "the small budget must cut the embedding into tiles, or nothing was compared"


def test_too_small_a_budget_says_what_would_do(tmp_path: Path, big_models: tuple[Path, Path]) -> None:
    config = recipe("ties", *big_models)
    with pytest.raises(BudgetError) as caught:
        plan(config, ram=16 * MIB)
    needed = caught.value.needed
    assert f"it needs at least --ram {needed // MIB}MiB" in str(caught.value) and caught.value.exit_code == 3
    with pytest.raises(BudgetError):
        plan(config, ram=needed - 2 * MIB)
    assert plan(config, ram=needed).predicted_ram <= needed
    summary = merge(config, tmp_path / "out", ram=needed)
    assert summary.measured_ram <= summary.predicted_ram <= needed


def test_what_overtakes_a_slow_part_is_bounded(
    tmp_path: Path, big_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first part of the embedding takes until nothing else moves: no more findings wait for it than the prediction counts."""
    config, workers = recipe("slerp", *big_models), 3
    made = plan(config, ram=512 * MIB, workers=workers)
    slow = made.kernels[[r.name for r in made.recipes].index("model.embed_tokens.weight")]
    moved, waiting = threading.Event(), list[int]()

    def delayed(kernel: Kernel, statistic: Pass, bound: Bound, tile: Tile, low: int, *more: Any) -> Any:
        while kernel is slow and low == 0 and moved.wait(0.3):
            moved.clear()
        if kernel is slow and low > 0 and not resumed:
            waiting.append(low)
            moved.set()
        resumed.update({0} if kernel is slow and low == 0 else ())
        return gather(kernel, statistic, bound, tile, low, *more)

    resumed = set[int]()
    monkeypatch.setattr(weft.engine.parts, "gather", delayed)
    assert run(made, tmp_path / "out") is not None
    assert 0 < len(waiting) < unmerged_parts(workers)


def test_a_run_that_takes_more_than_was_predicted_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(linear(*write_two(tmp_path)), ram=64 * MIB)
    fine = run(made, tmp_path / "fine")
    assert not [warning for warning in fine.warnings if "predicted" in warning]
    monkeypatch.setattr("weft.engine.run.peak_memory", lambda: 1 << 40)
    (warning,) = run(made, tmp_path / "out").warnings
    assert "of RAM, more than the " in warning and "predicted, and more than the 64.00 MiB of --ram: please report" in warning
