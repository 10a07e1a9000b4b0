"""Hands out a plan's tensors one by one instead of writing them, under the same budget."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

import torch

from ..planner.plan import Plan
from .events import Event, TensorWritten
from .executor import Executor
from .journal import Record
from .pool import TORCH_DTYPES
from .run import fetch


class _Stopped(Exception):
    """The receiver wants no more."""


class _Collector:
    """Takes the place of shards and journal: gathers each tensor's bytes until it is complete."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._parts: dict[int, bytearray] = {}
        self._lock = threading.Lock()

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Keep bytes of the tensor that stands at this place."""
        number, start = self._tensor_at(shard, offset, len(data))
        with self._lock:
            part = self._parts.setdefault(number, bytearray(self._plan.places[number].nbytes))
        part[offset - start : offset - start + len(data)] = data

    def sync(self, shards: set[int]) -> None:
        """Nothing lasts."""

    def add(self, records: Iterable[Record]) -> None:
        """Nothing is recorded."""

    def take(self, number: int) -> torch.Tensor:
        """A complete tensor, which is no longer kept here."""
        recipe = self._plan.recipes[number]
        data = self._parts.pop(number, bytearray())
        dtype = TORCH_DTYPES[recipe.dtype]
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.view(recipe.shape)

    def _tensor_at(self, shard: int, offset: int, nbytes: int) -> tuple[int, int]:
        for number in self._plan.shards[shard].recipes:
            place = self._plan.places[number]
            if place.offset <= offset and offset + nbytes <= place.offset + place.nbytes:
                return number, place.offset
        raise AssertionError("bytes outside all tensors")


def stream(plan: Plan) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) for every output tensor, in the order in which they are done.

    Memory is the plan's budget, and beside it the tensor that is handed out and one that waits. Closing the iterator stops the
    work. Raises what a run raises.
    """
    paths = fetch(plan, quiet=True)
    numbers = {recipe.name: n for n, recipe in enumerate(plan.recipes)}
    done: queue.Queue[tuple[str, torch.Tensor] | BaseException | None] = queue.Queue(maxsize=1)
    stopping = threading.Event()
    collector = _Collector(plan)

    def hand_over(item: tuple[str, torch.Tensor] | BaseException | None) -> None:
        while not stopping.is_set():
            try:
                done.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
        raise _Stopped

    def observe(event: Event) -> None:
        if isinstance(event, TensorWritten):
            hand_over((event.name, collector.take(numbers[event.name])))

    def work() -> None:
        try:
            executor = Executor(plan, plan.graph, plan.schedule, paths, collector, collector, observe)
            complete = False
            try:
                executor.run()
                complete = True
            finally:
                executor.close(finish=complete)
            hand_over(None)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the tensors are received
            done.put(error)

    worker = threading.Thread(target=work, name="weft-stream", daemon=True)
    worker.start()
    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopping.set()
        worker.join()
