"""sce: exact selection by variance, weights from what was selected, majority signs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import merge
from references import largest
from references_more import LARGE, SHAPES, any_way, assert_rounding, coarse, smooth, variances, wide, without
from weft.ops.method import BLOCK

SETTINGS = settings(max_examples=25, deadline=None)
TOPS = [0.0, 0.1, 0.4, 0.999, 1.0]


def sce(x: list[Tensor], select_topk: float = 1.0, base: int = 0) -> Tensor:
    return merge("sce", x, [{}] * len(x), {"select_topk": select_topk}, base)


@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("select_topk", TOPS)
def test_agrees_where_variances_are_exact_and_often_equal(shape: tuple[int, ...], count: int, select_topk: float) -> None:
    x = coarse(shape, count + 1, 1)
    place = count - 1
    got = any_way("sce", x, shared={"select_topk": select_topk}, base=place)
    assert_rounding(got, references.sce(x[place].double(), without(x, place), select_topk))


@pytest.mark.parametrize("shape", [(7,), (97, 769), (3, 11, BLOCK // 16)], ids=str)
@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("select_topk", TOPS)
def test_agrees_for_values_as_weights_are(shape: tuple[int, ...], count: int, select_topk: float) -> None:
    x = smooth(shape, count + 1, 2)
    got = any_way("sce", x, shared={"select_topk": select_topk}, base=0)
    # Task vectors are float32 differences; variances next to the cut and sums next to 0 may fall on either side.
    exact = [x[0].double() + (row - x[0]).double() for row in x[1:]]
    variance = variances(x[0].double(), exact)
    keep = math.floor(select_topk * variance.numel())
    cut = float(variance.flatten().sort(descending=True).values[keep - 1]) if keep else math.inf
    unsure = ((variance / cut - 1).abs() < 1e-5) | ((torch.stack(exact) - x[0].double()).sum(0).abs() < 1e-5)
    want = references.sce(x[0].double(), exact, select_topk)
    assert_rounding(got, want, 64, unsure if unsure.double().mean() < 0.01 else None)


@pytest.mark.parametrize("n", [1, 10, 1000, BLOCK + 1, 9 * BLOCK])
@pytest.mark.parametrize("select_topk", [0.1, 0.25, 0.5, 0.999])
@pytest.mark.parametrize("values", ["equal", "coarse"])
def test_selects_exactly_as_many_and_the_first_of_equals(n: int, select_topk: float, values: str) -> None:
    """One model changes, another does not: the variance is a quarter of the square. A third of the elements do not vary."""
    chance = torch.Generator().manual_seed(n)
    delta = torch.full((n,), 0.5) if values == "equal" else torch.randint(1, 5, (n,), generator=chance) / 4
    delta[::3] = 0
    zeros = torch.zeros(n)
    got = sce([zeros, zeros, delta], select_topk)
    keep = math.floor(select_topk * int((delta != 0).sum()))
    assert int(torch.count_nonzero(got)) == keep
    assert torch.equal(got != 0, largest(delta, keep))


def test_an_example_by_hand() -> None:
    base = torch.zeros(4)
    first, second = torch.tensor([3.0, 1.0, -2.0, 0.0]), torch.tensor([-1.0, 1.0, -2.0, 1.0])
    # Variances 4, 0, 0, 0.25. Mean squares 14/4 and 7/4, so weights 2/3 and 1/3.
    assert sce([base, first, second]).tolist() == pytest.approx([3.0, 1.0, -2.0, 1.0])
    # Half of the two that vary: the first alone, where 3 outvotes -1.
    assert sce([base, first, second], 0.5).tolist() == pytest.approx([3.0, 0.0, 0.0, 0.0])
    assert sce([base, first, second], 0.49).tolist() == [0.0] * 4, "less than one is none"
    # With a third model all four vary, the first most. Of it alone the mean squares are as 9 to 1 to 1; 3 and 1 agree.
    third = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert sce([base, first, second, third], 0.3).tolist() == pytest.approx([(9 * 3 + 1 * 1) / 10, 0.0, 0.0, 0.0])


def test_models_that_change_next_to_nothing_weigh_the_same() -> None:
    base, small = torch.zeros(4), 1e-4
    got = sce([base, torch.full((4,), small), torch.full((4,), 3 * small)])
    assert got.tolist() == pytest.approx([2 * small] * 4, rel=1e-5)
    big = 1e-2
    got = sce([base, torch.full((4,), big), torch.full((4,), 3 * big)])
    assert got.tolist() == pytest.approx([(1 * big + 9 * 3 * big) / 10] * 4, rel=1e-5)


@SETTINGS
@given(n=st.integers(1, 60), count=st.integers(1, 5), seed=st.integers(0, 1 << 30), select_topk=st.sampled_from(TOPS))
def test_equal_models(n: int, count: int, seed: int, select_topk: float) -> None:
    base, x = smooth((n,), 2, seed)
    assert torch.equal(sce([x] * (count + 1), select_topk), x)
    got = sce([base] + [x] * count, select_topk)
    # Where nothing varies there is nothing to select from.
    if select_topk < 1:
        assert torch.equal(got, base)
    else:
        assert_rounding(got, x.double())


def test_equal_variances_are_cut_by_index() -> None:
    x = [torch.zeros(1000), torch.full((1000,), 0.5), torch.full((1000,), 1.5), torch.full((1000,), 1.0)]
    got = sce(x, 0.25)
    assert (got != 0).tolist() == [i < 250 for i in range(1000)]


@SETTINGS
@given(n=st.integers(1, 60), seed=st.integers(0, 1 << 30), select_topk=st.floats(0, 1), power=st.integers(0, 20))
def test_permuted_and_scaled_inputs(n: int, seed: int, select_topk: float, power: int) -> None:
    x = smooth((n,), 4, seed)
    straight = sce(x, select_topk)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_rounding(sce([row[order] for row in x], select_topk), straight[order].double())
    if float((straight - x[0]).square().mean()) >= 1e-5:  # smaller changes are weighed in another way
        assert_rounding(sce([row * 2.0**power for row in x], select_topk), straight.double() * 2.0**power)


@SETTINGS
@given(n=st.integers(1, 60), seed=st.integers(0, 1 << 30))
def test_the_ends_of_select_topk(n: int, seed: int) -> None:
    x = smooth((n,), 4, seed)
    assert torch.equal(sce(x, 0.0), x[0])
    assert torch.equal(sce(x, 1.0), sce(x, 2.0))
    assert_rounding(sce(x, 1.0), references.sce(x[0].double(), wide(x[1:])), 64)


def test_a_base_alone_stays_and_damaged_values_stay_visible() -> None:
    x = smooth((9,), 3, 3)
    assert torch.equal(sce(x[:1], 0.5), x[0])
    x[2][3] = math.nan
    assert torch.isnan(sce(x)[3]) and torch.isnan(sce(x, 0.5)[3])
