"""nearswap: a step of at most t towards the other model, element by element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import references_more as references
from kernel_runs import merge
from references_more import LARGE, SHAPES, any_way, assert_rounding, smooth

SETTINGS = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.5, 100.0])
def test_nearswap(shape: tuple[int, ...], place: int, t: float) -> None:
    x = smooth(shape, 2, 1)
    got = any_way("nearswap", x, shared={"t": t}, base=place)
    assert_rounding(got, references.nearswap(x[place].double(), x[1 - place].double(), t), 4)


def test_an_example_by_hand() -> None:
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    other = torch.tensor([1.25, 3.0, 0.5, -1.0, 1.0])
    got = merge("nearswap", [base, other], [{}, {}], {"t": 0.5}, 0)
    assert got.tolist() == pytest.approx([1.25, 1.5, 0.5, 0.5, 1.0])


@SETTINGS
@given(n=st.integers(1, 40), seed=st.integers(0, 1 << 30), t=st.floats(0, 2), place=st.integers(0, 1))
def test_moves_by_t_at_most_and_never_past_the_other(n: int, seed: int, t: float, place: int) -> None:
    x = smooth((n,), 2, seed)
    base, other = x[place].double(), x[1 - place].double()
    moved = merge("nearswap", x, [{}, {}], {"t": t}, place).double() - base
    want = (other - base).sign() * (other - base).abs().clamp(max=t)
    assert float((moved - want).abs().max()) <= 4e-6


@SETTINGS
@given(n=st.integers(1, 40), seed=st.integers(0, 1 << 30), t=st.floats(0, 2))
def test_equal_models_and_the_ends_of_t(n: int, seed: int, t: float) -> None:
    x = smooth((n,), 2, seed)
    assert torch.equal(merge("nearswap", [x[0], x[0]], [{}, {}], {"t": t}, 0), x[0])
    assert torch.equal(merge("nearswap", x, [{}, {}], {"t": 0.0}, 0), x[0])
    assert torch.equal(merge("nearswap", x, [{}, {}], {"t": -t}, 0), x[0]), "never away from the other"
    away = (merge("nearswap", x, [{}, {}], {"t": 1e6}, 0) - x[1]).abs().max()
    assert float(away) <= 4 * torch.finfo(torch.float32).eps * float(x[0].abs().max() + x[1].abs().max())


@SETTINGS
@given(n=st.integers(1, 40), seed=st.integers(0, 1 << 30), t=st.floats(0, 2))
def test_elements_keep_to_themselves(n: int, seed: int, t: float) -> None:
    x = smooth((n,), 2, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    straight = merge("nearswap", x, [{}, {}], {"t": t}, 0)
    assert torch.equal(merge("nearswap", [row[order] for row in x], [{}, {}], {"t": t}, 0), straight[order])


def test_differences_below_a_millionth_count_as_a_millionth() -> None:
    base, other = torch.zeros(1), torch.full((1,), 1e-7)
    assert float(merge("nearswap", [base, other], [{}, {}], {"t": 5e-7}, 0)) == pytest.approx(5e-8, rel=1e-5)


def test_damaged_values_stay_visible() -> None:
    x = smooth((9,), 2, 2)
    x[1][4] = math.nan
    assert torch.isnan(merge("nearswap", x, [{}, {}], {"t": 0.1}, 0)).tolist() == [i == 4 for i in range(9)]
