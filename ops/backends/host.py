"""Runs a kernel's passes and map over stored elements in host memory: by compiled loops where they are ready, else by NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..expression import ByColumn, ByRow, Kind, Program, Structure, trace
from ..lib.random_bits import random_words, tables, turns
from ..lib.selection import BLOCK_VALUES, HIGH_BUCKETS, LOW_BUCKETS, Cut, Equal, High, Low, LowCounts
from ..method import Count, Found, Kernel, Pass, Step, Sum
from . import eager
from .compiled import Loop
from .formats import INFINITY, RAW, Raw, narrow, rounded, widen
from .limits import SCRATCH

NO_LIMIT = 1 << 62

LoopFor = Callable[[Loop], "Callable[..., tuple[int, int, int]] | None"]
"""Gives the compiled function of a loop, or None where there is none (yet)."""


def no_loops(loop: Loop) -> None:
    """Nothing is compiled."""
    return None


@dataclass(frozen=True, slots=True)
class Stored:
    """Elements as they stand in a file: raw bits and their safetensors dtype."""

    raw: Raw
    dtype: str


@dataclass(frozen=True, slots=True)
class Tile:
    """The inputs of one task, flat, beginning at element `start` of the tensor; others than `cast` are rounded to it first."""

    inputs: tuple[Stored, ...]
    start: int
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """Where a map's result goes, and which input is the base model's own, with which it is compared."""

    raw: Raw
    dtype: str
    base: int | None = None


@dataclass(frozen=True, slots=True)
class Noted:
    """What was seen of a map's results: how many are NaN, Inf, and not the base model's."""

    nan: int = 0
    inf: int = 0
    changed: int = 0


@dataclass(frozen=True, slots=True)
class Bound:
    """A program with its numbers: scalars and cuts by name, and arrays of one a column or a row."""

    program: Program
    scalars: Mapping[str, float | int]
    cuts: Mapping[str, Cut]
    columns: Mapping[str, NDArray[np.float32]]
    rows: Mapping[str, NDArray[np.float32]]


def bind(step: Step, kernel: Kernel, inputs: int, found: Found) -> Bound:
    """A step's program for `inputs` inputs, traced once for all tensors of the same structure."""
    scalars: dict[str, float | int] = {}
    cuts: dict[str, Cut] = {}
    columns: dict[str, NDArray[np.float32]] = {}
    rows: dict[str, NDArray[np.float32]] = {}

    def structure(name: str, value: object) -> Structure:
        if value is None:
            return Structure("none")
        if isinstance(value, bool):
            return Structure("flag", int(value))
        if isinstance(value, Cut):
            cuts[name] = value
            return Structure("cut")
        if isinstance(value, ByColumn):
            columns[name] = np.ascontiguousarray(value.values, np.float32)
            return Structure("column")
        if isinstance(value, ByRow):
            rows[name] = np.ascontiguousarray(value.values, np.float32)
            return Structure("row")
        if isinstance(value, list | tuple):
            return Structure("list", len(value), tuple(structure(f"{name}.{i}", each) for i, each in enumerate(value)))
        if isinstance(value, int):
            scalars[name] = value
            return Structure("integer")
        scalars[name] = float(value)  # type: ignore[arg-type]
        return Structure("number")

    structures = tuple((name, structure(name, value)) for name, value in step.numbers(found).items())
    return Bound(_traced(step.function, inputs, kernel.base, structures), scalars, cuts, columns, rows)


@cache
def _traced(
    function: Callable[..., object], inputs: int, base: int | None, structures: tuple[tuple[str, Structure], ...]
) -> Program:
    return trace(function, inputs, base, dict(structures))


