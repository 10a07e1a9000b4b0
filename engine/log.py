"""A run's events as lines of JSON, for programs that follow it (docs/log-json.md)."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..errors import OutputError
from .events import (
    Event,
    MemoryHeld,
    Observer,
    RunFinished,
    RunStarted,
    TaskEnded,
    TaskStarted,
    TensorDurable,
    TensorWritten,
    ignore,
)

LOG_VERSION = 1


@contextmanager
def json_log(path: Path | None) -> Iterator[Observer]:
    """An observer that appends one line an event to a file, or to standard output for "-"; one that does nothing without a file.

    Raises OutputError where the file cannot be opened.
    """
    if path is None:
        yield ignore
        return
    if str(path) == "-":
        yield _Log(sys.stdout)
        return
    try:
        file = path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise OutputError(f"--log-json {path}: {error.strerror or error}") from None
    with file:
        yield _Log(file)


class _Log:
    """Remembers when tasks began, and what was held of the pool."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        # More than one where a load is read again for a later use before the first reading has ended.
        self._begun: defaultdict[tuple[str, int], deque[tuple[float, TaskStarted]]] = defaultdict(deque)
        self._held = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted(plan, reused, reused_bytes):
                self._write(
                    "plan",
                    version=LOG_VERSION,
                    plan=plan.digest,
                    method=plan.method.name,
                    tensors=len(plan.recipes),
                    bytes=sum(place.nbytes for place in plan.places),
                    done_tensors=reused,
                    done_bytes=reused_bytes,
                    predicted_ram=plan.predicted_ram,
                    predicted_vram=plan.predicted_vram,
                )
            case TaskStarted(task, kind, tensor, nbytes):
                self._begun[kind, task].append((time.monotonic(), event))
                self._write("task_start", task=task, kind=kind, tensor=tensor, bytes=nbytes, held=self._held)
            case TaskEnded(task, kind):
                begin, started = self._begun[kind, task].popleft()
                seconds = round(time.monotonic() - begin, 6)
                self._write(
                    "task_end",
                    task=task,
                    kind=kind,
                    tensor=started.tensor,
                    bytes=started.nbytes,
                    seconds=seconds,
                    held=self._held,
                )
            case MemoryHeld(nbytes):
                self._held = nbytes
            case TensorWritten(name, nbytes):
                self._write("tensor_written", tensor=name, bytes=nbytes)
            case TensorDurable(name):
                self._write("tensor_durable", tensor=name)
            case RunFinished(summary):
                self._write("finished", **summary.to_dict())

    def _write(self, event: str, **values: Any) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 6), **values}) + "\n")
        self._file.flush()  # standard output may be a pipe to whoever waits for the line
