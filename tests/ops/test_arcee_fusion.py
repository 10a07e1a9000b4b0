"""arcee_fusion: exact quantiles of importances, and what stands at or above the threshold is taken over."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import merge
from references_more import LARGE, SHAPES, any_way, assert_rounding, coarse, smooth
from weft.ops.method import BLOCK

SETTINGS = settings(max_examples=25, deadline=None)


def tuned(shape: tuple[int, ...], seed: int, size: float = 0.3) -> list[Tensor]:
    """A base and a model close to it."""
    base, delta = smooth(shape, 2, seed)
    return [base, base + size * delta]


def fused(x: list[Tensor], base: int = 0) -> Tensor:
    return merge("arcee_fusion", x, [{}, {}], base=base)


@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("size", [0.3, 1e-4])
def test_agrees(shape: tuple[int, ...], place: int, size: float) -> None:
    x = tuned(shape, 1, size)
    want, taken = references.arcee_fusion(*x)
    got = any_way("arcee_fusion", x[::-1] if place else x, base=place)
    assert_rounding(got, want, 2)
    assert torch.equal(got != x[0], taken & (x[0] != x[1]))
    if taken.numel() > 100:
        assert 0 < float(taken.double().mean()) < 0.3
        assert int((got != x[0]).sum()) > 0


@pytest.mark.parametrize("shape", [(13, 4000), (5 * BLOCK,), (20, 40_000)], ids=str)
def test_agrees_where_many_importances_are_equal(shape: tuple[int, ...]) -> None:
    x = coarse(shape, 2, 2)
    want, taken = references.arcee_fusion(*x)
    got = any_way("arcee_fusion", x, base=0)
    assert torch.equal(got.double(), want) and bool(taken.any()) and not bool(taken.all())


def test_quantiles_are_of_all_elements() -> None:
    """Also above the million elements of which the reference tool takes a sample."""
    x = tuned((30, 40_000), 3)
    _, taken = references.arcee_fusion(*x)
    assert torch.equal(any_way("arcee_fusion", x, base=0) != x[0], taken)


def test_an_example_by_hand() -> None:
    """One row, so one divergence: what counts are the differences. Sorted they are 0 0 0 1 2 3 4 20 of 8."""
    base = torch.zeros(8)
    delta = torch.tensor([0.0, 1.0, 2.0, 0.0, 3.0, 0.0, -4.0, 20.0]) / 100
    # Q1 is element ⌊1.75⌋ = 1: 0. The median is element 3: 1. Q3 is element 5: 3. So 1 + 1.5·3 = 5.5 and only 20 is above.
    assert fused([base, delta]).tolist() == pytest.approx([0.0] * 7 + [0.2])
    # With 6 in its place only 6 is; with 5 nothing is.
    for last, taken in ((6.0, 1), (5.0, 0)):
        delta[7] = last / 100
        assert int((fused([base, delta]) != 0).sum()) == taken


def test_rows_that_changed_more_count_for_more() -> None:
    """Everywhere the same difference but for its sign: a row's distribution changes as much as its signs are mixed."""
    delta = torch.full((10, 64), 0.1)
    for row, mixed in enumerate([3, 7, 1, 32, 2, 9, 4, 6, 5, 8]):
        delta[row, :mixed] = -0.1
    got = fused([torch.zeros(10, 64), delta])
    assert (got != 0).all(1).tolist() == [row == 3 for row in range(10)]
    assert torch.equal(got[3], delta[3]) and int((got != 0).sum()) == 64


@SETTINGS
@given(n=st.integers(1, 60), seed=st.integers(0, 1 << 30))
def test_equal_models_change_nothing(n: int, seed: int) -> None:
    (x,) = smooth((n, 4), 1, seed)
    assert torch.equal(fused([x, x]), x)


@SETTINGS
@given(n=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 1 << 30))
def test_takes_the_other_value_or_leaves_the_base(n: int, width: int, seed: int) -> None:
    x = tuned((n, width), seed)
    got = fused(x)
    moved = got != x[0]
    assert torch.allclose(got[moved], x[1][moved], rtol=1e-6, atol=1e-6)
    # Of what is taken over, nothing matters less than what is left.
    _, taken = references.arcee_fusion(*x)
    assert torch.equal(moved, taken & (x[0] != x[1]))


@SETTINGS
@given(rows=st.integers(2, 12), seed=st.integers(0, 1 << 30))
def test_permuted_rows(rows: int, seed: int) -> None:
    x = tuned((rows, 50), seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(fused([row[order] for row in x]), fused(x)[order])


@SETTINGS
@given(seed=st.integers(0, 1 << 30), size=st.sampled_from([1e-5, 1e-6, 1e-7]))
def test_divergences_that_rounding_makes_negative_count_as_next_to_none(seed: int, size: float) -> None:
    """So the order of importances is that of their magnitudes, by which the quantiles are found."""
    x = tuned((40, 30), seed, size)
    _, taken = references.arcee_fusion(*x)
    assert torch.equal(fused(x) != x[0], taken & (x[0] != x[1]))
    # In a single row the divergence cancels out: whatever it is, the largest differences are taken over, and not many.
    base, delta = torch.zeros(1000), torch.linspace(-1, 1, 1000) ** 9 * size
    got = fused([base, base + delta])
    assert torch.equal(got != 0, references.arcee_fusion(base, delta)[1] & (delta != 0))


def test_rows_of_one_element() -> None:
    """The distribution of one element never changes: no importance anywhere, so a threshold of 0 that all reach."""
    x = tuned((50, 1), 5)
    assert_rounding(fused(x), x[1].double(), 2)
    assert torch.equal(fused([x[0][:1].flatten(), x[1][:1].flatten()]), x[0][:1].flatten() + (x[1] - x[0])[:1].flatten())


def test_damaged_values_stay_visible() -> None:
    x = tuned((3, 50), 6)
    x[1][1, 7] = math.nan
    assert torch.isnan(fused(x)[1, 7])
