"""Runs a plan: plan, subtract what the disk has already, do the rest, check, publish."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from ..errors import CheckpointError, DiskError, Interrupted, OutputError
from ..ops.backends.compiled import start
from ..planner.files import open_file
from ..planner.plan import Plan, remaining
from ..planner.side_files import is_weights
from ..planner.sizes import format_size
from .carry import carry_over
from .device import own_threads, peak_device_memory, reset_device_memory
from .events import Observer, PhaseStarted, Routing, RunFinished, RunStarted, Summary, ignore
from .executor import Executor
from .fetch import fetch
from .finish import check_shards, companions, is_complete, pieces
from .folder import (
    HeldFolder,
    OutputFolder,
    begun,
    drop_partials,
    durable,
    folders_of,
    hold,
    looking_at,
    partials,
    refuse_inputs,
    waiting,
)
from .journal import Facts, Journal, Progress, Record
from .manifest import MANIFEST, Manifest, checksum_of, manifest
from .proof import proofs
from .reader import InputFile
from .reuse import Finished, finished
from .router import check_can_route, prepare_routers, router_warnings
from .shard_writer import PARTIAL, ShardWriter
from .swap import finish_swap, publish
from .system import check_disk, peak_memory, reset_peak_memory, resident_memory, sync_folder, write_error

SLACK = 16 << 20
"""Bytes of disk for the journal and the small files."""


def run(
    plan: Plan,
    out: Path,
    observer: Observer = ignore,
    *,
    quiet: bool = True,
    strict: bool = False,
    show_routing: bool = False,
    distrust: Collection[str] | None = None,
) -> Summary:
    """Execute a plan into folder `out`. Where it holds the complete result already, nothing is done, and the summary says so.

    Of another plan's complete result there, what has the same digest is reused; it stays as it is until the new one is complete.
    `strict` publishes no NaN or Inf. `distrust`, if given, repairs a complete result: tensors of these names are made again, and
    so is whatever file is missing. `show_routing` lets the prompts of a mixture's config through its base model, and says in the
    summary where they would go.

    Raises OutputError for a folder that must not be written, DiskError and BudgetError before any work where something is too
    small or full, CheckpointError for inputs that cannot be read, and in a strict run for NaN and Inf, Interrupted when stopped:
    then the same call continues.
    """
    check_can_route(plan, show=show_routing)
    refuse_inputs(plan, out)
    try:
        with looking_at(out):
            there = OutputFolder(out)
            earlier = there.manifest()
            if earlier is not None and not there.unfinished and distrust is None and is_complete(plan, out, earlier):
                _refuse_nonfinite(out, earlier.totals, strict)
                return _nothing_to_do(plan, earlier, observer)
        with hold(out) as folder:
            if not finish_swap(folder):
                return _run_locked(plan, folder, observer, quiet, strict, show_routing, distrust)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; what is done is kept in {out}: give the same command again to continue") from None
    except BrokenPipeError:  # of an observer that prints
        raise
    except OSError as error:
        raise write_error(error, str(out)) from None
    # What was put in place just now is looked at as any result; what was distrusted was in the one before.
    return run(plan, out, observer, quiet=quiet, strict=strict, show_routing=show_routing)


def _run_locked(
    plan: Plan,
    folder: HeldFolder,
    observer: Observer,
    quiet: bool,
    strict: bool,
    show_routing: bool,
    distrust: Collection[str] | None,
) -> Summary:
    begin = time.monotonic()
    old = folder.manifest()
    if old is not None and distrust is None and is_complete(plan, folder.root, old):  # what was begun there has no use
        folder.close()
        _refuse_nonfinite(folder.root, old.totals, strict)
        return _nothing_to_do(plan, old, observer)
    earlier = finished(plan, folder.root, old, distrust or ())
    made = [index for index in range(len(plan.shards)) if index not in earlier.kept]
    try:
        _check_places(plan, folder, old)
        _check_space(plan, folder, made)
        observer(PhaseStarted("opening the models"))
        inputs = fetch(plan, quiet)
    except BaseException:
        folder.withdraw()
        raise
    with _watched(folder):
        observer(PhaseStarted("reserving disk space"))
        drop_partials(folder.top, [plan.shards[index].name for index in made])
        sync_folder(folder.root.parent)
        folder.top.sync()  # partial shards without a work folder beside them would be anybody's
        done = _make(plan, folder, earlier, made, inputs, observer, show_routing)
        observer(PhaseStarted("checking the result"))
        check_shards(plan, folder, earlier.kept)
        summary = _summary(plan, done.records, done.bytes_read, done.reused, time.monotonic() - begin, done.memory)
        warnings = [*router_warnings(plan, folder.work), *over_budget(plan, summary)]
        summary = replace(summary, warnings=warnings, routings=done.routings)
        _refuse_nonfinite(folder.root, {"nan": summary.nan, "inf": summary.inf}, strict, summary.nonfinite_tensors)
        files = {name: _write(folder, name, data, old) for name, data in companions(plan)}
        folder.write(MANIFEST, manifest(plan, done.records, summary, files))
    kept = {plan.shards[index].name for index in earlier.kept}
    publish(folder, [shard.name for shard in plan.shards], kept, [*files, MANIFEST], old)
    observer(RunFinished(summary))
    return summary


@contextmanager
def _watched(folder: HeldFolder) -> Iterator[None]:
    """Where somebody removed the work folder meanwhile, the error says so: then there is nothing to continue."""
    try:
        yield
    except (OSError, OutputError, DiskError, KeyboardInterrupt) as error:
        if not folder.removed:
            raise
        folder.abandon()
        kind = Interrupted if isinstance(error, KeyboardInterrupt) else OutputError
        raise kind(
            f"{folder.work} was removed while weft wrote there, and with it what was done: "
            "give the same command again to start over"
        ) from None


@dataclass(frozen=True, slots=True)
class _Done:
    """All tensors' records by name, and what it took: `reused` of them were not computed."""

    records: Mapping[str, Record]
    reused: int
    bytes_read: int
    memory: _Memory
    routings: Sequence[Routing]


