"""ram and ramplus_tl: counts of who changed what, exact, and the averages that follow from them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import kernel, merge, run_kernel, stored
from references_more import LARGE, SHAPES, any_way, assert_rounding, coarse, smooth, wide, without
from weft.engine.compute import bound_pass, gather
from weft.ops.backends.host import Tile, no_loops
from weft.ops.method import BLOCK

METHODS = ["ram", "ramplus_tl"]
SETTINGS = settings(max_examples=25, deadline=None)


def sparse(shape: tuple[int, ...], count: int, seed: int, share: float = 0.4) -> list[Tensor]:
    """A base, and models that differ from it in some elements only; some differences are below the default epsilon."""
    base, *deltas = coarse(shape, count + 1, seed)
    chance = torch.Generator().manual_seed(seed + 1)
    models = []
    for delta in deltas:
        changed = torch.rand(shape, generator=chance) < share
        models.append(torch.where(changed, base + delta, base + 2.0**-18 * torch.randint(0, 2, shape, generator=chance)))
    return [base, *models]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_agrees(method: str, shape: tuple[int, ...], count: int, epsilon: float) -> None:
    x = sparse(shape, count, 1)
    place = count // 2
    x.insert(place, x.pop(0))
    got = any_way(method, x, shared={"epsilon": epsilon}, base=place)
    formula = references.ram if method == "ram" else references.ramplus_tl
    assert_rounding(got, formula(x[place].double(), without(x, place), epsilon=epsilon))


@pytest.mark.parametrize(("r", "alpha"), [(0.0, 0.2), (0.1, 0.0), (3.0, 0.2), (0.5, 1e9), (-1.0, 0.5)])
def test_ramplus_settings(r: float, alpha: float) -> None:
    x = sparse((40, 50), 3, 2)
    got = merge("ramplus_tl", x, [{}] * 4, {"r": r, "alpha": alpha}, 0)
    assert_rounding(got, references.ramplus_tl(x[0].double(), wide(x[1:]), r, alpha))
    plain = merge("ram", x, [{}] * 4, base=0)
    assert torch.equal(got, plain) == (r == 0 or alpha == 0)


def test_an_example_by_hand() -> None:
    base = torch.zeros(6)
    first = torch.tensor([4.0, 0.0, 2.0, 0.0, -6.0, 1.0])
    second = torch.tensor([2.0, 0.0, 0.0, 8.0, 6.0, 0.0])
    got = merge("ram", [base, first, second], [{}] * 3, base=0)
    assert got.tolist() == [3.0, 0.0, 2.0, 8.0, 0.0, 1.0]
    # The first shares 2 of its elements and has 2 alone: a ratio of 1. The second shares 2 and has 1 alone: 2.
    got = merge("ramplus_tl", [base, first, second], [{}] * 3, {"r": 0.5, "alpha": 10.0}, 0)
    assert got.tolist() == [3.0, 0.0, 3.0, 16.0, 0.0, 1.5]
    got = merge("ramplus_tl", [base, first, second], [{}] * 3, {"r": 0.5, "alpha": 0.5}, 0)
    assert got.tolist() == [3.0, 0.0, 2.5, 10.0, 0.0, 1.25]


@pytest.mark.parametrize("n", [1, 1000, BLOCK + 1, 3 * BLOCK])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_counts_are_exact(n: int, share: float) -> None:
    x = sparse((n,), 3, 3, share)
    changed = [(row - x[0]).abs() > 1e-5 for row in x[1:]]
    alone = torch.stack(changed).sum(0) == 1
    made = kernel("ramplus_tl", (n,), [{}] * 4, base=0)
    (overlap,) = made.statistics
    bound = bound_pass(made, overlap, 4, ())
    got = gather(made, overlap, bound, Tile(tuple(map(stored, x)), 0), 0, n, (), no_loops)
    assert got == [int(count) for row in changed for count in ((row & ~alone).sum(), (row & alone).sum())]


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_is_where_a_change_begins(method: str) -> None:
    base, x = torch.zeros(4), torch.tensor([0.25, -0.25, 0.2500001, -0.2500001])
    got = merge(method, [base, x], [{}, {}], {"epsilon": 0.25}, 0)
    assert (got != 0).tolist() == [False, False, True, True]


@pytest.mark.parametrize("method", METHODS)
def test_epsilon_zero_counts_every_change(method: str) -> None:
    """Models that change the same elements have none alone: no reason to divide by nothing."""
    base = torch.zeros(3)
    models = [torch.tensor([1e-9, 2.0, 0.0]), torch.tensor([3e-9, 4.0, 0.0])]
    got = merge(method, [base, *models], [{}] * 3, {"epsilon": 0.0}, 0)
    assert got.tolist() == pytest.approx([2e-9, 3.0, 0.0])


@SETTINGS
@given(n=st.integers(1, 60), count=st.integers(1, 5), seed=st.integers(0, 1 << 30))
def test_equal_models(n: int, count: int, seed: int) -> None:
    base, x = coarse((n,), 2, seed)
    for method in METHODS:
        assert torch.equal(merge(method, [x] * (count + 1), [{}] * (count + 1), base=0), x)
    # What all models changed alike is taken over as it is.
    assert_rounding(merge("ram", [base] + [x] * count, [{}] * (count + 1), base=0), x.double(), 4)
    if count > 1:
        assert_rounding(merge("ramplus_tl", [base] + [x] * count, [{}] * (count + 1), base=0), x.double(), 4)


@SETTINGS
@given(n=st.integers(1, 60), count=st.integers(1, 5), seed=st.integers(0, 1 << 30))
def test_permuted_elements_and_models(n: int, count: int, seed: int) -> None:
    x = sparse((n,), count, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for method in METHODS:
        straight = merge(method, x, [{}] * len(x), base=0)
        assert torch.equal(merge(method, [row[order] for row in x], [{}] * len(x), base=0), straight[order])
        turned = merge(method, x[::-1], [{}] * len(x), base=count)
        assert_rounding(turned, straight.double())


@SETTINGS
@given(n=st.integers(1, 60), seed=st.integers(0, 1 << 30), power=st.integers(0, 16))
def test_scaled_inputs_scale_the_result(n: int, seed: int, power: int) -> None:
    x, factor = sparse((n,), 3, seed), 2.0**power
    for method in METHODS:
        straight = merge(method, x, [{}] * 4, {"epsilon": 2.0**-17}, 0)
        scaled = merge(method, [row * factor for row in x], [{}] * 4, {"epsilon": 2.0**-17 * factor}, 0)
        if method == "ram":
            assert torch.equal(scaled, straight * factor)
        else:  # epsilon also bounds a count
            assert_rounding(scaled, straight.double() * factor)


@pytest.mark.parametrize("method", METHODS)
def test_a_base_alone_and_damaged_values(method: str) -> None:
    (base,) = smooth((BLOCK + 5,), 1, 4)
    assert torch.equal(run_kernel(kernel(method, base.shape, [{}], base=0), [base])[0], base)
    x = sparse((9,), 2, 5)
    x[2][3] = math.nan
    assert torch.isnan(merge(method, x, [{}] * 3, base=0)[3])
