"""Runs programs with NumPy, a chunk of elements at a time: no compiler, no start-up, and the meaning of every operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..expression import Kind, Program

Array = NDArray[Any]

TYPES = {Kind.F32: np.float32, Kind.F64: np.float64, Kind.I32: np.int32, Kind.I64: np.int64, Kind.BOOL: np.bool_}


def _one_by_one(function: Callable[[float], float], values: Array) -> Array:
    """The C library's function, as compiled loops call it too: NumPy has its own, which rounds otherwise."""
    flat = [function(value) if math.isfinite(value) else math.nan for value in np.asarray(values).ravel().tolist()]
    return np.array(flat).reshape(np.shape(values))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt,
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "shr": np.right_shift, "shl": np.left_shift, "where": np.where,
    "acos": lambda v: _one_by_one(math.acos, v), "sin": lambda v: _one_by_one(math.sin, v),
    "f64": lambda v: np.asarray(v, np.float64), "f32": lambda v: np.asarray(v, np.float32),
    "i64": lambda v: np.asarray(v).astype(np.int64),
    "bits": lambda v: np.asarray(v).view(np.int32), "from_bits": lambda v: np.asarray(v).view(np.float32),
    "bits64": lambda v: np.asarray(v).view(np.int64), "from_bits64": lambda v: np.asarray(v).view(np.float64),
}  # fmt: skip

LANES = 32
"""Running sums that a strip of elements is dealt out to in turn, so that a processor can add several at once."""

STRIP = 4096
"""Elements whose sum is made in lanes; sums of strips are added one after another."""


def fold_lanes(lanes: Array) -> Array:
    """The sum over the last axis of LANES, halving it: the same order as the compiled loops'."""
    half = LANES // 2
    while half:
        lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        half //= 2
    return lanes[..., 0]


def lane_sums(values: Array) -> Array:
    """Sums over the last axis in float64: element i goes to lane i mod 32, in order, and then lanes are folded."""
    width = values.shape[-1]
    steps = -(-width // LANES)
    if steps * LANES != width:
        padded = np.zeros((*values.shape[:-1], steps * LANES))
        padded[..., :width] = values
        values = padded
    return fold_lanes(np.add.reduce(np.ascontiguousarray(values).reshape(*values.shape[:-1], steps, LANES), axis=-2))


def strip_totals(values: Array) -> list[float]:
    """The sums of a run's strips in float64; only the last may be short."""
    whole = len(values) // STRIP * STRIP
    totals: list[float] = lane_sums(values[:whole].reshape(-1, STRIP)).tolist() if whole else []
    if whole < len(values):
        totals.append(float(lane_sums(values[whole:])))
    return totals


def live_arrays(program: Program) -> int:
    """The most arrays, inputs included, that are alive at once while a program runs; each takes at most 8 bytes an element."""
    last = _last_uses(program)
    alive = most = 0
    for number, node in enumerate(program.nodes):
        alive += node.operation not in ("number", "constant", "column")
        most = max(most, alive)
        alive -= sum(
            last[a] == number and program.nodes[a].operation not in ("number", "constant", "column") for a in set(node.arguments)
        )
    return most + 2  # what an operation makes beside its result, such as a conversion


def _last_uses(program: Program) -> list[int]:
    last = list(range(len(program.nodes)))
    for number, node in enumerate(program.nodes):
        for argument in node.arguments:
            last[argument] = number
    for result in program.results:
        last[result] = len(program.nodes)
    return last


def evaluate(
    program: Program,
    inputs: Sequence[Array],
    scalars: Sequence[float | int],
    columns: Sequence[Array],
    rows: Callable[[str], Array],
    first: int,
    words: Callable[[int], Array],
    results: Sequence[int] | None = None,
) -> list[Array]:
    """The results for some elements, of which `inputs` are the float32 values: flat, or [rows, width] for a program by rows.

    `scalars` and `columns` are in the program's order; `rows` gives the numbers by row for these elements; `first` is the index
    of the first element in the tensor; `words` gives the random words of a stream for these elements. `results`: other nodes than
    the program's own.
    """
    wanted = program.results if results is None else results
    last = _last_uses(program)
    for result in wanted:
        last[result] = len(program.nodes)
    stop = max(wanted, default=-1)
    shape = inputs[0].shape
    values: list[Any] = [None] * len(program.nodes)
    given, by_column = iter(scalars), iter(columns)
    with np.errstate(all="ignore"):
        for number, node in enumerate(program.nodes[: stop + 1]):
            match node.operation:
                case "input":
                    value: Any = inputs[int(node.detail or 0)]
                case "constant":
                    value = TYPES[node.kind](node.detail)
                case "number":
                    value = TYPES[node.kind](next(given))
                case "column":
                    value = next(by_column)
                case "row":
                    value = rows(str(node.detail)).reshape(shape)
                case "index":
                    value = np.arange(first, first + inputs[0].size, dtype=np.int64).reshape(shape)
                case "random":
                    value = words(int(node.detail or 0)).reshape(shape)
                case "row_sum":
                    value = lane_sums(np.broadcast_to(values[node.arguments[0]], shape))[:, None]
                case "row_max":
                    value = np.broadcast_to(values[node.arguments[0]], shape).max(axis=1, keepdims=True)
                case "row_rank":
                    order = np.broadcast_to(values[node.arguments[0]], shape).argsort(axis=1, kind="stable")
                    value = np.empty(shape, np.int32)
                    np.put_along_axis(value, order, np.arange(shape[1], dtype=np.int32)[None, :], axis=1)
                case operation:
                    value = _OPERATIONS[operation](*(values[a] for a in node.arguments))
            values[number] = value
            for argument in node.arguments:
                if last[argument] == number:
                    values[argument] = None
        return [np.broadcast_to(values[result], shape) for result in wanted]
