"""Blocks on their way to a device and back, on a stand-in that copies as late as it may: what is not waited for is seen.

The stand-in's copies run when an event that depends on them is waited for, or when its dice say so. A pipeline that fills a slot
before it is widened, computes before the copy is there, or overwrites a result that is still to be copied gives wrong numbers.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from kernel_runs import arguments, merge
from weft.engine.compute import DeviceTile, Fold, arithmetic, bound_map, bound_pass, gather_on_device, transform_on_device
from weft.engine.device_workspace import DeviceWorkspace
from weft.errors import BudgetError
from weft.ops.method import BLOCK, Fallback, Kernel
from weft.ops.registry import methods
from weft.planner.memory import SLOTS, Budget, divide

CPU = torch.device("cpu")


@dataclass
class Task:
    work: Callable[[], object]
    after: list[Task]
    done: bool = False


@dataclass
class LazyStreams:
    """Two queues of copies that run late, in order each, and a computing queue that runs at once what it may."""

    seed: int
    eager: float
    queues: dict[str, list[Task]] = field(default_factory=lambda: {"in": [], "out": []})
    most_waiting: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    def copy_in(self, work: Callable[[], object], after: Iterable[Task]) -> Task:
        return self._queue("in", work, after)

    def copy_out(self, work: Callable[[], object], after: Iterable[Task]) -> Task:
        return self._queue("out", work, after)

    def compute(self, work: Callable[[], object], after: Iterable[Task]) -> Task:
        self.wait(after)
        work()
        return Task(work, [], done=True)

    def wait(self, events: Iterable[Task]) -> None:
        for event in events:
            self._run(event)

    def rest(self) -> None:
        for queue in self.queues.values():
            self.wait(list(queue))

    def _queue(self, name: str, work: Callable[[], object], after: Iterable[Task]) -> Task:
        task = Task(work, list(after))
        self.queues[name].append(task)
        self.most_waiting = max(self.most_waiting, len(self.queues[name]))
        while self.queues[name] and self.chance.random() < self.eager:
            self._run(self.queues[name][0])
        return task

    def _run(self, task: Task) -> None:
        """A task, behind all that stands before it in its queue."""
        for name, queue in self.queues.items():
            if task in queue:
                while not task.done:
                    first = self.queues[name].pop(0)
                    for event in first.after:
                        self._run(event)
                    first.work()
                    first.done = True
                return
        assert task.done, "an event of no queue"


METHODS: dict[str, tuple[list[dict[str, float]], dict[str, float], int | None]] = {
    "linear": ([{"weight": 0.3}, {"weight": 0.6}], {}, None),
    "slerp": ([{}, {}], {"t": 0.3}, 0),
    "ties": ([{}, {"weight": 0.5, "density": 0.4}, {"weight": 0.7, "density": 0.6}], {}, 0),
    "dare_ties": ([{}, {"weight": 0.5, "density": 0.4}], {}, 0),
    "breadcrumbs": ([{}, {"weight": 0.5, "density": 0.8, "gamma": 0.05}], {}, 0),
    "arcee_fusion": ([{}, {}], {}, 0),
}


def run(made: Kernel, inputs: list[torch.Tensor], streams: LazyStreams, blocks: int) -> torch.Tensor:
    """A tensor in one tile, as the executor does it on a device."""
    budget = Budget(1 << 30, 1 << 40, 1, "cuda:0")
    sizes = [*(x.element_size() for x in inputs), 2]
    division = divide(budget, [made], [sizes])
    share = division.workspace // division.blocks * blocks, division.staging // division.blocks * blocks
    space = DeviceWorkspace(CPU, streams, *share, blocks)
    space._memory.fill_(0xFF)
    space._slots.fill_(0xFF)
    tile, n = DeviceTile([x.flatten() for x in inputs], 0, None), inputs[0].numel()
    out = torch.full((n,), torch.nan, dtype=torch.bfloat16)
    statistics: list[Any] = []
    with arithmetic():
        for statistic in made.statistics:
            if isinstance(statistic, Fallback) and not statistic.needed(statistics):
                statistics.append(None)
                continue
            fold = Fold(statistic)
            bound = bound_pass(made, statistic, len(inputs), statistics)
            fold.add(0, n, gather_on_device(made, statistic, bound, tile, 0, n, space, statistics))
            statistics.append(fold.finish(statistics))
        bound = bound_map(made, len(inputs), statistics)
        transform_on_device(made, bound, tile, out, 0, n, space, statistics)
    assert not any(streams.queues.values()), "the tile was called done with copies under way"
    return out.view(inputs[0].shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("blocks", "eager"), [(1, 0.0), (1, 0.5), (2, 0.2), (4, 1.0)])
def test_as_in_memory(method: str, blocks: int, eager: float) -> None:
    models, shared, base = METHODS[method]
    shape = (5 * BLOCK // 256 + 3, 256)
    chance = torch.Generator().manual_seed(3)
    origin = torch.randn(shape, generator=chance) * 0.02
    inputs = [(origin + (i > 0) * torch.randn(shape, generator=chance) * 0.002).bfloat16() for i in range(len(models))]
    made = methods()[method].kernel(arguments(method, shape, models, shared, base))
    expected = merge(method, inputs, models, shared, base).bfloat16()
    streams = LazyStreams(blocks, eager)
    got = run(made, inputs, streams, blocks)
    if method != "slerp":
        assert torch.equal(got, expected)
    else:  # a device adds in an order of its own
        torch.testing.assert_close(got, expected)
    assert eager or streams.most_waiting >= SLOTS, "nothing was on its way while something was computed"


class Careless(LazyStreams):
    """Streams that forget to wait, each for one reason."""

    def __init__(self, forgets: str) -> None:
        super().__init__(0, 0.0)
        self.forgets = forgets

    def compute(self, work: Callable[[], object], after: Iterable[Task]) -> Task:
        return super().compute(work, [] if self.forgets == "loaded" else after)


def test_the_stand_in_sees_what_is_not_waited_for() -> None:
    """Else the test above could not fail."""
    x = [torch.randn(6 * BLOCK).bfloat16() for _ in range(2)]
    made = methods()["linear"].kernel(arguments("linear", (6 * BLOCK,), [{"weight": 0.3}, {"weight": 0.6}]))
    expected = run(made, x, LazyStreams(0, 0.0), 1)
    with pytest.raises(AssertionError):
        assert torch.equal(run(made, x, Careless("loaded"), 1), expected)


def test_the_budget_decides_how_much_is_handled_at_once() -> None:
    made = methods()["ties"].kernel(arguments("ties", (1 << 24,), [{}, {"weight": 1.0, "density": 0.5}], base=0))
    seen = []
    for vram in (8 << 30, 1 << 30, 256 << 20):
        division = divide(Budget(1 << 30, vram, 2, "cuda:0"), [made], [[2, 2, 2]])
        assert division.vram <= vram
        seen.append(division.blocks)
    assert seen[0] > seen[1] > seen[2] >= 1
    with pytest.raises(BudgetError, match="it needs at least"):
        divide(Budget(1 << 30, 1 << 20, 2, "cuda:0"), [made], [[2, 2, 2]])


def test_a_workspace_that_is_closed_holds_nothing_and_waits_for_copies() -> None:
    streams = LazyStreams(0, 0.0)
    space = DeviceWorkspace(CPU, streams, 1 << 16, 1 << 12, 1)
    held = [weakref.ref(space._memory.untyped_storage()), weakref.ref(space._slots.untyped_storage())]
    copied = streams.copy_out(lambda: None, [])
    space.close()
    assert copied.done
    gc.disable()
    try:
        assert [storage() for storage in held] == [None, None]
    finally:
        gc.enable()