def run_map(
    kernel: Kernel, bound: Bound | None, tile: Tile, low: int, high: int, out: Output, found: Found, loops: LoopFor
) -> Noted:
    """Compute elements `low` to `high` of a tile into `out`, which is as long as the tile; `bound` is None for a direct map."""
    if low == high:
        return Noted()
    if bound is None:
        return _direct_map(kernel, tile, low, high, out, found)
    there = out.raw[low:high]
    dtypes = tuple(each.dtype for each in tile.inputs)
    if out.dtype in INFINITY and all(dtype in INFINITY for dtype in dtypes):
        run = loops(Loop(bound.program, "map", dtypes, tile.cast, out.dtype, out.base))
        if run is not None:
            return Noted(*_call(run, kernel, bound, tile, low, high, there))
    noted = Noted()
    numbers = _scalars(kernel, bound, tile, low, high)
    for begin, end in _chunks(kernel, bound.program, low, high):
        (values,) = _evaluate(kernel, bound, tile, begin, end, numbers)
        out.raw[begin:end] = narrow(values, out.dtype).view(out.raw.dtype)
        noted = _add(noted, _look(out, tile, begin, end))
    return noted


def _direct_map(kernel: Kernel, tile: Tile, low: int, high: int, out: Output, found: Found) -> Noted:
    noted = Noted()
    wholes = {i: Whole(tile.inputs[i], shape, tile.cast) for i, shape in zip(kernel.whole, kernel.whole_shapes, strict=True)}
    for begin in range(low, high, kernel.block):
        end = min(begin + kernel.block, high)
        x = [wholes.get(i) or _values(each, tile.cast, begin, end) for i, each in enumerate(tile.inputs)]
        values = kernel.map(x, tile.start + begin, found)  # type: ignore[operator]
        out.raw[begin:end] = narrow(values, out.dtype).view(out.raw.dtype)
        noted = _add(noted, _look(out, tile, begin, end))
    return noted


def run_pass(
    kernel: Kernel, each: Pass, bound: Bound | None, tile: Tile, low: int, high: int, found: Found, loops: LoopFor
) -> Any:
    """The partial result of a pass for elements `low` to `high` of a tile, which begin with a block; None of nothing."""
    if low == high:
        return None
    match each:
        case Sum():
            assert bound is not None
            return _sums(kernel, isinstance(each, Count), bound, tile, low, high, loops)
        case High():
            assert bound is not None
            return _high(kernel, bound, tile, low, high, loops)
        case Low():
            assert bound is not None
            return _low(kernel, bound, tile, low, high, found, loops)
        case Equal():
            assert bound is not None
            return _equal(kernel, bound, tile, low, high, found)
    total: Any = None
    for begin in range(low, high, kernel.block):
        end = min(begin + kernel.block, high)
        x = [_values(stored, tile.cast, begin, end) for stored in tile.inputs]
        partial = each.block(x, tile.start + begin)  # type: ignore[attr-defined]
        total = partial if total is None else each.merge(total, partial)
    return total