def _make(
    plan: Plan,
    folder: HeldFolder,
    earlier: Finished,
    made: Sequence[int],
    inputs: dict[tuple[str, str], InputFile],
    observer: Observer,
    show_routing: bool,
) -> _Done:
    """Bring every tensor of the shards `made` to the disk: those that are not there yet are copied, or else computed."""
    numbers = {recipe.name: n for n, recipe in enumerate(plan.recipes)}
    shard_of = {shard.name: index for index, shard in enumerate(plan.shards)}
    with ExitStack() as stack:
        journal = stack.enter_context(closing(Journal(folder.journal)))
        fresh = [index not in made or not begun(folder.top, shard) for index, shard in enumerate(plan.shards)]
        # Before a shard is made: its header must not stand there while rows speak of what another shard of its name held.
        records = _recorded(plan, journal, earlier, fresh)
        writer = stack.enter_context(closing(ShardWriter(folder.top, [plan.shards[index] for index in made])))
        if writer.fresh != [fresh[index] for index in made]:
            raise OutputError(f"{folder.root}: something else writes there: end it and give the command again")
        folder.top.sync()
        sink = _Made(writer, {index: i for i, index in enumerate(made)})
        journal.begin(_progress(plan, earlier, records))
        observer(RunStarted(plan, len(records), _bytes(plan, records)))
        with _measured(plan) as memory:
            copies = [copy for number, copy in earlier.copies.items() if number not in records]
            for record in carry_over(copies, shard_of, sink, journal, observer):
                records[numbers[record.name]] = record
            graph, schedule = remaining(plan, [n for n in range(len(plan.recipes)) if n not in records])
            if plan.routers:
                observer(PhaseStarted("making the router"))
            routings = prepare_routers(plan, folder.work, inputs, show=show_routing)
            with Executor(plan, graph, schedule, inputs, sink, journal, observer) as executor:
                executor.run()
        sink.sync(set(made))
    by_name = {record.name: record for record in (*records.values(), *executor.records)}
    return _Done(by_name, len(records), executor.bytes_read, memory, routings)


def _progress(plan: Plan, earlier: Finished, records: Mapping[int, Record]) -> Progress:
    """What `weft status` will want to know."""
    return Progress(
        tensors=len(plan.recipes),
        nbytes=_bytes(plan, range(len(plan.recipes))),
        kept=len(earlier.records),
        kept_bytes=_bytes(plan, earlier.records),
        found_bytes=_bytes(plan, records),
        began=int(time.time()),
    )


def _bytes(plan: Plan, numbers: Iterable[int]) -> int:
    return sum(plan.places[number].nbytes for number in numbers)


def _write(folder: HeldFolder, name: str, data: Iterable[bytes], old: Manifest | None) -> str:
    """Let a file wait for its place, unless it stands there as it would be written but for what was edited; its checksum."""
    seen = xxhash.xxh3_128()

    def watched() -> Iterator[bytes]:
        for piece in data:
            seen.update(piece)
            yield piece

    folder.write(name, watched())
    wanted = seen.hexdigest()
    if _edited(folder, name, wanted, old):
        folder.inner.unlink(waiting(name))
    return wanted


def _edited(folder: OutputFolder, name: str, wanted: str, old: Manifest | None) -> bool:
    """Whether a file that would be written as it was before has been edited since; nobody edits an index or weights."""
    if old is None or old.files.get(name) != wanted or is_weights(name):
        return False
    path = folder.place(name)
    if not path.is_file():
        return False
    with open_file(path) as file:
        return checksum_of(pieces(file, str(path))) != wanted


def _check_places(plan: Plan, folder: OutputFolder, old: Manifest | None) -> None:
    """Fail now and not in the end where something has the place of a folder that the result needs, or of a file in one."""
    gone = old.files if old is not None else {}
    for name in (name for name in plan.side_files if "/" in name):
        if not any(parent in gone for parent in folders_of([name])) and folder.place(name).is_dir():
            raise OutputError(f"{folder.place(name)}: the result has a file of this name: move what is there away")


