"""Threads that take jobs from a queue and report each one's end to the executor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")
Report = Callable[[object, BaseException | None], None]


class Crew(Generic[Job]):
    """`count` threads that call `work(job, index of the thread)` for each job, in order, and report its outcome or error."""

    def __init__(self, name: str, count: int, work: Callable[[Job, int], object], report: Report) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._work, self._report = work, report
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(i,), name=f"weft-{name}-{i}", daemon=True) for i in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, job: Job) -> None:
        """Add a job at the end of the queue."""
        self._jobs.put(job)

    def close(self, *, drop: bool) -> None:
        """Wait for the threads to end: after the jobs in the queue, or after those they are at if `drop`."""
        if drop:
            self._stopping.set()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self, index: int) -> None:
        while (job := self._jobs.get()) is not None:
            if self._stopping.is_set():
                continue
            try:
                outcome = self._work(job, index)
            except BaseException as error:  # whatever it is, the executor raises it again in the caller's thread
                self._report(job, error)
            else:
                self._report(outcome, None)
