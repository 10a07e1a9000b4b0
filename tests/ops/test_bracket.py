"""Selection from a sample: the same cuts as by counting, whatever the sample says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_runs import workspace
from weft.engine.compute import Fold, Tile, blocks, gather
from weft.ops import bracket
from weft.ops.bracket import PASSES, Bracket, cuts, find_cuts, sample_stride, state_bytes
from weft.ops.declare import BLOCK, Fallback, Kernel, Scratch
from weft.ops.select import Cut


def rows(x: Sequence[Tensor], scratch: Scratch) -> Sequence[Tensor]:
    return x


def find(vectors: Sequence[Tensor], ranks: Sequence[Sequence[int]], *, mislead: bool = False) -> tuple[list[list[Cut]], int]:
    """The cuts, and how many passes were made; `mislead`: the brackets hold nothing."""
    passes = find_cuts(ranks, rows, len(vectors[0]), 0)
    made = Kernel(lambda x, start, scratch, statistics: x[0], passes, rows=1)
    space = workspace(made, len(vectors))
    statistics: list[Any] = []
    count = 0
    for one in passes:
        if isinstance(one, Fallback) and not one.needed(statistics):
            statistics.append(None)
            continue
        count += 1
        fold = Fold(one)
        for low, high in blocks(0, len(vectors[0]), made.part):
            fold.add(low, high, gather(made, one, Tile(list(vectors), 0, None), low, high, space, statistics))
        statistics.append(fold.finish(statistics))
        if mislead and count == 1:
            statistics[0] = [[Bracket(1e30, 2e30)] * len(wanted) for wanted in ranks]
    assert len(statistics) == PASSES
    return cuts(statistics), count


def plain(vector: Tensor, rank: int) -> Cut:
    """By a stable sort: the last one kept stands in the cut's block."""
    bits = vector.view(torch.int32).numpy() & 0x7FFFFFFF
    order = np.argsort(-bits.astype(np.int64), kind="stable")
    last = int(order[rank - 1])
    kept = order[:rank]
    start = last // BLOCK * BLOCK
    equal = int(((bits[kept] == bits[last]) & (kept >= start) & (kept < start + BLOCK)).sum())
    return Cut(int(bits[last]), start, equal)


def values(kind: str, n: int) -> Tensor:
    chance = torch.Generator().manual_seed(n)
    noise = torch.randn(n, generator=chance)
    match kind:
        case "random":
            return noise
        case "bf16":
            return (noise * 1e-3 + 0.02).bfloat16().float() - 0.02
        case "few values":
            return torch.randint(-2, 3, (n,), generator=chance).float()
        case "constant":
            return torch.full((n,), 0.5)
        case "zeros":
            return torch.zeros(n)
        case "with infinities":
            return noise.masked_fill_(torch.rand(n, generator=chance) < 0.3, torch.inf)
        case "with NaN":
            return noise.masked_fill_(torch.rand(n, generator=chance) < 0.3, torch.nan)
        case "in step with the sample":
            return torch.where(torch.arange(n) % sample_stride(n) == 0, noise, noise * 100)
        case "sorted":
            return noise.abs().sort().values
    raise AssertionError(kind)


KINDS = ["random", "bf16", "few values", "constant", "zeros", "with infinities", "with NaN", "in step with the sample", "sorted"]
SIZES = [1, 2, 1000, BLOCK, 5 * BLOCK + 7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", SIZES)
def test_agrees_with_a_stable_sort(kind: str, n: int) -> None:
    vector = values(kind, n)
    for rank in sorted({1, max(n // 100, 1), max(n // 3, 1), n - 1, n} - {0}):
        ((got,),), _ = find([vector], [[rank]])
        assert got == plain(vector, rank), (kind, n, rank)


@pytest.mark.parametrize("kind", ["random", "bf16", "few values", "constant", "zeros", "sorted"])
def test_two_passes_do(kind: str) -> None:
    n = 5 * BLOCK + 7
    for rank in (n // 100, n // 2, n - 5):
        assert find([values(kind, n)], [[rank]])[1] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_that_misleads_costs_passes_but_no_element(kind: str) -> None:
    n = 2 * BLOCK + 7
    vector = values(kind, n)
    ((got,),), passes = find([vector], [[n // 2]], mislead=True)
    assert got == plain(vector, n // 2)
    assert passes == PASSES


def test_more_than_can_be_kept_is_counted_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bracket, "_gathered_at_most", lambda size, rank: 10)
    n = 2 * BLOCK
    vector = values("random", n)
    ((got,),), passes = find([vector], [[n // 2]])
    assert got == plain(vector, n // 2) and passes == PASSES


def test_rows_and_ranks_are_found_together() -> None:
    n = 3 * BLOCK + 11
    vectors = [values(kind, n) for kind in ("random", "bf16", "few values")]
    ranks = [[n // 2, n // 100], [], [n // 3]]
    found, _ = find(vectors, ranks)
    assert found == [[plain(vectors[0], n // 2), plain(vectors[0], n // 100)], [], [plain(vectors[2], n // 3)]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.data())
def test_any_values(numbers: list[float], data: st.DataObject) -> None:
    vector = torch.tensor(numbers, dtype=torch.float32)
    vector[vector.isnan()] = torch.nan  # NaNs of one pattern: among others the sort orders by pattern
    rank = data.draw(st.integers(1, len(numbers)))
    ((got,),), _ = find([vector], [[rank]])
    assert got == plain(vector, rank)


@pytest.mark.parametrize("size", [1, 1 << 16, 70_000, 1 << 20, 46_000_000, 525_000_000, 2_100_000_000])
def test_samples_are_small_and_in_step_with_no_row(size: int) -> None:
    stride = sample_stride(size)
    assert stride == 1 or all(stride % d for d in range(2, stride))
    assert state_bytes(size, [[size // 2]]) <= max(1 << 20, size // 7)