def _sums(kernel: Kernel, counts: bool, bound: Bound, tile: Tile, low: int, high: int, loops: LoopFor) -> list[Any]:
    rows = len(bound.program.results)
    blocks = np.zeros((-(-(high - low) // kernel.block), rows), np.int64 if counts else np.float64)
    run = _loop(bound, "count" if counts else "sum", tile, loops)
    if run is not None:
        _call(run, kernel, bound, tile, low, high, blocks)
    else:
        numbers = _scalars(kernel, bound, tile, low, high)
        for begin, end in _chunks(kernel, bound.program, low, high):
            block = (begin - low) // kernel.block
            for k, values in enumerate(_evaluate(kernel, bound, tile, begin, end, numbers)):
                if counts:
                    blocks[block, k] += np.count_nonzero(values)
                else:
                    for each in eager.strip_totals(np.asarray(values, np.float64)):
                        blocks[block, k] += each
    total: list[Any] = blocks[0].tolist()
    for block in blocks[1:].tolist():
        total = [a + b for a, b in zip(total, block, strict=True)]
    return total


def _high(kernel: Kernel, bound: Bound, tile: Tile, low: int, high: int, loops: LoopFor) -> NDArray[np.int64]:
    counts = np.zeros((len(bound.program.results), HIGH_BUCKETS), np.int64)
    run = _loop(bound, "high", tile, loops)
    if run is not None:
        _call(run, kernel, bound, tile, low, high, counts)
        return counts
    numbers = _scalars(kernel, bound, tile, low, high)
    for begin, end in _chunks(kernel, bound.program, low, high):
        for row, values in enumerate(_evaluate(kernel, bound, tile, begin, end, numbers)):
            counts[row] += np.bincount(_magnitudes(values) >> 16, minlength=HIGH_BUCKETS)
    return counts


def _low(kernel: Kernel, bound: Bound, tile: Tile, low: int, high: int, found: Found, loops: LoopFor) -> LowCounts:
    buckets = np.array([(bucket.row, bucket.high) for bucket in found[-1]], np.int64).reshape(-1, 2)
    blocks = -(-(high - low) // kernel.block)
    counts = np.zeros((len(buckets), LOW_BUCKETS), np.int32)
    noted = np.zeros((blocks, len(buckets), BLOCK_VALUES + 1, 2), np.int32)
    run = _loop(bound, "low", tile, loops)
    if run is not None:
        counters = np.zeros((len(buckets), LOW_BUCKETS), np.int32)
        _call(run, kernel, bound, tile, low, high, counts, (buckets, counters, noted))
    else:
        numbers = _scalars(kernel, bound, tile, low, high)
        for block in range(blocks):
            begin = low + block * kernel.block
            own = np.zeros_like(counts)
            for first, last in _chunks(kernel, bound.program, begin, min(begin + kernel.block, high)):
                rows = [_magnitudes(values) for values in _evaluate(kernel, bound, tile, first, last, numbers)]
                for k, (row, bucket) in enumerate(buckets.tolist()):
                    inside = rows[row][(rows[row] >> 16) == bucket] & 0xFFFF
                    own[k] += np.bincount(inside, minlength=LOW_BUCKETS).astype(np.int32)
            counts += own
            for k in range(len(buckets)):
                there = np.flatnonzero(own[k])
                noted[block, k, BLOCK_VALUES, 0] = len(there)
                if len(there) <= BLOCK_VALUES:
                    noted[block, k, : len(there), 0], noted[block, k, : len(there), 1] = there, own[k][there]
    by_bucket: list[tuple[tuple[int, NDArray[np.int32]], ...] | None] = []
    for k in range(len(buckets)):
        used = noted[:, k, BLOCK_VALUES, 0]
        starts = [tile.start + low + block * kernel.block for block in range(blocks)]
        kept = tuple((start, noted[b, k, : used[b]].copy()) for b, start in enumerate(starts) if used[b])
        by_bucket.append(None if int(used.max()) > BLOCK_VALUES else kept)
    return LowCounts(counts, tuple(by_bucket))


def _equal(kernel: Kernel, bound: Bound, tile: Tile, low: int, high: int, found: Found) -> list[tuple[int, tuple[int, ...]]]:
    levels = found[-1]
    numbers = _scalars(kernel, bound, tile, low, high)
    partial = []
    for begin in range(low, high, kernel.block):
        counts = [0] * len(levels)
        for first, last in _chunks(kernel, bound.program, begin, min(begin + kernel.block, high)):
            rows = [_magnitudes(values) for values in _evaluate(kernel, bound, tile, first, last, numbers)]
            for k, level in enumerate(levels):
                counts[k] += int(np.count_nonzero(rows[level.row] == level.bits))
        if any(counts):
            partial.append((tile.start + begin, tuple(counts)))
    return partial


def _magnitudes(values: NDArray[Any]) -> NDArray[np.int32]:
    found: NDArray[np.int32] = np.ascontiguousarray(values).view(np.int32) & np.int32(0x7FFFFFFF)
    return found


def _loop(bound: Bound, reduction: Any, tile: Tile, loops: LoopFor) -> Callable[..., tuple[int, int, int]] | None:
    dtypes = tuple(stored.dtype for stored in tile.inputs)
    if bound.program.by_row or not all(dtype in INFINITY for dtype in dtypes):
        return None
    return loops(Loop(bound.program, reduction, dtypes, tile.cast))


def _call(
    run: Callable[..., tuple[int, int, int]],
    kernel: Kernel,
    bound: Bound,
    tile: Tile,
    low: int,
    high: int,
    out: NDArray[Any],
    more: Sequence[NDArray[Any]] = (),
) -> tuple[int, int, int]:
    """Call a compiled loop with what `compiled.parameters` lists."""
    first, count = tile.start + low, high - low
    scalars = _scalars(kernel, bound, tile, low, high)
    floats = [s for s, node in zip(scalars, bound.program.numbers, strict=True) if node.kind is Kind.F32]
    integers = [s for s, node in zip(scalars, bound.program.numbers, strict=True) if node.kind is not Kind.F32]
    given: list[Any] = [first, count, kernel.width, kernel.block]
    given += [stored.raw[low:high] for stored in tile.inputs]
    given += [out, np.array(floats, np.float32), np.array(integers, np.int64)]
    given += _columns(bound)
    given += [bound.rows[str(node.detail)] for node in bound.program.nodes if node.operation == "row"]
    streams = [int(node.detail or 0) for node in bound.program.nodes if node.operation == "random"]
    if streams:
        given += [tables(), np.stack([turns(kernel.random, stream, first, count) for stream in streams])]
    return run(*given, *more)


def _columns(bound: Bound) -> list[NDArray[np.float32]]:
    return [bound.columns[str(node.detail)] for node in bound.program.nodes if node.operation == "column"]


def _scalars(kernel: Kernel, bound: Bound, tile: Tile, low: int, high: int) -> list[float | int]:
    """The program's numbers in its order; those of cuts as they are for these elements."""
    values: dict[str, float | int] = dict(bound.scalars)
    for name, cut in bound.cuts.items():
        values[f"{name}.bits"] = cut.bits
        values[f"{name}.limit"] = _limit(kernel, bound, name, cut, tile, low, high)
    return [values[str(node.detail)] for node in bound.program.numbers]


def _limit(kernel: Kernel, bound: Bound, name: str, cut: Cut, tile: Tile, low: int, high: int) -> int:
    """Below which index elements of exactly the cut's magnitude are selected, as far as it matters to these elements."""
    first, last = tile.start + low, tile.start + high
    if not cut.equal or first > cut.start:
        return 0
    if last <= cut.start:
        return NO_LIMIT
    node = dict(bound.program.cuts).get(name)
    if node is None:  # the function does not look at it
        return 0
    # The block in which the selection ends is here: the last of its equal elements that are in it is found.
    begin = cut.start - tile.start
    left = cut.equal
    numbers = [bound.scalars.get(str(each.detail), 0) for each in bound.program.numbers]  # those of cuts come later
    for start, end in _chunks(kernel, bound.program, begin, min(begin + kernel.block, high)):
        (values,) = _evaluate(kernel, bound, tile, start, end, numbers, [node])
        equal = np.flatnonzero(_magnitudes(values) == cut.bits)
        if len(equal) >= left:
            return tile.start + start + int(equal[left - 1]) + 1
        left -= len(equal)
    raise AssertionError("the block holds fewer equal elements than were counted")


def _evaluate(
    kernel: Kernel,
    bound: Bound,
    tile: Tile,
    low: int,
    high: int,
    numbers: Sequence[float | int],
    results: Sequence[int] | None = None,
) -> list[NDArray[Any]]:
    """A program's results, or those of other nodes, for elements `low` to `high` of a tile, flat."""
    shape = (-1, kernel.width) if bound.program.by_row else (-1,)
    inputs = [_values(stored, tile.cast, low, high).reshape(shape) for stored in tile.inputs]
    first = tile.start + low

    def words(stream: int) -> NDArray[np.int32]:
        return random_words(kernel.random, stream, first, high - low)

    def rows(name: str) -> NDArray[np.float32]:
        return bound.rows[name][np.arange(first, first + high - low) // kernel.width]

    found = eager.evaluate(bound.program, inputs, numbers, _columns(bound), rows, first, words, results)
    return [values.reshape(-1) for values in found]


def _values(stored: Stored, cast: str | None, low: int, high: int) -> NDArray[np.float32]:
    values = widen(stored.raw[low:high], stored.dtype)
    return values if cast is None or cast == stored.dtype else rounded(values, cast)


def _chunks(kernel: Kernel, program: Program, low: int, high: int) -> list[tuple[int, int]]:
    """Runs of elements that NumPy takes at once: whole strips or rows, none over the end of a block."""
    fit = max(SCRATCH // (8 * eager.live_arrays(program)), 1)
    unit = kernel.width if program.by_row else eager.STRIP
    step = max(fit // unit, 1) * unit
    found = []
    for block in range(low, high, kernel.block):
        end = min(block + kernel.block, high)
        found += [(begin, min(begin + step, end)) for begin in range(block, end, step)]
    return found


def _look(out: Output, tile: Tile, low: int, high: int) -> Noted:
    """What is to be noted of results that are stored."""
    raw = out.raw[low:high]
    nan, inf = nonfinite(raw, out.dtype)
    if out.base is None:
        return Noted(nan, inf, 0)
    own = tile.inputs[out.base]
    base = own.raw[low:high]
    if own.dtype != out.dtype:
        base = converted(base, own.dtype, out.dtype)
    return Noted(nan, inf, int(np.count_nonzero(raw != base)))


def converted(raw: Raw, dtype: str, to: str) -> Raw:
    """Stored elements in another format, without a detour by float32 where both are wider."""
    if {dtype, to} <= {"F64"} or dtype == to:
        return raw
    return narrow(widen(raw, dtype), to)


def nonfinite(raw: Raw, dtype: str) -> tuple[int, int]:
    """How many NaN and how many Inf there are; none in integers."""
    infinity = INFINITY.get(dtype)
    if infinity is None:
        return 0, 0
    kind = RAW[raw.itemsize]
    magnitude = raw & kind((1 << (8 * raw.itemsize - 1)) - 1)
    if not len(magnitude) or int(magnitude.max()) < infinity:
        return 0, 0
    return int(np.count_nonzero(magnitude > infinity)), int(np.count_nonzero(magnitude == infinity))


def _add(a: Noted, b: Noted) -> Noted:
    return Noted(a.nan + b.nan, a.inf + b.inf, a.changed + b.changed)


@dataclass(frozen=True, slots=True)
class Whole:
    """An input of which any part may be read, as float32."""

    stored: Stored
    shape: tuple[int, ...]
    cast: str | None

    def __getitem__(self, where: tuple[slice, ...]) -> NDArray[np.float32]:
        raw = np.ascontiguousarray(self.stored.raw[: math.prod(self.shape)].reshape(self.shape)[where])
        values = widen(raw, self.stored.dtype)
        if self.cast is not None and self.cast != self.stored.dtype:
            values = rounded(values, self.cast)
        return values.copy() if self.stored.dtype == "F32" else values


def draw(function: Callable[..., object], stream: str, count: int) -> NDArray[np.float32]:
    """`count` random numbers: a function of `models`, of which there is one of zeros, that looks at random words alone."""
    kernel = Kernel(Step(function), random=stream)
    zeros = Tile((Stored(np.zeros(count, np.uint32), "F32"),), 0)
    out = np.empty(count, np.uint32)
    run_map(kernel, bind(Step(function), kernel, 1, ()), zeros, 0, count, Output(out, "F32"), (), no_loops)
    return out.view(np.float32)
