"""della and della_linear: who is kept follows the rank in the row, chance follows the element alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import kernel, merge
from references_more import LARGE, SHAPES, any_way, assert_rounding, beside, coarse, smooth, without
from weft.ops.method import BLOCK, MethodError

METHODS = ["della", "della_linear"]
SETTINGS = settings(max_examples=25, deadline=None)
WEIGHTS, DENSITIES, EPSILONS = [0.5, 0.25, -0.75, 1.0, 0.125], [0.5, 0.8, 1.0, 0.3, 0.6], [0.15, -0.1, 0.4, 0.0, 0.39]


def thinned(
    delta: Tensor, density: float, epsilon: float, rescale: float = 0.0, stream: str = "3\0a.weight", method: str = "della_linear"
) -> Tensor:
    """What is left of one task vector: a base of zeros and a weight of one."""
    own = {"weight": 1.0, "density": density, "epsilon": epsilon}
    return merge(method, [torch.zeros_like(delta), delta], [{}, own], {"rescale": rescale}, 0, stream)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [*SHAPES, LARGE], ids=str)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("rescale", "normalize"), [(1.0, 1.0), (0.0, 0.0)])
def test_agrees(method: str, shape: tuple[int, ...], count: int, rescale: float, normalize: float) -> None:
    x, place = coarse(shape, count + 1, 1), count // 2
    weights, densities, epsilons = WEIGHTS[:count], DENSITIES[:count], EPSILONS[:count]
    own = [{"weight": w, "density": d, "epsilon": e} for w, d, e in zip(weights, densities, epsilons, strict=True)]
    shared = {"rescale": rescale, "normalize": normalize, "lambda": 0.5}
    got = any_way(method, x, beside(own, place), shared, place, stream="3\0a.weight")
    models, base = without(x, place), x[place].double()
    probabilities, kept, unsure = [], [], torch.zeros(shape, dtype=torch.bool)
    for i, (row, density, epsilon) in enumerate(zip(models, densities, epsilons, strict=True)):
        probability = references.ladder(row - base, density, epsilon)
        chance = references.uniform("3\0a.weight", i, shape)
        if density < 1:
            unsure |= (chance - probability).abs() < 1e-6
        probabilities.append(probability if density < 1 else None)
        kept.append(chance < probability)
    consensus = method == "della"
    want = references.della(base, models, weights, probabilities, kept, consensus, bool(normalize), bool(rescale), 0.5)
    if consensus:  # sums that are 0 but for rounding have either sign
        deltas = [row - base for row in models]
        zero = [torch.zeros_like(base)] * count
        total = references.della(zero[0], deltas, weights, probabilities, kept, False, False, bool(rescale))
        unsure |= (total.abs() < 1e-5) & (want != base)
    assert_rounding(got, want, 64, unsure if unsure.numel() > 1000 else None)


ROWS, WIDTH = 8192, 64


def ranked() -> Tensor:
    """Rows in which the element at place i has rank 37·i mod 64."""
    magnitudes = (torch.arange(WIDTH) * 37 % WIDTH + 1).float()
    signs = 1 - 2 * torch.randint(0, 2, (ROWS, WIDTH), generator=torch.Generator().manual_seed(1))
    return magnitudes * signs


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.3), (0.2, 0.15), (0.7, -0.25), (0.4, 0.0)])
def test_the_share_kept_grows_with_the_rank(density: float, epsilon: float) -> None:
    delta = ranked()
    kept = (thinned(delta, density, epsilon) != 0).double()
    probability = (density - epsilon) + 2 * epsilon * (delta[0].abs().double() - 1) / (WIDTH - 1)
    spread = (probability * (1 - probability) / ROWS).sqrt()
    assert float(((kept.mean(0) - probability) / spread).abs().max()) < 5
    assert abs(float(kept.mean()) - density) < 5 * float(spread.mean()) / math.sqrt(WIDTH)
    # And chance treats rows alike: the counts of rows vary as sums of independent choices do.
    variance = float((probability * (1 - probability)).sum())
    assert float(kept.sum(1).var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / ROWS))


@pytest.mark.parametrize("method", METHODS)
def test_rescaled_elements_have_the_right_mean(method: str) -> None:
    delta = ranked()
    got = thinned(delta, 0.5, 0.3, rescale=1.0, method=method).double() / delta
    probability = 0.2 + 0.6 * (delta[0].abs().double() - 1) / (WIDTH - 1)
    kept = got[:, :] != 0
    assert torch.allclose(got[kept], (1 / probability).expand(ROWS, WIDTH)[kept], rtol=1e-6)
    spread = ((1 / probability - 1) / ROWS).sqrt()
    assert float(((got.mean(0) - 1) / spread).abs().max()) < 5


def test_a_row_ranks_alone() -> None:
    """Rows of other sizes of values do not matter, nor does another row's order."""
    delta = ranked()
    louder = delta * torch.logspace(-6, 6, ROWS).unsqueeze(1)
    assert torch.equal(thinned(delta, 0.5, 0.4) != 0, thinned(louder, 0.5, 0.4) != 0)
    flat = thinned(louder.flatten(), 0.5, 0.4) != 0
    assert not torch.equal(flat.view(ROWS, WIDTH), thinned(louder, 0.5, 0.4) != 0), "a vector is one row"


