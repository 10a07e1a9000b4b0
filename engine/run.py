"""Runs a plan: plan, subtract what the journal proves done, do the rest, check, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..errors import CheckpointError, Interrupted
from ..planner.plan import Plan, remaining
from ..planner.store import Store
from .device import own_threads, peak_device_memory, reset_device_memory
from .events import Observer, RunFinished, RunStarted, Summary, ignore
from .executor import Executor
from .finish import check_shards, write_companions
from .folder import OutputFolder, claim, durable, reopen_shards
from .journal import Facts, Journal, Record
from .shard_writer import PARTIAL, ShardWriter
from .system import check_disk, exclusive, peak_memory, reset_peak_memory, resident_memory, write_error

SLACK = 16 << 20
"""Bytes of disk for the journal and the small files."""


def run(plan: Plan, out: Path, observer: Observer = ignore, *, quiet: bool = True) -> Summary | None:
    """Execute a plan into folder `out`; None if it holds the complete result already.

    Raises OutputError for a folder that must not be written, DiskError and BudgetError before any work where something is too
    small or full, CheckpointError for inputs that cannot be read, Interrupted when stopped: then the same call continues.
    """
    folder = claim(out, plan.digest)
    if folder is None:
        return None
    try:
        with exclusive(folder.lock, f"{out}: another weft is writing to this folder"):
            return _run_locked(plan, folder, observer, quiet)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; what is done is kept in {out}: give the same command again to continue") from None
    except BrokenPipeError:  # of an observer that prints
        raise
    except OSError as error:
        raise write_error(error, str(out)) from None


def _run_locked(plan: Plan, folder: OutputFolder, observer: Observer, quiet: bool) -> Summary:
    begin = time.monotonic()
    try:
        _check_space(plan, folder)
        paths = fetch(plan, quiet)
    except BaseException:
        folder.withdraw()
        raise
    reopen_shards(folder, plan.shards)
    journal = Journal(folder.journal)
    try:
        writer = ShardWriter(folder.root, plan.shards)
        try:
            done = durable(journal.records(), [(r.name, r.digest) for r in plan.recipes], plan.places, plan.shards, writer.fresh)
            journal.forget(set(journal.records()) - {record.name for record in done.values()})
            todo = [n for n in range(len(plan.recipes)) if n not in done]
            graph, schedule = remaining(plan, todo)
            observer(RunStarted(plan, len(done), sum(plan.places[n].nbytes for n in done)))
            with _measured(plan) as memory:
                executor = Executor(plan, graph, schedule, paths, writer, journal, observer)
                complete = False
                try:
                    executor.run()
                    complete = True
                finally:
                    executor.close(finish=complete)
            writer.sync(set(range(len(plan.shards))))
        finally:
            writer.close()
        records = {record.name: record for record in (*done.values(), *executor.records)}
    finally:
        journal.close()
    check_shards(plan, folder)
    summary = _summary(plan, records, executor.bytes_read, len(done), time.monotonic() - begin, memory)
    folder.publish(plan.shards)
    write_companions(plan, folder, records, summary)
    folder.close()
    observer(RunFinished(summary))
    return summary


def _check_space(plan: Plan, folder: OutputFolder) -> None:
    """Fail now rather than after hours where the result will not fit; partial shards have their space already."""
    present = sum(
        path.stat().st_size
        for shard in plan.shards
        for path in (folder.root / (shard.name + PARTIAL), folder.root / shard.name)
        if path.exists()
    )
    check_disk(folder.root, max(plan.bytes_written - present, 0) + sum(plan.side_files.values()) + SLACK)


def fetch(plan: Plan, quiet: bool) -> dict[tuple[str, str], Path]:
    """Download what is not here yet, at the pinned commits; every input file's path."""
    wanted: dict[str, list[str]] = {}
    for file in plan.downloaded_files():
        wanted.setdefault(file.model, []).append(file.name)
    for label, names in wanted.items():
        _download(plan.stores[label], names, quiet)
    _download(plan.base.checkpoint.store, list(plan.side_files), quiet)
    paths = {}
    for file in plan.files():
        path = plan.stores[file.model].path(file.name)
        if path is None:
            raise CheckpointError(f"{file.model}/{file.name}: could not be fetched")
        paths[(file.model, file.name)] = path
    return paths


def _download(store: Store, names: Sequence[str], quiet: bool) -> None:
    missing = [name for name in names if store.path(name) is None]
    if missing:
        store.download(missing, quiet=quiet)


class _Memory:
    ram = 0
    vram = 0


@contextmanager
def _measured(plan: Plan) -> Iterator[_Memory]:
    """Measure the growth of resident and device memory while tasks run. A plan that only moves bytes does without torch."""
    device, memory = plan.options.budget.device, _Memory()
    with own_threads() if plan.computes else nullcontext():
        before = resident_memory()
        reset_peak_memory()
        reset_device_memory(device)
        try:
            yield memory
        finally:
            memory.ram = max(peak_memory() - before, 0)
            memory.vram = peak_device_memory(device)


def _summary(plan: Plan, records: Mapping[str, Record], bytes_read: int, reused: int, seconds: float, memory: _Memory) -> Summary:
    total = Facts()
    differing, foreign, nonfinite = 0, 0, []
    for recipe in plan.recipes:
        facts = records[recipe.name].facts
        total += facts
        differing += facts.differing > 0
        foreign += recipe.base_input is None
        if facts.nan or facts.inf:
            nonfinite.append(recipe.name)
    return Summary(
        tensors=len(records),
        parameters=plan.parameters,
        bytes_written=plan.bytes_written,
        bytes_read=bytes_read,
        computed=len(records) - reused,
        reused=reused,
        seconds=seconds,
        differing_tensors=differing,
        differing_elements=total.differing,
        compared_elements=total.compared,
        foreign_tensors=foreign,
        nan=total.nan,
        inf=total.inf,
        nonfinite_tensors=nonfinite,
        predicted_ram=plan.predicted_ram,
        measured_ram=memory.ram,
        predicted_vram=plan.predicted_vram,
        measured_vram=memory.vram,
    )
