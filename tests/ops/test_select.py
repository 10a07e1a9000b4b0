"""Selection by counting against a sort."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_runs import workspace
from references import largest
from weft.ops.declare import BLOCK, Kernel, Scratch, Statistic
from weft.ops.select import CountEqual, CountHigh, CountLow, Cut, selected


def rows(x: Sequence[Tensor], scratch: Scratch) -> Sequence[Tensor]:
    return x


def select(vectors: Sequence[Tensor], keep: Sequence[int | None]) -> tuple[list[Tensor], list[Cut | None]]:
    """The vectors with all but the largest zeroed, a block at a time."""
    made = Kernel(lambda x, start, scratch, statistics: x[0], rows=1)
    space = workspace(made, len(vectors))
    ranks = [() if k is None else (k,) for k in keep]
    wanted = [k is not None for k in keep]
    passes: list[Statistic] = [CountHigh(wanted, lambda earlier: ranks, rows, 0), CountLow(rows, 0), CountEqual(rows, 0)]
    starts = range(0, len(vectors[0]), BLOCK)
    earlier: list[Any] = []
    for one in passes:
        total: Any = None
        ranges = [(start, min(start + BLOCK, len(vectors[0]))) for start in starts]
        for start, loaded in zip(starts, space.feed(made, list(vectors), ranges, None), strict=True):
            partial = one.block(loaded, start, space, earlier)
            total = partial if start == 0 else one.merge(total, partial)
        earlier.append(one.finish(total, earlier))
    found: list[list[Cut]] = earlier[-1]
    cuts = [cut[0] if cut else None for cut in found]
    out = [vector.clone() for vector in vectors]
    for start in starts:
        for vector, cut in zip(out, cuts, strict=True):
            if cut is not None:
                piece = vector[start : start + BLOCK]
                for _ in space.feed(made, [piece], [(0, len(piece))], None):
                    selected(piece, cut, start, piece, space.row(0))
    return out, cuts


def values(kind: str, n: int) -> Tensor:
    chance = torch.Generator().manual_seed(n)
    noise = torch.randn(n, generator=chance)
    grid = torch.randint(-3, 4, (n,), generator=chance)
    match kind:
        case "random":
            return noise
        case "constant":
            return torch.full((n,), -0.25)
        case "zeros":
            return torch.zeros(n) * noise.sign()
        case "denormal":
            return (grid.int() + 4).view(torch.float32) * noise.sign()
        case "huge":
            return noise.sign() * torch.finfo(torch.float32).max * (1 - torch.rand(n, generator=chance) * 2**-20)
        case "bf16":
            return (noise * 1e-3 + 0.02).bfloat16().float() - 0.02
        case "low bits":  # one high bucket: only the second pass tells them apart
            return (torch.randint(0, 1 << 16, (n,), generator=chance, dtype=torch.int32) | 0x3F800000).view(torch.float32)
        case "bucket ends":
            return (grid.sign().int() + 0x3F800000).view(torch.float32)
    raise AssertionError(kind)


KINDS = ["random", "constant", "zeros", "denormal", "huge", "bf16", "low bits", "bucket ends"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 2, 1000, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
def test_agrees_with_a_stable_sort(kind: str, n: int) -> None:
    vector = values(kind, n)
    for keep in sorted({1, 2, n // 3, n // 2, n - 1, n} & set(range(1, n + 1))):
        (got,), _ = select([vector], [keep])
        kept = largest(vector, keep)
        assert torch.equal(got, torch.where(kept, vector, 0.0)), (kind, n, keep)
        assert int((got.view(torch.int32) & 0x7FFFFFFF != 0).sum()) == int((kept & (vector != 0)).sum())


def test_rows_are_cut_each_by_its_own_number() -> None:
    vectors = [values(kind, 2 * BLOCK + 5) for kind in ("random", "bf16", "constant")]
    got, cuts = select(vectors, [10, None, 2 * BLOCK])
    assert cuts[1] is None and torch.equal(got[1], vectors[1])
    assert int(got[0].count_nonzero()) == 10 and int(got[2].count_nonzero()) == 2 * BLOCK
    assert cuts[2] == Cut(int(torch.tensor(0.25).view(torch.int32)), BLOCK, BLOCK)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=True), min_size=1, max_size=50),
    st.data(),
)
def test_any_values(numbers: list[float], data: st.DataObject) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    keep = data.draw(st.integers(1, len(numbers)))
    (got,), _ = select([vector], [keep])
    kept = largest(vector, keep)
    assert torch.equal(got[kept], vector[kept])
    finite = ~kept & torch.isfinite(vector)
    assert (got[finite] == 0).all()
    assert bool((kept & torch.isinf(vector)).sum() == min(int(torch.isinf(vector).sum()), keep))
