"""Kills weft, cuts its power and lets its calls fail, again and again, and looks at what is left: `python tests/torture.py`.

Each trial runs in a process of its own, forked from this one. What must hold after every fault:

- a folder that says it is complete is exactly the earlier or exactly the new result;
- whoever loads it as transformers does gets exactly the one or the other, or nothing;
- the same command ends with the bytes of an undisturbed run;
- it computes no tensor that had become durable.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from faults import PARTIAL, WRITING, Fault, Injector
from merges import MODULES, SIDE, hashes, linear, plan, recipe, small_tensors, write_model
from weft.engine.events import Event, Observer, TaskStarted, ignore
from weft.engine.folder import OutputFolder
from weft.engine.journal import read_records
from weft.engine.repair import end_swap, repair
from weft.engine.run import run
from weft.engine.verify import verify
from weft.errors import WeftError
from weft.planner.plan import Plan

LONGEST = 60
"""Seconds after which a run that does not end counts as one that hangs."""


@dataclass(frozen=True)
class Scenario:
    """A plan, the folder it begins with (None: nothing), and what must come out."""

    name: str
    plan: Plan
    start: Path | None
    expected: dict[str, str]
    earlier: dict[str, str] | None
    loads: tuple[dict[str, str], ...]
    repairs: bool = False


@dataclass
class Report:
    """What was tried, and what went wrong."""

    seed: int
    tried: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def scenarios(work: Path) -> list[Scenario]:
    """A merge into nothing, and three ways to change a finished result."""
    large = {"lm_head.weight": torch.linspace(-1, 1, 32_000).view(2000, 16)}  # many pages, which may be written past the cache
    sides = SIDE | MODULES, SIDE
    base, other = (
        write_model(work / name, small_tensors(seed) | large, side=sides[seed]) for seed, name in enumerate(("base", "other"))
    )
    slerp, ties = recipe("slerp", base, other), recipe("dare_ties", base, other)
    changed = {**slerp, "parameters": {"t": [{"filter": "mlp", "value": 0.7}, {"value": 0.4}]}}
    made = [
        make("fresh", work, plan(ties, shard_size=3000), None),
        make("another t", work, plan(changed, shard_size=3000), plan(slerp, shard_size=3000)),
        make("fewer shards", work, plan(linear(base, other)), plan(linear(base, other), shard_size=4000)),
    ]
    damaged = make("repair", work, plan(ties, shard_size=3000), plan(ties, shard_size=3000))
    assert damaged.start is not None
    shard = sorted(damaged.start.glob("*.safetensors"))[2]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    files = hashes(damaged.start)
    loads = (*damaged.loads, load(damaged.start))
    return [*made, Scenario("repair", damaged.plan, damaged.start, damaged.expected, files, loads, repairs=True)]


def make(name: str, work: Path, made: Plan, before: Plan | None) -> Scenario:
    """Run what the scenario needs undisturbed."""
    folder = work / name.replace(" ", "-")
    ended = in_child(lambda: run(made, folder / "expected"))
    start = None
    if before is not None:
        start = folder / "start"
        ended |= in_child(lambda: run(before, start))
    assert ended == 0
    loads = [load(path) for path in (start, folder / "expected") if path is not None]
    return Scenario(name, made, start, hashes(folder / "expected"), hashes(start) if start else None, tuple(loads))


def in_child(work: Callable[[], object]) -> int:
    """Do it in a process of its own; how that ended, as `os.waitpid` says."""
    return os.waitpid(fork(work), 0)[1]


def fork(work: Callable[[], object]) -> int:
    """Begin it in a forked process: this one never has a second thread. Its exit code is that of the command line."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        signal.alarm(LONGEST)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell lets its background jobs ignore
        torch.set_num_threads(1)
        work()
        code = 0
    except WeftError as error:
        code = error.exit_code
    except KeyboardInterrupt:  # outside of the run itself
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def load(folder: Path) -> dict[str, str]:
    """Each tensor's hash as a loader finds it; empty where it finds no model or refuses one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        json.loads((folder / "config.json").read_text())
        if (folder / "model.safetensors").exists():
            return tensors(folder / "model.safetensors")
        index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
        found = {name: tensors(folder / name) for name in set(index.values())}
        return {name: found[shard][name] for name, shard in index.items()}
    return {}


def tensors(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    return {
        name: hashlib.sha256(data[begin + spec["data_offsets"][0] : begin + spec["data_offsets"][1]]).hexdigest()
        for name, spec in header.items()
        if name != "__metadata__"
    }


class Trials:
    """One scenario's trials."""

    def __init__(self, scenario: Scenario, work: Path, report: Report) -> None:
        self.scenario, self.report = scenario, report
        self.out, self.attic, self.notes = work / "trial" / "out", work / "trial-attic", work / "notes"

    def begin(self) -> None:
        for folder in (self.out.parent, self.attic):
            shutil.rmtree(folder, ignore_errors=True)
        self.out.parent.mkdir()
        if self.scenario.start is not None:
            shutil.copytree(self.scenario.start, self.out)

    def calls(self) -> list[str]:
        """The calls of an undisturbed run."""
        self.begin()
        assert self.child(Fault("none")) == 0
        return list(json.loads(self.notes.read_text())["calls"])

    def child(self, fault: Fault) -> int:
        """Run under a fault; "again" is the same command afterwards, undisturbed."""
        self.notes.write_text("{}")
        computed: list[str] = []

        def watch(event: Event) -> None:
            if isinstance(event, TaskStarted) and event.kind == "compute":
                computed.append(event.tensor)

        def work() -> None:
            injector = Injector(self.out.parent, self.attic, fault)
            if fault.kind != "again":
                injector.install()
            try:
                self.command(watch)
            finally:
                self.notes.write_text(json.dumps({"calls": injector.calls, "computed": computed}))

        return in_child(work)

    def command(self, observer: Observer = ignore) -> None:
        """What the command line does: run, or verify and repair."""
        if not self.scenario.repairs:
            run(self.scenario.plan, self.out, observer)
            return
        end_swap(self.out)
        verdict = verify(self.out)
        if verdict.damage:
            repair(self.scenario.plan, self.out, verdict.tensors, observer)

    def trial(self, fault: Fault, kind: str) -> None:
        """One fault, and what must hold after it."""
        self.begin()
        ended = self.child(fault)
        self.judge(kind, str(fault), ended, killed=fault.kind in ("kill", "power"))

    def random_end(self, chance: random.Random, longest: float, number: int, kind: str) -> None:
        """A signal from outside, at a moment that nobody chose."""
        self.begin()
        child = fork(self.command)
        delay = chance.uniform(0, longest)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)
        self.judge(kind, f"{kind} after {delay:.4f} s", os.waitpid(child, 0)[1], killed=number == signal.SIGKILL)

    def judge(self, kind: str, what: str, ended: int, *, killed: bool) -> None:
        scenario, report = self.scenario, self.report
        report.tried[kind] += 1
        code = os.waitstatus_to_exitcode(ended)
        report.outcomes[f"{kind}: {'killed' if code == -signal.SIGKILL else f'exit code {code}'}"] += 1
        problems = []
        if code not in (0, 2, 3, 130) and not (killed and code == -signal.SIGKILL):
            problems.append(f"ended with {code}")
        problems += self.look()
        durable = self.durable()
        again = self.child(Fault("again"))
        if again != 0:
            problems.append(f"the same command ended with {os.waitstatus_to_exitcode(again)}")
        elif (result := self.result()) != scenario.expected:
            names = {*result, *scenario.expected}
            problems.append(f"another result: {sorted(n for n in names if result.get(n) != scenario.expected.get(n))}")
        else:
            twice = set(json.loads(self.notes.read_text()).get("computed", ())) & durable
            if twice:
                problems.append(f"computed although durable: {sorted(twice)}")
        report.failures += [f"{scenario.name}, {what}: {problem}" for problem in problems]

    def result(self) -> dict[str, str]:
        try:
            return hashes(self.out)
        except AssertionError as error:
            return {"unfinished": str(error)}

    def look(self) -> Iterator[str]:
        """What is wrong with what a fault left behind."""
        known = [self.scenario.expected, *([self.scenario.earlier] if self.scenario.earlier else [])]
        if self.out.is_dir() and OutputFolder(self.out).manifest() is not None:
            files = {
                path.relative_to(self.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in self.out.rglob("*")
                if path.is_file() and path.suffix != ".partial" and OutputFolder(self.out).work not in path.parents
            }
            if files not in known:
                yield f"says that it is complete, and is neither result: {sorted(files)}"
        if (found := load(self.out)) and found not in self.scenario.loads:
            yield "a loader finds parts of two results"

    def durable(self) -> set[str]:
        """Tensors that the journal proves to be on the disk for this plan."""
        records = read_records(OutputFolder(self.out).journal)
        wanted = {recipe.name: recipe.digest for recipe in self.scenario.plan.recipes}
        return {name for name, record in records.items() if wanted.get(name) == record.digest}


ERRORS = (errno.ENOSPC, errno.EIO, errno.EINTR)


def torture(work: Path, seed: int, each: int | None, moments: int) -> Report:
    """`each`: trials of each kind in each scenario, spread over its calls; None: one for every call. `moments`: signals."""
    report, chance = Report(seed), random.Random(seed)
    for scenario in scenarios(work):
        trials = Trials(scenario, work, report)
        begin = time.monotonic()
        calls = trials.calls()
        longest = (time.monotonic() - begin) * 1.5

        def some(numbers: list[int]) -> list[int]:
            return numbers if each is None or each >= len(numbers) else sorted(chance.sample(numbers, each))

        every = list(range(1, len(calls) + 1))
        writing = [n for n in every if calls[n - 1] in WRITING]
        for kind in ("kill", "power"):
            for at in some(every):
                for after in (False, True) if each is None else (chance.random() < 0.5,):
                    trials.trial(Fault(kind, at, after, seed=chance.getrandbits(32)), kind)
        for number in ERRORS:
            for at in some(writing if number == errno.ENOSPC else every):
                lasting = number == errno.ENOSPC and chance.random() < 0.5
                trials.trial(Fault("error", at, number=number, lasting=lasting), errno.errorcode[number])
        for at in some([n for n in every if calls[n - 1] in PARTIAL]):
            trials.trial(Fault("short", at), "short")
        for _ in range(moments):
            trials.random_end(chance, longest, signal.SIGKILL, "kill at any moment")
            trials.random_end(chance, longest, signal.SIGINT, "Ctrl-C at any moment")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, help="trials of each kind in each scenario; all calls in turn if not given")
    parser.add_argument("--moments", type=int, default=100, help="signals at random moments in each scenario")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--folder", help="where to work: by default in memory, where a sync costs nothing")
    given = parser.parse_args()
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=given.folder or memory) as work:
        report = torture(Path(work), given.seed, given.each, given.moments)
    print(json.dumps({name: getattr(report, name) for name in ("seed", "tried", "outcomes", "failures")}, indent=1))
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
