"""Walks a schedule: readers fill the pool, workers compute, writers write, and a committer makes finished tensors durable.

The calling thread owns all bookkeeping; the others only do jobs and report. A step passes through

    places taken ── loads done ── [pass 0 ── pass 1 ── …] ── map done ── saved

and takes each of its places in the pool when the schedule says that it is free. Bookkeeping is constant per task.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import networkx as nx
import xxhash

from ..errors import CheckpointError
from ..ops.backends.host import no_loops
from ..ops.method import Fallback, MethodError
from ..planner.graph import Compute, Load, Save
from ..planner.memory import active_steps, unmerged_parts
from ..planner.plan import Plan
from ..planner.recipe import files_of
from ..planner.schedule import Buffer, Schedule
from .compute import Fold
from .device import release_device_memory, settle
from .events import BytesRead, MemoryHeld, Observer, TaskEnded, TaskStarted, TensorDurable, TensorWritten
from .journal import Facts, Record
from .loops import Loops
from .parts import Cutter, Part, benches
from .pool import Pool
from .proof import proofs
from .reader import Inputs, Reader
from .system import write_error
from .threads import Crew, persistently

READERS = 2
WRITERS = 2
LOOKAHEAD = 256
"""Steps in flight at most: many tiny tensors fit the pool, but each costs some bookkeeping."""


@dataclass
class _TensorState:
    """What is known of a tensor between its tiles."""

    statistics: list[Any] = field(default_factory=list)
    fold: Fold | None = None
    hash: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    facts: Facts = field(default_factory=Facts)
    saved_tiles: int = 0
    waiting_saves: dict[int, int] = field(default_factory=dict)


@dataclass
class _StepState:
    """A step in flight: the places it has yet to take, how many things it waits for, and the bytes it holds."""

    places: deque[Buffer]
    waits: int
    held: int = 0
    parts_left: int = 0
    passes_done: int = 0


class _Prefix:
    """Steps that are done, in whatever order; `through`: all up to this one are."""

    def __init__(self, count: int) -> None:
        self._done = [False] * count
        self.through = -1

    def add(self, number: int) -> None:
        self._done[number] = True
        while self.through + 1 < len(self._done) and self._done[self.through + 1]:
            self.through += 1

    def __contains__(self, number: int) -> bool:
        return self._done[number]


@dataclass(frozen=True, slots=True)
class _Durable:
    """A batch of tensors that the committer made durable."""

    records: tuple[Record, ...]


class Sink(Protocol):
    """Where tensors' bytes go."""

    def write(self, shard: int, offset: int, data: memoryview) -> None:
        """Take bytes of a shard; called from several threads."""

    def sync(self, shards: set[int]) -> None:
        """Return when everything written to these shards is durable."""


class Ledger(Protocol):
    """Where durable tensors are recorded."""

    def add(self, records: Iterable[Record]) -> None:
        """Record tensors; returns when that is durable."""


