"""Shows a run's events: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ..engine.events import BytesRead, Event, MemoryHeld, Observer, RunStarted, TensorDurable, TensorWritten, ignore
from ..planner.sizes import format_size

EVERY = 5.0
"""Seconds between plain lines."""


def in_notebook() -> bool:
    """Whether this process runs cells of a notebook."""
    return Console().is_jupyter


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Observer]:
    """An observer that shows what it is told, on stderr."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield ignore
    elif console.is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None):  # with which rich draws there
        bar = Progress(
            TextColumn("{task.fields[tensors]}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[memory]}"),
            console=console,
            transient=True,
        )
        with bar:
            yield _Live(bar)
    else:
        yield _Lines(Console(stderr=True, highlight=False, soft_wrap=True), verbose)


class _Counts:
    """Running totals of a run's events."""

    def __init__(self) -> None:
        self.total = self.durable = self.tensors = 0
        self.total_bytes = self.written = self.held = self.pool = self.read = 0

    def take(self, event: Event) -> None:
        match event:
            case RunStarted(plan, reused, reused_bytes):
                self.tensors, self.durable = len(plan.recipes), reused
                self.total_bytes = sum(place.nbytes for place in plan.places)
                self.written, self.pool = reused_bytes, plan.schedule.arena
            case TensorWritten(_, nbytes):
                self.written += nbytes
            case TensorDurable():
                self.durable += 1
            case MemoryHeld(nbytes):
                self.held = nbytes
            case BytesRead(nbytes):
                self.read += nbytes

    def memory(self) -> str:
        return f"{format_size(self.held)} of {format_size(self.pool)} pool"


class _Live:
    """Keeps a rich progress bar up to date."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.counts = bar, _Counts()
        self.task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        self.counts.take(event)
        if isinstance(event, RunStarted):
            self.task = self.bar.add_task("merge", total=self.counts.total_bytes, tensors="", memory="")
        if self.task is not None:
            tensors = f"{self.counts.durable}/{self.counts.tensors} tensors"
            self.bar.update(self.task, completed=self.counts.written, tensors=tensors, memory=self.counts.memory())


class _Lines:
    """Prints a line now and then, or one a tensor if verbose."""

    def __init__(self, console: Console, verbose: bool) -> None:
        self.console, self.verbose, self.counts = console, verbose, _Counts()
        self.begin = self.last = time.monotonic()
        self.before = 0

    def __call__(self, event: Event) -> None:
        self.counts.take(event)
        now = time.monotonic()
        if isinstance(event, RunStarted):
            self.before = self.counts.written
            if event.reused:
                self.console.print(
                    f"{event.reused} of {self.counts.tensors} tensors are done already ({format_size(event.reused_bytes)})"
                )
        elif self.verbose and isinstance(event, TensorWritten):
            self.console.print(f"written {event.name} ({format_size(event.nbytes)})", markup=False)
        elif now - self.last >= EVERY:
            self.last = now
            rate = (self.counts.written - self.before) / max(now - self.begin, 1e-3)
            left = f", {(self.counts.total_bytes - self.counts.written) / rate:.0f} s left" if rate else ""
            self.console.print(
                f"{self.counts.durable}/{self.counts.tensors} tensors, {format_size(self.counts.written)} of "
                f"{format_size(self.counts.total_bytes)}, {format_size(rate)}/s{left}, {self.counts.memory()}"
            )
