"""Selection by counting against a sort."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_runs import run_kernel
from references import largest
from weft.ops.expression import CutSymbol, Value, selected, where
from weft.ops.lib import selection
from weft.ops.lib.selection import Cut, cuts, find_cuts
from weft.ops.method import BLOCK, Found, Kernel, Step


def themselves(models: Sequence[Value]) -> Sequence[Value]:
    return models


def kept_of_first(models: Sequence[Value], cut: CutSymbol | None) -> Value:
    return models[0] if cut is None else where(selected(models[0], cut), models[0], 0.0)


def with_cut(cut: Cut | None, found: Found) -> dict[str, object]:
    return {"cut": cut}


def select(vectors: Sequence[Tensor], keep: Sequence[int | None]) -> tuple[list[Tensor], list[Cut | None]]:
    """The vectors with all but the largest zeroed."""
    ranks = [() if k is None else (k,) for k in keep]
    found: list[Any] = []

    def numbers(known: Found) -> dict[str, object]:
        found[:] = cuts(known, 0, ranks)
        return {"cut": None}

    passes = find_cuts(themselves, lambda known: ranks, lambda known: {})
    run_kernel(Kernel(Step(kept_of_first, numbers), passes), vectors)
    chosen = [own[0] if own else None for own in found]
    out = []
    for vector, cut in zip(vectors, chosen, strict=True):
        out.append(run_kernel(Kernel(Step(kept_of_first, partial(with_cut, cut))), [vector])[0])
    return out, chosen


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


def test_many_values_in_one_bucket_are_found_by_a_third_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "TENSOR_VALUES", 100)
    vector = values("low bits", 3 * BLOCK)
    vector[BLOCK - 5 : 2 * BLOCK] = vector[7]
    for keep in (1000, BLOCK + 17, 2 * BLOCK):
        (got,), _ = select([vector], [keep])
        assert torch.equal(got != 0, largest(vector, keep))


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
