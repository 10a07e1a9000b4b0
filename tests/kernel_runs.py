"""Runs a method's kernel over whole tensors the way the executor does: tiles, parts in any order, blocks in reused scratch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from weft.engine.compute import Fold, Tile, as_written, blocks, examine, gather, transform
from weft.engine.journal import Facts
from weft.engine.scan import Scanner
from weft.engine.workspace import HostWorkspace
from weft.ops.declare import Arguments, Fallback, Kernel, Statistic
from weft.ops.registry import methods
from weft.planner.memory import workspace_bytes

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


def workspace(kernel: Kernel, inputs: int) -> HostWorkspace:
    """One worker's scratch, dirty: nothing may rely on what it held before."""
    space = _memory(workspace_bytes(kernel, inputs))
    space._memory.fill_(0xFF)
    space.arrange(inputs, kernel)
    return space


@cache
def _memory(nbytes: int) -> HostWorkspace:
    """Made once, for new memory costs more than what is computed in it."""
    return HostWorkspace(nbytes)


def run_kernel(
    made: Kernel,
    inputs: Sequence[Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    cast: torch.dtype | None = None,
    tile: int | None = None,
    shuffle: int = 0,
    base: int | None = None,
) -> tuple[Tensor, Facts]:
    """The output and its facts. `tile` elements are loaded at a time; `shuffle` seeds the order in which parts are done."""
    flat = [x.flatten() for x in inputs]
    size = len(flat[0])
    step = tile or max(size, 1)
    assert step % made.part == 0 or step >= size, "tiles are whole parts"
    starts = list(range(0, size, step)) or [0]
    space = workspace(made, len(flat))
    chance = random.Random(shuffle)
    statistics: list[Any] = []
    for statistic in made.statistics:
        if isinstance(statistic, Fallback) and not statistic.needed(statistics):
            statistics.append(None)
            continue
        statistics.append(_gather(made, statistic, flat, starts, step, space, tuple(statistics), cast, chance))
    out = torch.empty(size, dtype=dtype)
    facts = Facts()
    for start in chance.sample(starts, len(starts)):
        views = [x[start : start + step] for x in flat]
        count = len(views[0])
        for low, high in blocks(0, count, made.part):
            there = out[start : start + count]
            transform(made, Tile(views, start, cast), there, low, high, space, tuple(statistics))
            original = as_written(views[base], dtype)(low, high) if base is not None else None
            facts += examine(as_written(there, dtype)(low, high), DTYPES[dtype], original, Scanner())
    return out.view(inputs[0].shape), facts


def _gather(
    made: Kernel,
    statistic: Statistic,
    flat: Sequence[Tensor],
    starts: Sequence[int],
    step: int,
    space: HostWorkspace,
    earlier: Sequence[Any],
    cast: torch.dtype | None,
    chance: random.Random,
) -> Any:
    fold = Fold(statistic)
    jobs = []
    for start in starts:
        views = [x[start : start + step] for x in flat]
        jobs += [(Tile(views, start, cast), low, high) for low, high in blocks(0, len(views[0]), made.part)]
    for tile, low, high in chance.sample(jobs, len(jobs)):
        fold.add(tile.start + low, tile.start + high, gather(made, statistic, tile, low, high, space, earlier))
    return fold.finish(earlier)


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