class Executor:
    """Runs one schedule of a plan, within `with`, at whose end its threads have ended and its memory is given back.

    After an error, what was durable stays so.
    """

    def __init__(
        self,
        plan: Plan,
        graph: nx.DiGraph[int],
        schedule: Schedule,
        inputs: Inputs,
        writer: Sink,
        journal: Ledger,
        observer: Observer,
    ) -> None:
        self.plan, self.graph, self.schedule = plan, graph, schedule
        self.writer, self.journal, self.observer = writer, journal, observer
        self.proofs = proofs(plan)
        self.tensors: dict[int, _TensorState] = {}
        self.states: dict[int, _StepState] = {}
        self.computed = _Prefix(len(schedule.steps))
        self.saved = _Prefix(len(schedule.steps))
        self.waiting: dict[int, list[int]] = {}
        self.placed = 0
        self.held = 0
        self.ready: deque[int] = deque()
        self.active = 0
        self.unmerged = 0
        self.passing: deque[tuple[int, Part]] = deque()
        self.undurable = 0
        self.bytes_read = 0
        self.records: list[Record] = []
        self._done: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()

        self._commits: queue.SimpleQueue[Record] = queue.SimpleQueue()
        with ExitStack() as taken:
            self.pool = taken.enter_context(closing(Pool(schedule.arena, pinned=not plan.options.budget.on_host)))
            taken.callback(release_device_memory, plan.options.budget.device)
            loops = taken.enter_context(closing(Loops())) if plan.division.compiled else no_loops
            self.cutter = Cutter(plan, graph, schedule, self.pool, loops)
            self.benches = [taken.enter_context(closing(bench)) for bench in benches(plan)]
            self.reader = taken.enter_context(closing(Reader(inputs)))
            for file in plan.files():
                self.reader.open(file)
            self.readers: Crew[tuple[int, Buffer]] = self._crew(taken, "read", READERS, self._read)
            self.workers: Crew[tuple[int, Part]] = self._crew(taken, "compute", len(self.benches), self._compute)
            self.writers: Crew[tuple[int, int]] = self._crew(taken, "write", WRITERS, self._write)
            self.committer: Crew[int] = self._crew(taken, "commit", 1, self._commit)
            self._taken = taken.pop_all()

    def _crew(self, taken: ExitStack, name: str, count: int, work: Callable[[Any, int], object]) -> Crew[Any]:
        crew = Crew(name, count, work, lambda outcome, error: self._done.put((outcome, error)))
        taken.callback(crew.close, drop=True)
        return crew

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close(finish=kind is None)

    # The loop of the calling thread.

    def run(self) -> None:
        """Execute all steps. Raises CheckpointError, DiskError or OutputError for what the machine refuses."""
        self._take_places()
        while self.saved.through + 1 < len(self.schedule.steps) or self.undurable:
            # With a time limit the wait can be interrupted on every platform.
            try:
                outcome, error = self._done.get(timeout=1.0)
            except queue.Empty:
                continue
            if error is not None:
                try:
                    raise error
                finally:
                    del outcome, error  # an error that refers to itself, by this frame, would outlive its last reader
            self._handle(outcome)
            self._take_places()

    def close(self, *, finish: bool) -> None:
        """End all threads, however often Ctrl-C is pressed meanwhile: they use what is closed after them.

        Tensors that are written completely become durable even if not `finish`.
        """
        persistently(partial(self._close, finish=finish))

    def _close(self, *, finish: bool) -> None:
        for crew in (self.readers, self.workers, self.writers):
            crew.close(drop=not finish)
        self.committer.put(0)
        self.committer.close(drop=False)
        self.passing.clear()
        self._done = queue.SimpleQueue()  # errors that nobody read refer to this executor, by the frames of their threads
        self._taken.close()

    def _handle(self, outcome: object) -> None:
        match outcome:
            case ("loaded", int(step), int(nbytes), int(task)):
                self.bytes_read += nbytes
                self.observer(BytesRead(nbytes))
                self.observer(TaskEnded(task, "load"))
                self._arrived(step)
            case ("part", int(step), Facts() | int() | None as found):
                self._part_done(step, found)
            case ("saved", int(step), _):
                self._saved(step)
            case _Durable(records):
                self.undurable -= len(records)
                self.records.extend(records)
                for record in records:
                    self.observer(TensorDurable(record.name))

    def _take_places(self) -> None:
        """Take the places that are free, in the order of the schedule, and begin to read what goes there."""
        while self.placed < len(self.schedule.steps) and self.placed - self.saved.through <= LOOKAHEAD:
            number = self.placed
            state = self.states.get(number) or self._enter(number)
            if state is None:
                return
            while state.places:
                place = state.places[0]
                if place.computed > self.computed.through or place.saved > self.saved.through:
                    return
                state.places.popleft()
                self._hold(state, place.nbytes)
                if place.task != self.schedule.steps[number].compute:
                    load: Load = self.graph.nodes[place.task]["task"]
                    self.observer(TaskStarted(place.task, "load", load.tensor.name, load.nbytes))
                    self.readers.put((number, place))
            self.placed += 1
            self._arrived(number)

    def _enter(self, number: int) -> _StepState | None:
        """Begin to keep books of a step; None: it is not known yet whether it has anything to do."""
        step, skipped = self.schedule.steps[number], self._skipped(number)
        if skipped is None:
            return None
        pending = [need for need in step.needs if need not in self.computed]
        for need in pending:
            self.waiting.setdefault(need, []).append(number)
        places, loads = (deque[Buffer](), 0) if skipped else (deque(step.filled), len(step.loads))
        state = self.states[number] = _StepState(places, waits=1 + loads + len(pending))
        return state

    def _hold(self, state: _StepState, nbytes: int) -> None:
        state.held += nbytes
        self.held += nbytes
        self.observer(MemoryHeld(self.held))

    def _skipped(self, number: int) -> bool | None:
        """Whether a step is a pass over a tile that proves needless, so that nothing is read; None: that is not known yet."""
        compute = self.cutter.compute(number)
        if not self.plan.spare(compute):
            return False
        known = self.tensors.get(compute.recipe)
        if known is None or len(known.statistics) < compute.passes[0]:
            return None
        return not self._wanted(compute, compute.passes[0], known)

    def _wanted(self, compute: Compute, index: int, tensor: _TensorState) -> bool:
        statistic = self.plan.kernels[compute.recipe].statistics[index]
        return not isinstance(statistic, Fallback) or statistic.needed(tensor.statistics)

    def _arrived(self, number: int) -> None:
        """One of the things that a step waits for is there: its last place, a load, or an earlier step's result."""
        state = self.states[number]
        state.waits -= 1
        if not state.waits:
            self.ready.append(number)
            self._start_ready()

    def _start_ready(self) -> None:
        """Begin the oldest steps that are ready; not too many at once, because each may hold counters of its own."""
        while self.ready and self.active < active_steps(self.plan.options.budget.workers):
            self.active += 1
            number = self.ready.popleft()
            step = self.schedule.steps[number]
            name, nbytes = (
                self.plan.all_recipes[self.cutter.compute(number).recipe].name,
                step.output.nbytes if step.output else 0,
            )
            self.observer(TaskStarted(step.compute, "compute", name, nbytes))
            self._start_phase(number)

    def _start_phase(self, number: int) -> None:
        """Hand the parts of a step's next pass, or of its map, to the workers."""
        compute, state = self.cutter.compute(number), self.states[number]
        tensor = self.tensors.setdefault(compute.recipe, _TensorState())
        if state.passes_done < len(compute.passes):
            index = compute.passes[state.passes_done]
            if not self._wanted(compute, index, tensor):
                self._pass_done(number, compute, tensor)
                return
            if tensor.fold is None:
                tensor.fold = Fold(self.plan.kernels[compute.recipe].statistics[index])
            parts = self.cutter.pass_parts(number, index, tensor.fold, tuple(tensor.statistics))
            state.parts_left = len(parts)
            self.passing.extend((number, part) for part in parts)
            self._continue_passes()
        elif compute.maps:
            parts = self.cutter.map_parts(number, tuple(tensor.statistics))
            state.parts_left = len(parts)
            for part in parts:
                self.workers.put((number, part))
        else:
            self._computed(number)

    def _continue_passes(self) -> None:
        """Hand parts of passes to the workers, in order and not far ahead: what overtakes a slow part waits with its findings."""
        while self.passing and self.unmerged < unmerged_parts(self.plan.options.budget.workers):
            self.unmerged += 1
            self.workers.put(self.passing.popleft())

    def _part_done(self, number: int, found: Facts | int | None) -> None:
        compute, state = self.cutter.compute(number), self.states[number]
        tensor = self.tensors[compute.recipe]
        if isinstance(found, Facts):
            tensor.facts += found
        elif found is not None:
            self.unmerged -= found
            self._continue_passes()
        state.parts_left -= 1
        if state.parts_left:
            return
        if state.passes_done < len(compute.passes):
            self._pass_done(number, compute, tensor)
        else:
            self._computed(number)

    def _pass_done(self, number: int, compute: Compute, tensor: _TensorState) -> None:
        """A pass is made, or proved needless: with a tensor's last tile its statistic is complete."""
        self.states[number].passes_done += 1
        if compute.tile == compute.tiles - 1:
            with _naming(self.plan.all_recipes[compute.recipe].name):
                tensor.statistics.append(tensor.fold.finish(tuple(tensor.statistics)) if tensor.fold is not None else None)
                settle(self.plan.options.budget.device)
            tensor.fold = None
        self._start_phase(number)

    def _computed(self, number: int) -> None:
        self.active -= 1
        step, compute, state = self.schedule.steps[number], self.cutter.compute(number), self.states[number]
        self.observer(TaskEnded(step.compute, "compute"))
        if step.output is not None:  # else what was loaded is what is saved
            self._hold(state, step.output.nbytes - state.held)
        self.computed.add(number)
        self._start_ready()
        for waiting in self.waiting.pop(number, ()):
            self._arrived(waiting)
        if not step.saves:
            self._release(number)
            return
        # Tiles of a tensor are saved in order, so that its checksum is that of its bytes.
        tensor = self.tensors[compute.recipe]
        tensor.waiting_saves[compute.tile] = number
        self._save_next(tensor)

    def _save_next(self, tensor: _TensorState) -> None:
        number = tensor.waiting_saves.pop(tensor.saved_tiles, None)
        if number is not None:
            save = self.schedule.steps[number].saves[0]
            task: Save = self.graph.nodes[save]["task"]
            self.observer(TaskStarted(save, "save", self.plan.recipes[task.recipe].name, task.nbytes))
            self.writers.put((number, save))

    def _saved(self, number: int) -> None:
        compute = self.cutter.compute(number)
        self.observer(TaskEnded(self.schedule.steps[number].saves[0], "save"))
        tensor = self.tensors[compute.recipe]
        tensor.saved_tiles += 1
        self._release(number)
        if tensor.saved_tiles < compute.tiles:
            self._save_next(tensor)
            return
        recipe, place = self.plan.recipes[compute.recipe], self.plan.places[compute.recipe]
        del self.tensors[compute.recipe]
        self.undurable += 1
        shard, proof, checksum = self.plan.shards[place.shard].name, self.proofs[compute.recipe], tensor.hash.hexdigest()
        self._commits.put(Record(recipe.name, proof, shard, place.offset, place.nbytes, checksum, tensor.facts))
        self.committer.put(0)
        self.observer(TensorWritten(recipe.name, place.nbytes))

    def _release(self, number: int) -> None:
        state = self.states.pop(number)
        self._hold(state, -state.held)
        self.saved.add(number)

    # Jobs of the other threads.

    def _read(self, job: tuple[int, Buffer], thread: int) -> object:
        number, buffer = job
        task: Load = self.graph.nodes[buffer.task]["task"]
        self.reader.read(task, self.pool.bytes(buffer.offset, buffer.nbytes))
        return "loaded", number, task.nbytes, buffer.task

    def _compute(self, job: tuple[int, Part], thread: int) -> object:
        number, part = job
        with _naming(self.plan.all_recipes[self.cutter.compute(number).recipe].name):
            return "part", number, part(self.benches[thread])

    def _write(self, job: tuple[int, int], thread: int) -> object:
        number, save = job
        task: Save = self.graph.nodes[save]["task"]
        place = self.plan.places[task.recipe]
        data = self.cutter.result(number, task.nbytes)
        self.tensors[task.recipe].hash.update(data)
        try:
            self.writer.write(place.shard, place.offset + task.offset, data)
        except OSError as error:
            raise write_error(error, self.plan.shards[place.shard].name) from None
        compute = self.cutter.compute(number)
        if compute.tile == compute.tiles - 1:  # tiles are saved in order, so all that the tensor is made of has been read
            self.reader.check(files_of([self.plan.recipes[task.recipe]]))
        return "saved", number, task.nbytes

    def _commit(self, job: object, thread: int) -> object:
        """Sync and record all tensors that are written by now; while one batch syncs, the next one gathers."""
        batch: list[Record] = []
        while True:
            try:
                batch.append(self._commits.get_nowait())
            except queue.Empty:
                break
        if batch:
            numbers = {shard.name: i for i, shard in enumerate(self.plan.shards)}
            try:
                self.writer.sync({numbers[record.shard] for record in batch})
                self.journal.add(batch)
            except OSError as error:
                raise write_error(error, batch[0].shard) from None
        return _Durable(tuple(batch))


@contextmanager
def _naming(tensor: str) -> Iterator[None]:
    """What a method cannot do with a tensor's values becomes an error that names the tensor."""
    try:
        yield
    except MethodError as error:
        raise CheckpointError(f"tensor '{tensor}': {error}") from None
