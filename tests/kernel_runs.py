"""Runs a method's kernel over whole tensors the way the executor does: tiles, parts in any order, blocks in reused scratch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from weft.engine.compute import Fold, blocks, bound_map, bound_pass, gather, transform
from weft.engine.journal import Facts
from weft.ops.backends.formats import RAW
from weft.ops.backends.host import LoopFor, Output, Stored, Tile, no_loops
from weft.ops.method import Arguments, Fallback, Kernel
from weft.ops.registry import methods

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}


def arguments(
    method: str,
    shape: Sequence[int],
    models: Sequence[Mapping[str, float]],
    shared: Mapping[str, float] | None = None,
    base: int | None = None,
    stream: str = "0\0tensor",
) -> Arguments:
    """Arguments as the planner gives them: what is not given has its default; a base that is no model has no parameters."""
    declared = [p for p in methods()[method].parameters if not p.inert and p.default is not None]
    own = {p.name: float(p.default or 0) for p in declared if p.scope == "model"}
    everywhere = {p.name: float(p.default or 0) for p in declared if p.scope == "global"}
    return Arguments(tuple(shape), tuple({**own, **model} for model in models), {**everywhere, **(shared or {})}, base, stream)


def kernel(method: str, shape: Sequence[int], models: Sequence[Mapping[str, float]], **rest: Any) -> Kernel:
    return methods()[method].kernel(arguments(method, shape, models, **rest))


def stored(x: Tensor) -> Stored:
    """A tensor as it stands in a file."""
    flat = x.detach().contiguous().flatten()
    return Stored(flat.view(BITS[flat.element_size()]).numpy().view(RAW[flat.element_size()]), DTYPES[x.dtype])


def run_kernel(
    made: Kernel,
    inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    cast: torch.dtype | None = None,
    tile: int | None = None,
    shuffle: int = 0,
    base: int | None = None,
    loops: LoopFor = no_loops,
) -> tuple[Tensor, Facts]:
    """The output and its facts. `tile` elements are loaded at a time; `shuffle` seeds the order in which parts are done."""
    flat = [stored(x) for x in inputs]
    size = inputs[0].numel()
    step = tile or max(size, 1)
    assert step % made.part == 0 or step >= size, "tiles are whole parts"
    starts = list(range(0, size, step)) or [0]
    rounded = DTYPES[cast] if cast is not None else None
    tiles = [
        Tile(
            tuple(x if i in made.whole else Stored(x.raw[start : start + step], x.dtype) for i, x in enumerate(flat)),
            start,
            rounded,
        )
        for start in starts
    ]
    counts = [min(step, size - start) for start in starts]
    jobs = [(tile, low, high) for tile, count in zip(tiles, counts, strict=True) for low, high in blocks(0, count, made.part)]
    chance = random.Random(shuffle)
    found: list[Any] = []
    for statistic in made.statistics:
        if isinstance(statistic, Fallback) and not statistic.needed(found):
            found.append(None)
            continue
        fold, bound = Fold(statistic), bound_pass(made, statistic, len(flat), found)
        for tile_, low, high in chance.sample(jobs, len(jobs)):
            partial = gather(made, statistic, bound, tile_, low, high, found, loops)
            fold.add(tile_.start + low, tile_.start + high, partial)
        found.append(fold.finish(tuple(found)))
    out = torch.empty(size, dtype=dtype)
    raw = out.view(BITS[out.element_size()]).numpy().view(RAW[out.element_size()])
    facts, bound = Facts(), bound_map(made, len(flat), found)
    for tile_, low, high in chance.sample(jobs, len(jobs)):
        output = Output(raw[tile_.start : tile_.start + step], DTYPES[dtype], base)
        facts += transform(made, bound, tile_, output, low, high, found, loops)
    return out.view(inputs[0].shape), facts


def merge(
    method: str,
    inputs: Sequence[Tensor],
    models: Sequence[Mapping[str, float]],
    shared: Mapping[str, float] | None = None,
    base: int | None = None,
    stream: str = "0\0tensor",
    **how: Any,
) -> Tensor:
    """The merged tensor alone."""
    made = kernel(method, tuple(inputs[0].shape), models, shared=shared, base=base, stream=stream)
    return run_kernel(made, inputs, **how)[0]
