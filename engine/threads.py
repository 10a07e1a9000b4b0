"""Threads that take jobs from a queue and report each one's end to the executor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from ..errors import ResourceError

Job = TypeVar("Job")
Report = Callable[[object, BaseException | None], None]


def persistently(work: Callable[[], object]) -> None:
    """Call `work` until it returns, again where Ctrl-C breaks into it; then KeyboardInterrupt is raised if there was one.

    For what must be over before anything else goes on: threads that use what is closed next. `work` can be begun again.
    """
    interrupted = False
    while True:
        try:
            work()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt


class Crew(Generic[Job]):
    """`count` threads that call `work(job, index of the thread)` for each job, in order, and report its outcome or error."""

    def __init__(self, name: str, count: int, work: Callable[[Job, int], object], report: Report) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._count = count
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ended: list[int] = []
        self._ends: queue.SimpleQueue[None] = queue.SimpleQueue()
        try:
            for i in range(count):
                thread = threading.Thread(target=self._run, args=(work, report, i), name=f"weft-{name}-{i}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except BaseException as error:
            self.close(drop=True)
            if isinstance(error, RuntimeError):  # Python has no error of its own for this
                message = "the system starts no more threads: choose fewer --workers, or raise the limit on processes (ulimit -u)"
                raise ResourceError(message) from None
            raise

    def put(self, job: Job) -> None:
        """Add a job at the end of the queue."""
        self._jobs.put(job)

    def close(self, *, drop: bool) -> None:
        """Wait for the threads to end: after the jobs in the queue, or after those they are at if `drop`. May be called again."""
        if drop:
            self._stopping.set()
        for _ in range(self._count):
            self._jobs.put(None)
        # Not `join` alone: one that Ctrl-C breaks into takes the thread for ended from then on.
        while len(self._ended) < len(self._threads):
            with suppress(queue.Empty):
                self._ends.get(timeout=0.1)
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[Job, int], object], report: Report, index: int) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                if self._stopping.is_set():
                    continue
                try:
                    outcome = work(job, index)
                except BaseException as error:  # whatever it is, the executor raises it again in the caller's thread
                    report(job, error)
                else:
                    report(outcome, None)
        finally:
            self._ended.append(index)
            self._ends.put(None)
