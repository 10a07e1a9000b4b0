"""Shows a run's events: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from ..engine.events import BytesRead, Event, MemoryHeld, Observer, PhaseStarted, RunStarted, TensorDurable, TensorWritten, ignore
from ..planner.estimate import estimate_seconds
from ..planner.sizes import format_duration, format_size
from .terminal import one_line

EVERY = 5.0
"""Seconds between plain lines."""

WIDE = 110
"""Columns from which on the live display has room for the pool."""

TRUSTED = 0.1
"""The share of a merge after which its own speed says how long the rest takes; before that the plan's estimate has a say."""


def in_notebook() -> bool:
    """Whether this process runs cells of a notebook."""
    return Console().is_jupyter


@contextmanager
def progress(*, quiet: bool, verbose: bool) -> Iterator[Observer]:
    """An observer that shows what it is told, on stderr."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield ignore
    elif _live(console):
        bar = Progress(
            SpinnerColumn("line" if console.options.ascii_only else "dots"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", markup=False),
            console=console,
            transient=True,
            expand=True,
        )
        with bar:
            yield _Live(bar)
    else:
        yield _Lines(Console(stderr=True, highlight=False, soft_wrap=True), verbose)


def _live(console: Console) -> bool:
    """Whether the display can be drawn over; in notebooks rich needs ipywidgets for that."""
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


def remaining_seconds(expected: float, elapsed: float, done: float) -> float:
    """Seconds that are left of a run of which the share `done` is done; `expected` are the seconds that the plan gave all of it.

    At first little is known but the plan's estimate; the more is done, the more the run's own speed counts.
    """
    if done <= 0:
        return max(expected - elapsed, 0.0)
    trust = min(done / TRUSTED, 1.0)
    return (1 - done) * ((1 - trust) * expected + trust * elapsed / done)


class _Counts:
    """Running totals of a run's events. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.total = self.durable = self.tensors = 0
        self.total_bytes = self.written = self.held = self.pool = self.read = self.before = 0
        self.expected = 0.0
        self.begin = clock()

    def take(self, event: Event) -> None:
        match event:
            case RunStarted(plan, reused, reused_bytes):
                self.tensors, self.durable = len(plan.recipes), reused
                self.total_bytes = sum(place.nbytes for place in plan.places)
                self.written, self.pool = reused_bytes, plan.schedule.arena
                self.before, self.begin = reused_bytes, self._clock()
                self.expected = estimate_seconds(plan) * (1 - reused_bytes / max(self.total_bytes, 1))
            case TensorWritten(_, nbytes):
                self.written += nbytes
            case TensorDurable():
                self.durable += 1
            case MemoryHeld(nbytes):
                self.held = nbytes
            case BytesRead(nbytes):
                self.read += nbytes

    def tensors_done(self) -> str:
        return f"{self.durable}/{self.tensors} tensors"

    def speed(self) -> str:
        """`1.2 GiB of 13.5 GiB, 480.0 MiB/s, 25.8 s left`."""
        elapsed, new = self._clock() - self.begin, self.written - self.before
        share = new / max(self.total_bytes - self.before, 1)
        left = remaining_seconds(self.expected, elapsed, share)
        rate = f", {format_size(new / max(elapsed, 1e-3))}/s" if new else ""
        return f"{format_size(self.written)} of {format_size(self.total_bytes)}{rate}, {format_duration(left)} left"

    def memory(self) -> str:
        return f"{format_size(self.held)} of {format_size(self.pool)} pool"


class _Live:
    """Keeps a rich progress bar up to date."""

    def __init__(self, bar: Progress) -> None:
        self.bar, self.counts = bar, _Counts()
        self.task = bar.add_task("starting", total=None, facts="")

    def __call__(self, event: Event) -> None:
        self.counts.take(event)
        if isinstance(event, PhaseStarted):
            self.bar.update(self.task, description=one_line(event.what), total=None, facts="", refresh=True)
        elif self.counts.tensors:
            facts = self.counts.speed() + (f"  {self.counts.memory()}" if self.bar.console.width >= WIDE else "")
            self.bar.update(
                self.task,
                description=self.counts.tensors_done(),
                total=self.counts.total_bytes,
                completed=self.counts.written,
                facts=facts,
            )


class _Lines:
    """Prints a line now and then, or one a tensor if verbose."""

    def __init__(self, console: Console, verbose: bool) -> None:
        self.console, self.verbose, self.counts = console, verbose, _Counts()
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        self.counts.take(event)
        now = time.monotonic()
        if isinstance(event, RunStarted):
            if event.reused:
                self.console.print(
                    f"{event.reused} of {self.counts.tensors} tensors are done already ({format_size(event.reused_bytes)})"
                )
        elif self.verbose and isinstance(event, PhaseStarted):
            self.console.print(one_line(event.what), markup=False)
        elif self.verbose and isinstance(event, TensorWritten):
            self.console.print(one_line(f"written {event.name} ({format_size(event.nbytes)})"), markup=False)
        elif now - self.last >= EVERY and self.counts.tensors:
            self.last = now
            self.console.print(f"{self.counts.tensors_done()}, {self.counts.speed()}, {self.counts.memory()}", markup=False)
