"""breadcrumbs and breadcrumbs_ties: exactly the right elements go, whatever stands at the cuts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import merge
from references_more import LARGE, SHAPES, any_way, assert_rounding, beside, coarse, smooth, without
from weft.ops.method import BLOCK, PART

METHODS = ["breadcrumbs", "breadcrumbs_ties"]
SETTINGS = settings(max_examples=25, deadline=None)
WEIGHTS, DENSITIES, GAMMAS = [0.5, 0.25, -0.75, 1.0, 0.125], [0.31, 1.0, 0.73, 0.05, 0.6], [0.05, 0.1, 0.4, 0.2, 0.0]


def thinned(delta: Tensor, density: float, gamma: float, **more: float) -> Tensor:
    """What is left of one task vector: a base of zeros and a weight of one."""
    own = {"weight": 1.0, "density": density, "gamma": gamma}
    return merge("breadcrumbs", [torch.zeros_like(delta), delta], [{}, own], more, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rescale", [0.0, 1.0])
@pytest.mark.parametrize("normalize", [0.0, 1.0])
def test_agrees_where_every_cut_goes_through_equal_magnitudes(
    method: str, shape: tuple[int, ...], count: int, rescale: float, normalize: float
) -> None:
    check(method, shape, count, rescale, normalize, place=count if rescale else 0)


@pytest.mark.parametrize("method", METHODS)
def test_agrees_in_many_parts(method: str) -> None:
    check(method, LARGE, 5, 1.0, 0.0, place=2)


def check(method: str, shape: tuple[int, ...], count: int, rescale: float, normalize: float, place: int) -> None:
    x = coarse(shape, count + 1, 1)
    weights, densities, gammas = WEIGHTS[:count], DENSITIES[:count], GAMMAS[:count]
    own = [{"weight": w, "density": d, "gamma": g} for w, d, g in zip(weights, densities, gammas, strict=True)]
    shared = {"rescale": rescale, "normalize": normalize, "lambda": 1.5}
    got = any_way(method, x, beside(own, place), shared, place)
    consensus, base = method == "breadcrumbs_ties", x[place].double()
    how = (consensus, bool(normalize), bool(rescale), 1.5)
    want = references.breadcrumbs(base, without(x, place), weights, densities, gammas, *how)
    assert_rounding(got, want, 256)


@pytest.mark.parametrize("n", [1, 9, 1000, BLOCK + 1, PART + BLOCK + 5])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.0), (0.5, 0.1), (0.9, 0.2), (0.999, 0.01), (0.11, 0.88), (0.2, 1.0)])
@pytest.mark.parametrize("values", ["equal", "coarse", "normal"])
def test_keeps_exactly_as_many_and_the_right_ones(n: int, density: float, gamma: float, values: str) -> None:
    chance = torch.Generator().manual_seed(n)
    delta = {
        "equal": torch.full((n,), 0.5),
        "coarse": torch.randint(1, 5, (n,), generator=chance) / 4,
        "normal": torch.randn(n, generator=chance).abs() + 1e-3,
    }[values] * (1 - 2 * torch.randint(0, 2, (n,), generator=chance))
    got = thinned(delta, density, gamma)
    keep = math.floor(density * n)
    assert int(torch.count_nonzero(got)) == keep
    kept = got != 0
    assert torch.equal(got[kept], delta[kept])
    # Sorted by falling magnitude, equal ones by index, the kept ones are a run that begins after the dropped largest.
    top = min(math.floor(gamma * n), n - keep)
    order = delta.abs().sort(descending=True, stable=True).indices
    assert torch.equal(order[top : top + keep].sort().values, kept.nonzero().flatten())


def test_an_example_by_hand() -> None:
    delta = torch.tensor([0.1, -9.0, 0.3, 4.0, -0.2, 0.5, -3.0, 0.0, 9.0, 1.0])
    assert thinned(delta, 0.5, 0.2).tolist() == pytest.approx([0, 0, 0.3, 4, 0, 0.5, -3, 0, 0, 1])
    assert thinned(delta, 0.5, 0.1).tolist() == pytest.approx([0, 0, 0, 4, 0, 0.5, -3, 0, 9, 1]), "of equal ones the first goes"
    assert thinned(delta, 0.5, 0.0).tolist() == pytest.approx([0, -9, 0, 4, 0, 0, -3, 0, 9, 1]), (
        "gamma 0 drops none of the largest"
    )
    assert thinned(delta, 0.9, 0.5).tolist() == pytest.approx([0.1, 0, 0.3, 4, -0.2, 0.5, -3, 0, 9, 1]), (
        "no more than density leaves"
    )


@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0])
def test_the_ends_of_density(gamma: float) -> None:
    (delta,) = smooth((999,), 1, 2)
    assert torch.equal(thinned(delta, 1.0, gamma), delta)
    assert torch.equal(thinned(delta, 1.7, gamma), delta)
    assert not thinned(delta, 0.0, gamma).any()
    assert not thinned(delta, 0.0, gamma, rescale=1.0).any()
    assert not thinned(delta[:9], 0.1, gamma).any(), "fewer than one element is none"


@pytest.mark.parametrize("method", METHODS)
def test_rescale_restores_the_mass(method: str) -> None:
    (delta,) = smooth((BLOCK + 77,), 1, 3)
    own = {"weight": 1.0, "density": 0.6, "gamma": 0.05}
    got = merge(method, [torch.zeros_like(delta), delta], [{}, own], {"rescale": 1.0}, 0)
    assert float(got.abs().double().sum()) == pytest.approx(float(delta.abs().double().sum()), rel=1e-6)
    plain = merge(method, [torch.zeros_like(delta), delta], [{}, own], {"rescale": 0.0}, 0)
    assert float(plain.abs().double().sum()) < 0.8 * float(delta.abs().double().sum())


def test_rescale_leaves_next_to_nothing_alone() -> None:
    """Where what is kept sums to less than 1e-7 it is not blown up."""
    delta = torch.full((10,), 1e-9)
    delta[0] = 1.0
    assert float(thinned(delta, 0.5, 0.1, rescale=1.0).abs().max()) == pytest.approx(1e-9)


@SETTINGS
@given(
    n=st.integers(1, 60), count=st.integers(1, 5), seed=st.integers(0, 1 << 30), density=st.floats(0, 1), gamma=st.floats(0, 1)
)
def test_models_that_are_the_same_change_nothing(n: int, count: int, seed: int, density: float, gamma: float) -> None:
    (x,) = smooth((n,), 1, seed)
    own = [{"weight": 0.7, "density": density, "gamma": gamma}] * count
    for method in METHODS:
        for rescale in (0.0, 1.0):
            assert torch.equal(merge(method, [x] * (count + 1), beside(own, 0), {"rescale": rescale}, 0), x)


@SETTINGS
@given(
    n=st.integers(1, 60), seed=st.integers(0, 1 << 30), density=st.floats(0, 1), gamma=st.floats(0, 1), power=st.integers(-9, 9)
)
def test_permuted_and_scaled_inputs(n: int, seed: int, density: float, gamma: float, power: int) -> None:
    x = smooth((n,), 3, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    own = beside([{"weight": 0.5, "density": density, "gamma": gamma}] * 2, 0)
    for method in METHODS:
        straight = merge(method, x, own, base=0)
        assert torch.equal(merge(method, [row[order] for row in x], own, base=0), straight[order])
        assert torch.equal(merge(method, [row * 2.0**power for row in x], own, base=0), straight * 2.0**power)


def test_of_values_as_weights_are() -> None:
    x = smooth((97, 769), 3, 4)
    exact = [x[0].double() + (row - x[0]).double() for row in x[1:]]
    own = [{"weight": 0.5, "density": 0.7, "gamma": 0.03}, {"weight": 0.3, "density": 0.4, "gamma": 0.01}]
    for method in METHODS:
        want = references.breadcrumbs(x[0].double(), exact, [0.5, 0.3], [0.7, 0.4], [0.03, 0.01], method == "breadcrumbs_ties")
        assert_rounding(merge(method, x, beside(own, 0), base=0), want)
