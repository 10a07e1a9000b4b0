"""Runs programs with torch on whole blocks, for a device beside the memory into which tensors are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..expression import Kind, Program
from ..lib.random_bits import random_words
from ..lib.selection import BLOCK_VALUES, HIGH_BUCKETS, LOW_BUCKETS, Equal, High, Low, LowCounts
from ..method import Count, Found, Kernel, Pass, Step, Sum
from .host import NO_LIMIT, Bound

_TYPES = {Kind.F32: torch.float32, Kind.F64: torch.float64, Kind.I32: torch.int32, Kind.I64: torch.int64, Kind.BOOL: torch.bool}

_OPERATIONS: dict[str, Any] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "neg": torch.neg, "abs": torch.abs,
    "sqrt": torch.sqrt, "acos": torch.acos, "sin": torch.sin,
    "lt": torch.lt, "le": torch.le, "gt": torch.gt, "ge": torch.ge, "eq": torch.eq, "ne": torch.ne,
    "and": torch.bitwise_and, "or": torch.bitwise_or, "xor": torch.bitwise_xor, "not": torch.bitwise_not,
    "shr": torch.bitwise_right_shift, "shl": torch.bitwise_left_shift, "where": torch.where,
    "f64": Tensor.double, "f32": Tensor.float, "i64": Tensor.long,
    "bits": lambda v: v.view(torch.int32), "from_bits": lambda v: v.view(torch.float32),
    "bits64": lambda v: v.view(torch.int64), "from_bits64": lambda v: v.view(torch.float64),
}  # fmt: skip


def map_block(kernel: Kernel, bound: Bound | None, x: Sequence[Any], start: int, found: Found) -> Tensor:
    """The result of the block that begins at element `start`, flat; `bound` is None for a direct map."""
    if bound is None:
        assert not isinstance(kernel.map, Step)
        shapes = dict(zip(kernel.whole, kernel.whole_shapes, strict=True))
        given = [_Whole(each.view(shapes[i])) if i in shapes else each for i, each in enumerate(x)]
        result: Tensor = kernel.map(given, start, found)
        return result
    (values,) = _evaluate(kernel, bound, x, start, bound.program.results)
    return values


class _Whole:
    """An input of which any part may be read, as float32."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __getitem__(self, where: tuple[slice, ...]) -> Tensor:
        return self._tensor[where].to(torch.float32, copy=True)


def pass_block(kernel: Kernel, each: Pass, bound: Bound | None, x: Sequence[Tensor], start: int, found: Found) -> Any:
    """The partial result of a pass for one block; see the passes for what each is."""
    if bound is None:
        return each.block(x, start)  # type: ignore[attr-defined]
    values = _evaluate(kernel, bound, x, start, bound.program.results)
    match each:
        case Count():
            return torch.stack([row.sum() for row in values]).tolist()
        case Sum():
            return torch.stack([row.double().sum() for row in values]).tolist()
        case High():
            counts = [torch.bincount(_magnitudes(row) >> 16, minlength=HIGH_BUCKETS) for row in values]
            return np.stack([row.cpu().numpy() for row in counts]) if counts else np.zeros((0, HIGH_BUCKETS), np.int64)
        case Low():
            return _low(values, start, found)
        case Equal():
            levels = found[-1]
            equal = tuple(int((_magnitudes(values[level.row]) == level.bits).sum()) for level in levels)
            return [(start, equal)] if any(equal) else []
    raise TypeError(f"a pass of type {type(each).__name__} has no step")


def _low(values: Sequence[Tensor], start: int, found: Found) -> LowCounts:
    rows = [_magnitudes(row) for row in values]
    counts = np.zeros((len(found[-1]), LOW_BUCKETS), np.int64)
    blocks: list[tuple[tuple[int, Any], ...] | None] = []
    for k, bucket in enumerate(found[-1]):
        row = rows[bucket.row]
        counts[k] = torch.bincount(row[(row >> 16) == bucket.high] & 0xFFFF, minlength=LOW_BUCKETS).cpu().numpy()
        there = np.flatnonzero(counts[k])
        noted = np.stack([there, counts[k][there]], axis=1).astype(np.int32)
        blocks.append(None if len(there) > BLOCK_VALUES else ((start, noted),) if len(there) else ())
    return LowCounts(counts, tuple(blocks))


def _magnitudes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32) & 0x7FFFFFFF


def _evaluate(kernel: Kernel, bound: Bound, x: Sequence[Tensor], start: int, results: Sequence[int]) -> list[Tensor]:
    program = bound.program
    shape = (-1, kernel.width) if program.by_row else (-1,)
    inputs = [row.reshape(shape) for row in x]
    scalars: dict[str, float | int] = dict(bound.scalars)
    for name, cut in bound.cuts.items():
        scalars[f"{name}.bits"], scalars[f"{name}.limit"] = cut.bits, NO_LIMIT if start < cut.start else 0
        if cut.equal and start == cut.start and name in dict(program.cuts):
            (values,) = _run(kernel, program, inputs, {}, bound, start, [dict(program.cuts)[name]])
            equal = torch.nonzero(_magnitudes(values.reshape(-1)) == cut.bits).flatten()
            scalars[f"{name}.limit"] = start + int(equal[cut.equal - 1]) + 1
    return [values.reshape(-1) for values in _run(kernel, program, inputs, scalars, bound, start, results)]


def _run(
    kernel: Kernel,
    program: Program,
    inputs: Sequence[Tensor],
    scalars: dict[str, float | int],
    bound: Bound,
    start: int,
    results: Sequence[int],
) -> list[Tensor]:
    on, shape, size = inputs[0].device, inputs[0].shape, inputs[0].numel()
    last = {argument: number for number, node in enumerate(program.nodes) for argument in node.arguments}
    values: list[Any] = [None] * len(program.nodes)
    for number, node in enumerate(program.nodes[: max(results) + 1]):
        match node.operation:
            case "input":
                value: Any = inputs[int(node.detail or 0)]
            case "constant":
                value = torch.tensor(node.detail, dtype=_TYPES[node.kind], device=on)
            case "number":
                value = torch.tensor(
                    scalars.get(str(node.detail), bound.scalars.get(str(node.detail), 0)), dtype=_TYPES[node.kind]
                )
                value = value.to(on)
            case "column":
                value = torch.from_numpy(bound.columns[str(node.detail)]).to(on)
            case "row":
                places = torch.arange(start, start + size, device=on) // kernel.width
                value = torch.from_numpy(bound.rows[str(node.detail)]).to(on)[places].reshape(shape)
            case "index":
                value = torch.arange(start, start + size, device=on).reshape(shape)
            case "random":
                value = torch.from_numpy(random_words(kernel.random, int(node.detail or 0), start, size)).to(on).reshape(shape)
            case "row_sum":
                value = values[node.arguments[0]].expand(shape).sum(1, keepdim=True)
            case "row_max":
                value = values[node.arguments[0]].expand(shape).amax(1, keepdim=True)
            case "row_rank":
                keys = values[node.arguments[0]].expand(shape)
                places = torch.arange(shape[1], dtype=torch.int32, device=on).expand(shape)
                value = torch.empty_like(places, memory_format=torch.contiguous_format)
                value = value.scatter_(1, keys.argsort(dim=1, stable=True), places.contiguous())
            case operation:
                value = _OPERATIONS[operation](*(values[a] for a in node.arguments))
        values[number] = value
        for argument in node.arguments:
            if last[argument] == number and argument not in results:
                values[argument] = None
    return [values[result].expand(shape) for result in results]
