"""Three queues of a device: copies in, computing, copies out, which wait for each other's events only.

    copy in    │ block 0 │ block 1 │         │ block 2 │
    compute              │ block 0 │ block 1 │         │ block 2 │
    copy out                       │ block 0 │ block 1 │

The seam between the pipeline of `device_workspace.py` and a device: CUDA here, in the tests a stand-in that does copies as
late as it may.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

import torch

Event = Any
"""A point in a queue."""


class Streams(Protocol):
    """What is put into a queue runs in order; each method returns the event that it is done."""

    def copy_in(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """Queue a copy to the device, behind these events."""

    def compute(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """Queue work on the device, behind these events."""

    def copy_out(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """Queue a copy from the device, behind these events."""

    def wait(self, events: Iterable[Event]) -> None:
        """Return when these events have happened."""

    def rest(self) -> None:
        """Return when nothing is under way any more, also after an error in the midst of it."""


class CudaStreams:
    """Streams of a CUDA device. Belongs to the thread that made it, whose current stream becomes the computing one."""

    def __init__(self, device: torch.device) -> None:
        self._in, self._compute, self._out = (torch.cuda.Stream(device) for _ in range(3))  # type: ignore[no-untyped-call]
        torch.cuda.set_device(device)
        torch.cuda.set_stream(self._compute)

    def copy_in(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """See `Streams`."""
        return self._queue(self._in, work, after)

    def compute(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """See `Streams`."""
        return self._queue(self._compute, work, after)

    def copy_out(self, work: Callable[[], object], after: Iterable[Event]) -> Event:
        """See `Streams`."""
        return self._queue(self._out, work, after)

    def wait(self, events: Iterable[Event]) -> None:
        """See `Streams`."""
        for event in events:
            event.synchronize()

    def rest(self) -> None:
        """See `Streams`."""
        with suppress(RuntimeError):  # of a device that failed, which was told already
            torch.cuda.synchronize(self._compute.device)

    @staticmethod
    def _queue(stream: torch.cuda.Stream, work: Callable[[], object], after: Iterable[Event]) -> Event:
        for event in after:
            stream.wait_event(event)
        with torch.cuda.stream(stream):
            work()
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(stream)
        return done
