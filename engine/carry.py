"""Copies tensors of an earlier result to their places in the new one, checked against the checksums they were written with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path

import xxhash

from ..planner.files import open_file
from .events import Observer, TaskEnded, TaskStarted, TensorDurable, TensorWritten
from .executor import Ledger, Sink
from .journal import Record
from .reuse import Copy
from .system import READ_CHUNK, anonymous_memory, read_into, write_error

BATCH = 256 << 20
"""Bytes that become durable together."""


def carry_over(copies: Iterable[Copy], shard_of: dict[str, int], sink: Sink, ledger: Ledger, observer: Observer) -> list[Record]:
    """Copy tensors, in the order of their old places; the records of those that are durable now.

    What is missing among them was damaged, or could not be read, and must be computed. Memory: one chunk of 8 MiB.
    """
    done: list[Record] = []
    waiting: list[Record] = []
    buffer = memoryview(anonymous_memory(READ_CHUNK))

    def commit() -> None:
        if not waiting:
            return
        try:
            sink.sync({shard_of[record.shard] for record in waiting})
            ledger.add(waiting)
        except OSError as error:
            raise write_error(error, waiting[0].shard) from None
        for record in waiting:
            observer(TensorDurable(record.name))
        done.extend(waiting)
        waiting.clear()

    gathered = 0
    in_order = sorted(copies, key=lambda copy: (copy.source, copy.offset))
    for source, its_copies in groupby(in_order, key=lambda copy: copy.source):
        with _opened(source) as handle:
            for copy in its_copies:
                observer(TaskStarted(copy.number, "copy", copy.record.name, copy.record.nbytes))
                whole = _copy(handle, copy, shard_of[copy.record.shard], sink, buffer)
                observer(TaskEnded(copy.number, "copy"))
                if whole:
                    observer(TensorWritten(copy.record.name, copy.record.nbytes))
                    waiting.append(copy.record)
                    gathered += copy.record.nbytes
                if gathered >= BATCH:
                    commit()
                    gathered = 0
    commit()
    return done


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A file's descriptor; None where it cannot be read."""
    with ExitStack() as stack:
        handle = None
        with suppress(OSError):
            handle = stack.enter_context(open_file(path)).fileno()
        yield handle


def _copy(handle: int | None, copy: Copy, shard: int, sink: Sink, buffer: memoryview) -> bool:
    """Whether all bytes were there and are those that the checksum was made of."""
    seen = xxhash.xxh3_128()
    record = copy.record
    for low in range(0, record.nbytes, len(buffer)):
        piece = buffer[: min(len(buffer), record.nbytes - low)]
        try:
            if handle is None:
                return False
            read_into(handle, copy.offset + low, piece, drop=True)
        except (OSError, EOFError):
            return False
        seen.update(piece)
        try:
            sink.write(shard, record.offset + low, piece)
        except OSError as error:
            raise write_error(error, record.shard) from None
    return seen.hexdigest() == record.checksum
