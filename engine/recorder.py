"""An observer that keeps what a report shows of a run: bytes, memory and finished tensors over time, in a bounded space."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .events import BytesRead, Event, MemoryHeld, PhaseStarted, RunFinished, RunStarted, Summary, TensorDurable, TensorWritten

SAMPLES = 600
"""Samples that are kept at most."""

FIRST_INTERVAL = 0.01
"""Seconds between samples at first; doubled whenever there are too many."""


class Recorder:
    """Takes note of a run's events. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._interval = clock, FIRST_INTERVAL
        self._begin: float | None = None
        self._read = self._written = self._held = self._durable = self._reused = 0
        self._most = 0  # bytes held at once since the last sample
        self._last = 0.0
        self._samples: list[list[float]] = []
        self._summary: Summary | None = None

    def __call__(self, event: Event) -> None:
        """Count an event, and sample the counts now and then."""
        if isinstance(event, PhaseStarted) or (isinstance(event, RunFinished) and event.summary.already_complete):
            return  # nothing that is measured
        if self._begin is None:
            self._begin = self._clock()
        now = self._clock() - self._begin
        self._last = now
        match event:
            case RunStarted(_, reused, _):
                self._durable = self._reused = reused
            case BytesRead(nbytes):
                self._read += nbytes
            case TensorWritten(_, nbytes):
                self._written += nbytes
            case TensorDurable():
                self._durable += 1
            case MemoryHeld(nbytes):
                self._held = nbytes
                self._most = max(self._most, nbytes)
            case RunFinished(summary):
                self._summary = summary
        if isinstance(event, RunStarted | RunFinished) or now - self._samples[-1][0] >= self._interval:
            self._sample(now)

    @property
    def started(self) -> bool:
        """Whether there is anything to report."""
        return self._begin is not None

    def measured(self) -> dict[str, Any]:
        """What was seen, as plain data.

        `samples` are [seconds, bytes read, bytes of whole tensors written, the most pool bytes held since the sample before,
        tensors durable]; `summary` is that of `engine.events`, or None where the run did not finish.
        """
        return {
            "finished": self._summary is not None,
            "seconds": self._last,
            "durable": self._durable,
            "reused": self._reused,
            "samples": [list(sample) for sample in self._samples],
            "summary": self._summary.to_dict() if self._summary else None,
        }

    def _sample(self, now: float) -> None:
        self._samples.append([round(now, 4), self._read, self._written, self._most, self._durable])
        self._most = self._held
        if len(self._samples) > SAMPLES:
            pairs = zip(self._samples[::2], self._samples[1::2], strict=False)
            merged = [[*later[:3], max(earlier[3], later[3]), later[4]] for earlier, later in pairs]
            self._samples = [self._samples[0], *merged] + ([self._samples[-1]] if len(self._samples) % 2 else [])
            self._interval *= 2
