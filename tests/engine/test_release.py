"""What a run takes (memory, threads, descriptors) is given back when it ends, however it ends, without a garbage collection."""

from __future__ import annotations

import errno
import gc
import json
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from merges import MIB, environment, linear, merge, plan, recipe, write_config, write_two
from weft.engine.events import ignore
from weft.engine.executor import Executor
from weft.engine.fetch import fetch
from weft.engine.stream import _Collector, stream
from weft.errors import WeftError
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, make_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEMORY = """
import gc, json, sys, threading, time, torch, weft
from pathlib import Path
from weft.engine.events import TensorDurable
from weft.engine.system import resident_memory

gc.disable()
out, plan = Path(sys.argv[2]), weft.plan(sys.argv[1], ram="192MiB", workers=2)
least = plan.schedule.arena

def use_up():
    for name, tensor in weft.merge(plan):
        del tensor

def abandon():
    for seconds in (0, 0.2):  # before others write, and while they wait for their turn
        tensors = weft.merge(plan)
        next(tensors)
        time.sleep(seconds)
        del tensors

def fail():
    def observer(event):
        if isinstance(event, TensorDurable):
            raise ValueError("no more")
    try:
        weft.run(plan, out / "failed", observer)
    except ValueError as error:
        kept.append(error)  # as an interactive session keeps the last one, with all that its frames refer to

kept = []
ways = {"run": lambda: weft.run(plan, out / "done"), "used up": use_up, "abandoned": abandon, "failed": fail}
for ram in ("64MiB", "192MiB"):
    weft.run(weft.plan(sys.argv[1], ram=ram, workers=2), out / ram)  # libraries and the allocator have what they need
found = {"arena": least}
for name, way in ways.items():
    before = resident_memory()
    way()
    found[name] = [resident_memory() - before, sum(t.name.startswith("weft") for t in threading.enumerate())]
print(json.dumps(found))
"""


def test_memory_is_given_back_without_a_garbage_collection(tmp_path: Path, big_models: tuple[Path, Path]) -> None:
    config = write_config(tmp_path / "config.yaml", recipe("slerp", *big_models))
    arguments = [sys.executable, "-c", MEMORY, str(config), str(tmp_path)]
    found = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment()).stdout)
    arena = found.pop("arena")
    assert arena > 100 * MIB
    assert all(grown < arena // 5 and threads == 0 for grown, threads in found.values()), found


def held() -> tuple[int, list[str]]:
    """Open descriptors, and weft's threads."""
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("weft")]
    return len(list(Path("/proc/self/fd").iterdir())), threads


FAILURES: dict[str, tuple[Any, str, BaseException]] = {
    "a file that cannot be opened": (os, "open", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
    "a thread that cannot be started": (threading.Thread, "start", RuntimeError("can't start new thread")),
    "no memory": (mmap, "mmap", OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))),
    "Ctrl-C while threads are started": (threading.Thread, "start", KeyboardInterrupt()),
}


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("way", ["run", "merge"])
def test_each_call_fails_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_collector: None, failure: str, way: str
) -> None:
    owner, name, error = FAILURES[failure]
    config = linear(*write_two(tmp_path))
    made = plan(config)
    merge(config, tmp_path / "before")
    call: Callable[..., Any] = getattr(owner, name)
    before, failed, ended = held(), 0, False
    while not ended:
        left = failed

        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise error.with_traceback(None)
            return call(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, counted)
            try:
                if way == "run":
                    merge(config, tmp_path / f"out-{failed}")
                else:
                    list(stream(made))
                ended = left >= 0
            except (WeftError, OSError, KeyboardInterrupt):  # no RuntimeError: what a person can do about it is said
                pass
        assert held() == before, f"call {failed + 1} of {owner.__name__}.{name}"
        failed += 1
    assert failed > (1 if way == "run" else 0)


@pytest.mark.parametrize("refused", [True, False])
def test_pinned_memory_is_let_go_where_what_follows_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    pinned: list[str] = []

    def pin(memory: torch.Tensor) -> None:
        if refused:
            raise RuntimeError("no more memory can be pinned")
        pinned.append("pinned")

    monkeypatch.setattr("weft.engine.pool.pin", pin)
    monkeypatch.setattr("weft.engine.pool.unpin", lambda memory: pinned.append("let go"))
    base, other = write_two(tmp_path)
    config = load_config(yaml.safe_dump(linear(base, other)))
    made = make_plan(config, Options(Budget(64 * MIB, 256 * MIB, 1, "cuda:0")))
    inputs, sink = fetch(made, quiet=True), _Collector(made)
    (other / "model.safetensors").unlink()
    before = held()
    with pytest.raises((WeftError, RuntimeError)):
        Executor(made, made.graph, made.schedule, inputs, sink, sink, ignore)
    assert pinned == ([] if refused else ["pinned", "let go"]) and held() == before


PRESSED_TWICE = """
import os, signal, sys, threading, time
from pathlib import Path
import weft
from weft.engine import executor, run as module
from weft.engine.events import BytesRead
from weft.engine.shard_writer import ShardWriter

signal.signal(signal.SIGINT, signal.default_int_handler)
writing, closed, pressing = [], [], threading.Event()
write, close = ShardWriter.write, ShardWriter.close

def slow(self, *arguments):
    writing.append(None)
    pressing.set()
    time.sleep(0.3)
    assert not closed, "written to a closed file"
    write(self, *arguments)
    assert not closed, "closed while it was written to"
    writing.pop()

def noted(self):
    closed.append(len(writing))
    close(self)

def press():
    pressing.wait()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    for _ in range(20):
        time.sleep(0.005)
        if not closed:
            os.kill(os.getpid(), signal.SIGINT)

ShardWriter.write, ShardWriter.close = slow, noted
threading.Thread(target=press, daemon=True).start()
try:
    weft.run(weft.plan(sys.argv[1], workers=1), sys.argv[2])
except weft.errors.Interrupted as error:
    print(error)
print(closed, [thread.name for thread in threading.enumerate() if thread.name.startswith("weft")])
"""


def test_ctrl_c_again_and_again_waits_for_the_threads(tmp_path: Path) -> None:
    """As in a notebook, where Python's own handler raises KeyboardInterrupt each time."""
    config = write_config(tmp_path / "config.yaml", linear(*write_two(tmp_path)))
    arguments = [sys.executable, "-c", PRESSED_TWICE, str(config), str(tmp_path / "out")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment(), timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"stopped; what is done is kept in {tmp_path / 'out'}: give the same command again to continue",
        "[0] []",
    ]