class _Made:
    """The shards that are made, under the numbers that the plan has for them."""

    def __init__(self, writer: ShardWriter, numbers: Mapping[int, int]) -> None:
        self._writer, self._numbers = writer, numbers

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Write bytes of a shard."""
        self._writer.write(self._numbers[shard], offset, data)

    def sync(self, shards: set[int]) -> None:
        """Return when these shards are on the disk."""
        self._writer.sync({self._numbers[shard] for shard in shards})


def _recorded(plan: Plan, journal: Journal, earlier: Finished, fresh: Sequence[bool]) -> dict[int, Record]:
    """The tensors that are on the disk at their places; all other records are deleted before anything is overwritten."""
    names = [(recipe.name, proof) for recipe, proof in zip(plan.recipes, proofs(plan), strict=True)]
    found = durable(journal.records(), names, plan.places, plan.shards, fresh)
    journal.keep({record.name for record in found.values()})
    return {**found, **earlier.records}


def _refuse_nonfinite(out: Path, totals: Mapping[str, int], strict: bool, names: Sequence[str] = ()) -> None:
    if strict and (totals.get("nan") or totals.get("inf")):
        where = f" in tensor '{names[0]}'" + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""
        raise CheckpointError(
            f"{out}: the result has {totals.get('nan', 0)} NaN and {totals.get('inf', 0)} Inf values{where}: "
            + (
                "not published (--strict); without --strict the same command publishes it"
                if names
                else "see the manifest's totals"
            )
        )


def _check_space(plan: Plan, folder: HeldFolder, made: Sequence[int]) -> None:
    """Fail now rather than after hours where the result will not fit; partial shards have their space already."""
    wanted = {plan.shards[index].name + PARTIAL: plan.shards[index].size for index in made}
    present = partials(folder.top)
    needed = sum(max(size - present.get(name, 0), 0) for name, size in wanted.items())
    freed = sum(size for name, size in present.items() if name not in wanted)
    check_disk(folder.root, max(needed - freed, 0) + sum(plan.side_files.values()) + SLACK)


class _Memory:
    ram = 0
    vram = 0


@contextmanager
def _measured(plan: Plan) -> Iterator[_Memory]:
    """Measure the growth of resident and device memory while tasks run. A plan that only moves bytes does without torch."""
    device, memory = plan.options.budget.device, _Memory()
    if plan.division.compiled:
        start()
    with nullcontext() if plan.options.budget.on_host else own_threads():
        before = resident_memory()
        reset_peak_memory()
        reset_device_memory(device)
        try:
            yield memory
        finally:
            memory.ram = max(peak_memory() - before, 0)
            memory.vram = peak_device_memory(device)


def over_budget(plan: Plan, summary: Summary) -> Iterator[str]:
    """What to say of a run that took more memory than it was given, or than was predicted: the latter is a fault of weft."""
    budget = plan.options.budget
    for name, measured, predicted, given in (
        ("RAM", summary.measured_ram, summary.predicted_ram, budget.ram),
        ("VRAM", summary.measured_vram, summary.predicted_vram, budget.vram),
    ):
        if measured > predicted:
            beyond = f", and more than the {format_size(given)} of --{name.lower()}" if measured > given else ""
            yield (
                f"the run took {format_size(measured)} of {name}, more than the {format_size(predicted)} predicted{beyond}: "
                "please report it with the config and weft's version"
            )


def _nothing_to_do(plan: Plan, manifest: Manifest, observer: Observer) -> Summary:
    """The summary of a complete result, from what its manifest recorded."""
    facts = {recipe.name: manifest.tensors[recipe.name].facts for recipe in plan.recipes}
    total = sum(facts.values(), Facts())
    summary = Summary(
        tensors=len(plan.recipes),
        parameters=plan.parameters,
        bytes_written=0,
        bytes_read=0,
        computed=0,
        reused=len(plan.recipes),
        seconds=0.0,
        differing_tensors=sum(one.differing > 0 for one in facts.values()),
        differing_elements=total.differing,
        compared_elements=total.compared,
        foreign_tensors=sum(recipe.base_input is None for recipe in plan.recipes),
        nan=total.nan,
        inf=total.inf,
        nonfinite_tensors=[name for name, one in facts.items() if one.nan or one.inf],
        predicted_ram=plan.predicted_ram,
        measured_ram=0,
        predicted_vram=plan.predicted_vram,
        measured_vram=0,
        already_complete=True,
        kept_tensors=plan.kept,
    )
    observer(RunFinished(summary))
    return summary


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
        kept_tensors=plan.kept,
        nan=total.nan,
        inf=total.inf,
        nonfinite_tensors=nonfinite,
        predicted_ram=plan.predicted_ram,
        measured_ram=memory.ram,
        predicted_vram=plan.predicted_vram,
        measured_vram=memory.vram,
    )