def test_equal_magnitudes_rank_by_index() -> None:
    kept = (thinned(torch.ones(ROWS, WIDTH), 0.5, 0.4) != 0).double().mean(0)
    want = 0.1 + 0.8 * torch.arange(WIDTH).double() / (WIDTH - 1)
    assert float(((kept - want) / (want * (1 - want) / ROWS).sqrt()).abs().max()) < 5


def test_the_only_element_of_a_row_stands_halfway() -> None:
    kept = (thinned(torch.ones(1 << 16, 1), 0.5, 0.4) != 0).double().mean()
    assert abs(float(kept) - 0.5) < 5 * 0.5 / 256


def test_chance_follows_seed_tensor_model_and_element() -> None:
    (delta,) = smooth((300, 900), 1, 2)
    first = thinned(delta, 0.5, 0.2)
    assert torch.equal(thinned(delta, 0.5, 0.2), first)
    others = [thinned(delta, 0.5, 0.2, stream=stream) for stream in ("4\0a.weight", "3\0b.weight")]
    for other in others:
        both = float(((first != 0) & (other != 0)).double().mean())
        assert both == pytest.approx(0.25 + 0.2**2 / 3, abs=5 * 0.5 / math.sqrt(delta.numel())), "independent, given the ranks"
    # Rows below do not matter to those above, so neither does where blocks end.
    for rows in (1, 84, 85, 299):
        assert torch.equal(thinned(delta[:rows], 0.5, 0.2), first[:rows])
    own = {"weight": 1.0, "density": 0.5, "epsilon": 0.2}
    zeros = torch.zeros_like(delta)
    second = merge("della_linear", [zeros, zeros, delta], [{}, own, own], {"rescale": 0.0}, 0, "3\0a.weight")
    assert not torch.equal(second, first), "another model, other chances"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.1, 0.1), (0.1, 0.15), (0.9, 0.1), (0.95, 0.15), (0.9, -0.15), (0.0, 0.0), (0.5, 0.5)]
)
def test_probabilities_must_lie_between_none_and_all(method: str, density: float, epsilon: float) -> None:
    own = {"weight": 1.0, "density": density, "epsilon": epsilon}
    with pytest.raises(MethodError, match=f"density {density:g} ± epsilon {epsilon:g} leaves"):
        kernel(method, (4, 4), [{}, own], base=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [1.0, 1.5])
def test_density_one_keeps_all_whatever_epsilon_is(method: str, density: float) -> None:
    (delta,) = smooth((50, 30), 1, 3)
    for epsilon in (0.15, 7.0):
        assert torch.equal(thinned(delta, density, epsilon, rescale=1.0, method=method), delta)


@SETTINGS
@given(
    n=st.integers(1, 40),
    count=st.integers(1, 5),
    seed=st.integers(0, 1 << 30),
    density=st.floats(0.2, 0.8),
    epsilon=st.floats(-0.15, 0.15),
)
def test_models_that_are_the_same_change_nothing(n: int, count: int, seed: int, density: float, epsilon: float) -> None:
    (x,) = smooth((n, 3), 1, seed)
    own = [{"weight": 0.7, "density": density, "epsilon": epsilon}] * count
    for method in METHODS:
        assert torch.equal(merge(method, [x] * (count + 1), beside(own, 0), base=0), x)


@SETTINGS
@given(n=st.integers(1, 40), seed=st.integers(0, 1 << 30), power=st.integers(-9, 9))
def test_scaled_inputs_scale_the_result(n: int, seed: int, power: int) -> None:
    x = smooth((n, 5), 3, seed)
    own = beside([{"weight": 0.5, "density": 0.5}] * 2, 0)
    for method in METHODS:
        straight = merge(method, x, own, base=0)
        assert torch.equal(merge(method, [row * 2.0**power for row in x], own, base=0), straight * 2.0**power)


def test_rows_longer_than_a_block_are_ranked_whole() -> None:
    width = 2 * BLOCK
    delta = torch.arange(1, width + 1).float().expand(2, width).contiguous()
    kept = (thinned(delta, 0.5, 0.4) != 0).double().view(2, 16, -1).mean(2)
    want = 0.1 + 0.8 * (torch.arange(16).double() + 0.5) / 16
    assert float((kept - want).abs().max()) < 5 * 0.5 / math.sqrt(width / 16)
