"""Hands out a plan's tensors one by one instead of writing them, under the same budget."""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from ..planner.plan import Plan
from .events import Event, TensorWritten
from .executor import Executor
from .fetch import fetch
from .journal import Record
from .pool import torch_dtype
from .router import check_can_route, prepare_routers
from .threads import Crew, persistently


class _Stopped(Exception):
    """The receiver wants no more."""


class _Collector:
    """Takes the place of shards and journal: gathers each tensor's bytes until it is complete.

    While a complete tensor waits for the receiver, nothing more is gathered: what is computed stays in the pool, and beside it
    there are only the tensor that was handed out and the one that follows. What waits depends on the receiver alone, so the
    writers that wait for it cannot wait for each other.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._starts = [[plan.places[number].offset for number in shard.recipes] for shard in plan.shards]
        self._parts: dict[int, torch.Tensor] = {}
        self._left: dict[int, int] = {}
        self._complete: set[int] = set()
        self._changed = threading.Condition()
        self._stopping = False

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Keep bytes of the tensor that stands at this place."""
        number = self._plan.shards[shard].recipes[bisect_right(self._starts[shard], offset) - 1]
        place = self._plan.places[number]
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or not self._complete)
            if self._stopping:
                raise _Stopped
            if number not in self._parts:
                self._parts[number] = torch.empty(place.nbytes, dtype=torch.uint8)
                self._left[number] = place.nbytes
            part = self._parts[number]
        if len(data):
            memoryview(part.numpy().data)[offset - place.offset :][: len(data)] = data
        with self._changed:
            self._left[number] -= len(data)
            if not self._left[number]:
                self._complete.add(number)

    def sync(self, shards: set[int]) -> None:
        """Nothing lasts."""

    def add(self, records: Iterable[Record]) -> None:
        """Nothing is recorded."""

    def take(self, number: int) -> torch.Tensor:
        """A complete tensor, which is no longer kept here."""
        recipe = self._plan.recipes[number]
        with self._changed:
            flat = self._parts.pop(number, torch.empty(0, dtype=torch.uint8))
        return flat.view(torch_dtype(recipe.dtype)).view(recipe.shape)

    def received(self, number: int) -> None:
        """The receiver has the tensor."""
        with self._changed:
            self._complete.discard(number)
            self._changed.notify_all()

    def stop(self) -> None:
        """Whatever is written from now on is refused."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()


def stream(plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for every output tensor, in the order in which they are done.

    Memory is the plan's budget, and beside it the tensor that is handed out and one that waits. Closing the iterator stops the
    work. Raises what a run raises.
    """
    check_can_route(plan, show=False)
    inputs = fetch(plan, quiet=True)
    numbers = {recipe.name: n for n, recipe in enumerate(plan.recipes)}
    done: queue.Queue[tuple[int, torch.Tensor] | BaseException | None] = queue.Queue(maxsize=1)
    stopping = threading.Event()
    collector = _Collector(plan)
    threads = torch.get_num_threads()

    def hand_over(item: tuple[int, torch.Tensor] | BaseException | None) -> None:
        while not stopping.is_set():
            try:
                done.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
        raise _Stopped

    def observe(event: Event) -> None:
        if isinstance(event, TensorWritten):
            number = numbers[event.name]
            hand_over((number, collector.take(number)))

    def work(job: int, thread: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare_routers(plan, Path(folder), inputs)
            execute()

    def execute() -> None:
        with Executor(plan, plan.graph, plan.schedule, inputs, collector, collector, observe) as executor:
            try:
                executor.run()
            except BaseException:
                collector.stop()  # or writers would wait for a receiver who gets nothing more
                raise

    def report(outcome: object, error: BaseException | None) -> None:
        with contextlib.suppress(_Stopped):
            hand_over(error)  # raised again where the tensors are received

    worker: Crew[int] = Crew("stream", 1, work, report)
    try:
        worker.put(0)
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                try:
                    raise item
                finally:
                    del item
            number, tensor = item
            del item
            collector.received(number)
            yield plan.recipes[number].name, tensor
            del tensor
    finally:
        stopping.set()
        collector.stop()
        persistently(partial(worker.close, drop=True))
        with contextlib.suppress(queue.Empty):
            done.get_nowait()
        torch.set_num_threads(threads)
