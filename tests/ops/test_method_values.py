"""Every kernel, block by block, against the formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import references
from kernel_runs import kernel, merge, run_kernel
from weft.ops.method import BLOCK, PART, MethodError

SHAPES = [
    (1,),
    (7,),
    (5, 13),
    (3, 4, 5),
    (BLOCK - 1,),
    (BLOCK,),
    (BLOCK + 1,),
    (3 * BLOCK + 7,),
    (257, 769),
    (2, PART // 2 + 3),
    (3, 11, 2 * BLOCK // 16),
]
"""Sizes at and around the ends of blocks and parts, in one to three dimensions."""

TILED = [None, PART]


def smooth(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Inputs as weights are: normal, of different lengths."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance) * (0.5 + i) for i in range(count)]


def coarse(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Multiples of 1/64 of small size: their differences and weighted sums are exact, and equal magnitudes are everywhere."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randint(-128, 129, tuple(shape), generator=chance).float() / 64 for _ in range(count)]


def wide(x: Sequence[Tensor]) -> list[Tensor]:
    return [row.double() for row in x]


def assert_rounding(got: Tensor, want: Tensor, size: float = 1.0, ulps: float = 8.0) -> None:
    """Equal but for a few roundings of terms up to `size` times the largest result."""
    assert got.dtype == torch.float32 and got.shape == want.shape
    bound = ulps * torch.finfo(torch.float32).eps * max(float(want.abs().max()), 1e-30) * size
    assert float((got.double() - want).abs().max()) <= bound


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear(shape: tuple[int, ...], count: int, normalize: bool) -> None:
    x, weights = smooth(shape, count, 1), [0.7, -0.2, 1.3, 0.05, 2.0][:count]
    got = merge("linear", x, [{"weight": w} for w in weights], {"normalize": float(normalize)})
    assert_rounding(got, references.linear(wide(x), weights, normalize), size=4)


def test_linear_refuses_weights_that_cannot_be_normalised() -> None:
    with pytest.raises(MethodError, match="sum to 0"):
        kernel("linear", (4,), [{"weight": 0.5}, {"weight": -0.5}])
    kernel("linear", (4,), [{"weight": 0.5}, {"weight": -0.5}], shared={"normalize": 0.0})


def test_an_input_of_weight_zero_is_not_looked_at() -> None:
    x = [torch.full((9,), math.nan), torch.ones(9)]
    assert merge("linear", x, [{"weight": 0.0}, {"weight": 0.3}]).tolist() == [1.0] * 9


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("t", [0.0, 0.35, 1.0, 1.4])
@pytest.mark.parametrize("tile", TILED)
def test_slerp(shape: tuple[int, ...], base: int, t: float, tile: int | None) -> None:
    x = smooth(shape, 2, 2)
    got = merge("slerp", x, [{}, {}], {"t": t}, base, tile=tile, shuffle=3)
    assert_rounding(got, references.slerp(x[base].double(), x[1 - base].double(), t), size=4)


@pytest.mark.parametrize("cosine", [-1.0, -0.9999, -0.9994, 0.0, 0.9994, 0.99951, 1.0])
def test_slerp_at_angles_where_the_formula_changes(cosine: float) -> None:
    angle = math.acos(cosine)
    a = torch.tensor([3.0, 0.0]).repeat(BLOCK)
    b = 0.2 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64).float().repeat(BLOCK)
    got = merge("slerp", [a, b], [{}, {}], {"t": 0.3}, 0)
    assert_rounding(got, references.slerp(a.double(), b.double(), 0.3), size=100)


@pytest.mark.parametrize("zero", [0, 1])
def test_slerp_of_a_tensor_of_zeros(zero: int) -> None:
    x = smooth((40,), 2, 3)
    x[zero] = torch.zeros(40)
    got = merge("slerp", x, [{}, {}], {"t": 0.25}, 0)
    assert torch.isfinite(got).all()
    assert_rounding(got, references.slerp(x[0].double(), x[1].double(), 0.25), size=4)


def test_slerp_keeps_damaged_values_visible() -> None:
    x = smooth((40,), 2, 4)
    x[1][7] = math.nan
    assert torch.isnan(merge("slerp", x, [{}, {}], {"t": 0.25}, 0)[7])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [None, 1.0, 0.5, -2.0, 0.0])
def test_passthrough(shape: tuple[int, ...], scale: float | None) -> None:
    (x,) = smooth(shape, 1, 5)
    got = merge("passthrough", [x], [{} if scale is None else {"scale": scale}])
    assert torch.equal(got.double(), references.passthrough(x.double(), scale))


def test_passthrough_copies_only_what_it_does_not_scale() -> None:
    assert kernel("passthrough", (3,), [{}]).copies and kernel("passthrough", (3,), [{"scale": 1.0}]).copies
    assert not kernel("passthrough", (3,), [{"scale": 0.5}]).copies


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 4])
@pytest.mark.parametrize("normalize", [0.0, 1.0])
@pytest.mark.parametrize("base", [0, -1])
def test_task_arithmetic(shape: tuple[int, ...], count: int, normalize: float, base: int) -> None:
    x, weights = smooth(shape, count + 1, 6), [0.7, -0.4, 1.3, 0.2][:count]
    place = base % (count + 1)
    own = [{"weight": w} for w in weights]
    others = [row for i, row in enumerate(x) if i != place]
    got = merge("task_arithmetic", x, [*own[:place], {}, *own[place:]], {"normalize": normalize, "lambda": 0.8}, place, shuffle=1)
    want = references.task_arithmetic(x[place].double(), wide(others), weights, bool(normalize), 0.8)
    assert_rounding(got, want, size=8)


def test_weights_that_sum_to_nothing_do_not_divide() -> None:
    x = smooth((50,), 3, 7)
    weights = [0.5, -0.5]
    got = merge("task_arithmetic", x, [{}, *({"weight": w} for w in weights)], {"normalize": 1.0}, 0)
    assert_rounding(got, references.task_arithmetic(x[0].double(), wide(x[1:]), weights, True), size=8)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if math.prod(shape) > 6], ids=str)
@pytest.mark.parametrize("normalize", [0.0, 1.0])
@pytest.mark.parametrize("rescale", [0.0, 1.0])
@pytest.mark.parametrize("tile", TILED)
def test_ties_where_every_cut_goes_through_equal_magnitudes(
    shape: tuple[int, ...], normalize: float, rescale: float, tile: int | None
) -> None:
    x, weights, densities = coarse(shape, 4, 8), [0.5, 0.25, -0.75], [0.31, 1.0, 0.73]
    models = [{"weight": w, "density": d} for w, d in zip(weights, densities, strict=True)]
    shared = {"normalize": normalize, "rescale": rescale, "lambda": 1.5}
    got = merge("ties", x, [{}, *models], shared, 0, tile=tile, shuffle=2)
    want = references.ties(x[0].double(), wide(x[1:]), weights, densities, bool(normalize), bool(rescale), 1.5)
    assert_rounding(got, want, size=16)


@pytest.mark.parametrize("shape", [(BLOCK + 1,), (257, 769)], ids=str)
def test_ties_of_values_as_weights_are(shape: tuple[int, ...]) -> None:
    x, weights, densities = smooth(shape, 3, 9), [0.5, 0.3], [0.4, 0.2]
    models = [{"weight": w, "density": d} for w, d in zip(weights, densities, strict=True)]
    got = merge("ties", x, [{}, *models], base=0).double()
    # Magnitudes are compared as the float32 differences that they are.
    exact = [x[0].double() + (row - x[0]).double() for row in x[1:]]
    want = references.ties(x[0].double(), exact, weights, densities)
    far = (got - want).abs() > 1e-5 * want.abs().max()
    assert int(far.sum()) == 0


def test_ties_in_any_place_of_the_base() -> None:
    x, weights = coarse((1000,), 3, 10), [0.5, 0.25]
    own = [{"weight": w, "density": 0.4} for w in weights]
    first = merge("ties", x, [{}, *own], base=0)
    last = merge("ties", [x[1], x[2], x[0]], [*own, {}], base=2)
    middle = merge("ties", [x[1], x[0], x[2]], [own[0], {}, own[1]], base=1)
    assert torch.equal(first, last) and torch.equal(first, middle)


@pytest.mark.parametrize("n", [1, 9, 1000, BLOCK, BLOCK + 1, 2 * PART + 5])
@pytest.mark.parametrize("density", [0.999999, 0.5, 0.2, 0.11])
@pytest.mark.parametrize("values", ["equal", "coarse", "two"])
def test_ties_keeps_exactly_as_many_and_the_first_of_equals(n: int, density: float, values: str) -> None:
    keep = math.floor(density * n)
    if keep == 0:
        with pytest.raises(MethodError, match="keeps none"):
            kernel("ties", (n,), [{}, {"weight": 1.0, "density": density}], base=0)
        return
    chance = torch.Generator().manual_seed(n)
    delta = {
        "equal": torch.full((n,), 0.5),
        "coarse": torch.randint(1, 5, (n,), generator=chance) / 4,
        "two": 1.0 + torch.randint(0, 2, (n,), generator=chance),
    }[values] * (1 - 2 * torch.randint(0, 2, (n,), generator=chance))
    base = torch.zeros(n)
    got = merge("ties", [base, delta], [{}, {"weight": 1.0, "density": density}], base=0, tile=PART, shuffle=n)
    assert int(torch.count_nonzero(got)) == keep
    assert torch.equal(got, torch.where(references.largest(delta, keep), delta, 0.0))


@pytest.mark.parametrize("density", [0.0, 0.05])
def test_a_density_that_keeps_nothing_is_refused_by_size(density: float) -> None:
    with pytest.raises(MethodError, match=f"density {density:g} keeps none of the tensor's 10 elements"):
        kernel("ties", (10,), [{}, {"weight": 1.0, "density": density}], base=0)


def masks(stream: str, densities: Sequence[float], shape: Sequence[int]) -> list[Tensor]:
    """What chance leaves, from the generator's rendering in plain unsigned integers."""
    count = math.prod(shape)
    kept = []
    for model, density in enumerate(densities):
        share = references.bits(stream, model, count).astype(np.int64) + (1 << 31)
        kept.append(torch.from_numpy(share < round(density * 2**32)).view(tuple(shape)))
    return kept


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rescale", [0.0, 1.0])
@pytest.mark.parametrize("tile", TILED)
def test_dare(method: str, shape: tuple[int, ...], rescale: float, tile: int | None) -> None:
    x, weights = coarse(shape, 4, 11), [0.5, 0.25, -0.75]
    # Powers of two keep sums exact, so that where they are 0 the elected sign is the same in both.
    densities = [0.5, 0.25, 0.125] if method == "dare_ties" else [0.5, 0.9, 0.001]
    models = [{"weight": w, "density": d} for w, d in zip(weights, densities, strict=True)]
    shared = {"rescale": rescale, "lambda": 0.5}
    got = merge(method, x, [{}, *models], shared, 0, stream="5\0a.weight", tile=tile, shuffle=4)
    kept = masks("5\0a.weight", densities, shape)
    want = references.dare(x[0].double(), wide(x[1:]), weights, densities, kept, method == "dare_ties", False, bool(rescale), 0.5)
    assert_rounding(got, want, size=16)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_of_density_one_and_none(method: str) -> None:
    x = coarse((999,), 3, 12)
    weights = [0.5, 0.25]
    full = merge(method, x, [{}, *({"weight": w, "density": 1.0} for w in weights)], base=0)
    kept = [torch.ones(999, dtype=torch.bool)] * 2
    assert_rounding(full, references.dare(x[0].double(), wide(x[1:]), weights, [1, 1], kept, method == "dare_ties"), size=4)
    none = merge(method, x, [{}, *({"weight": w, "density": 0.0} for w in weights)], base=0)
    assert torch.equal(none, x[0])


# Properties that hold whatever the numbers are.

ROWS = st.integers(1, 40)
SETTINGS = settings(max_examples=30, deadline=None)


@SETTINGS
@given(n=ROWS, count=st.integers(1, 5), seed=st.integers(0, 1 << 30), weight=st.floats(0.01, 10))
def test_models_that_are_the_same_change_nothing(n: int, count: int, seed: int, weight: float) -> None:
    (x,) = smooth((n,), 1, seed)
    models = [{"weight": weight, "density": 1.0}] * count
    assert_rounding(merge("linear", [x] * count, [{"weight": weight}] * count), x.double())
    assert_rounding(merge("slerp", [x, x], [{}, {}], {"t": weight / 10}, 0), x.double())
    for method in ("task_arithmetic", "ties", "dare_linear", "dare_ties"):
        got = merge(method, [x] * (count + 1), [{}, *models], base=0)
        assert torch.equal(got, x), method


@SETTINGS
@given(n=ROWS, seed=st.integers(0, 1 << 30), base=st.integers(0, 1))
def test_slerp_has_its_inputs_at_its_ends(n: int, seed: int, base: int) -> None:
    x = smooth((n,), 2, seed)
    assert torch.equal(merge("slerp", x, [{}, {}], {"t": 0.0}, base), x[base])
    assert torch.equal(merge("slerp", x, [{}, {}], {"t": 1.0}, base), x[1 - base])


@SETTINGS
@given(n=ROWS, seed=st.integers(0, 1 << 30), chosen=st.integers(0, 2))
def test_weights_of_zero_and_one_choose_a_model(n: int, seed: int, chosen: int) -> None:
    x = coarse((n,), 4, seed)
    weights = [float(i == chosen) for i in range(3)]
    assert torch.equal(merge("linear", x[1:], [{"weight": w} for w in weights]), x[1 + chosen])
    for method in ("task_arithmetic", "ties", "dare_linear", "dare_ties"):
        got = merge(method, x, [{}, *({"weight": w} for w in weights)], base=0)
        assert torch.equal(got, x[1 + chosen]), method


@SETTINGS
@given(n=ROWS, seed=st.integers(0, 1 << 30))
def test_elements_keep_to_themselves(n: int, seed: int) -> None:
    """A permutation of the elements permutes the result, where no element is chosen by its place."""
    x = smooth((n,), 3, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for method, density in (("linear", 1.0), ("task_arithmetic", 1.0), ("ties", 1.0), ("ties", 0.5), ("dare_ties", 1.0)):
        if math.floor(density * n) == 0:
            continue
        own = {"weight": 0.5} | ({"density": density} if method not in ("linear", "task_arithmetic") else {})
        models, base = ([own] * 3, None) if method == "linear" else ([{}, own, own], 0)
        straight = merge(method, x, models, base=base)
        assert torch.equal(merge(method, [row[order] for row in x], models, base=base), straight[order]), method


@SETTINGS
@given(n=ROWS, seed=st.integers(0, 1 << 30), power=st.integers(-20, 20))
def test_scaled_inputs_scale_the_result(n: int, seed: int, power: int) -> None:
    x, factor = smooth((n,), 3, seed), 2.0**power
    for method in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties"):
        own = {"weight": 0.5} | ({} if method in ("linear", "task_arithmetic") else {"density": 0.5 if n > 1 else 1.0})
        models, base = ([own] * 3, None) if method == "linear" else ([{}, own, own], 0)
        assert torch.equal(
            merge(method, [row * factor for row in x], models, base=base), merge(method, x, models, base=base) * factor
        )


@SETTINGS
@given(n=ROWS, seed=st.integers(0, 1 << 30), t=st.floats(0, 1))
def test_slerp_keeps_the_length_of_inputs_of_equal_length(n: int, seed: int, t: float) -> None:
    x = [row / row.norm() for row in smooth((n + 1,), 2, seed)]
    if abs(float(x[0] @ x[1])) < 0.999:
        assert float(merge("slerp", x, [{}, {}], {"t": t}, 0).norm()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_tiles_and_the_order_of_parts_change_no_bit(method: str) -> None:
    x = smooth((3 * PART + 77,), 2, 13)
    own = {"weight": 0.7} | ({"density": 0.4} if "ties" in method or "dare" in method else {})
    some: dict[str, list[dict[str, float]]] = {"linear": [own, own], "slerp": [{}, {}]}
    models = some.get(method, [{}, own])
    made = kernel(method, x[0].shape, models, shared={"t": 0.4, "rescale": 1.0}, base=None if method == "linear" else 0)
    whole, facts = run_kernel(made, x, base=0)
    for tile, shuffle in ((PART, 1), (PART, 2), (2 * PART, 3)):
        again, seen = run_kernel(made, x, tile=tile, shuffle=shuffle, base=0)
        assert torch.equal(again.view(torch.int32), whole.view(torch.int32))
        assert seen == facts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_results_are_rounded_once(dtype: torch.dtype) -> None:
    x = smooth((BLOCK + 3,), 2, 14)
    made = kernel("linear", x[0].shape, [{"weight": 0.5}, {"weight": 0.5}])
    rounded = run_kernel(made, x, dtype=dtype)[0]
    assert torch.equal(rounded, run_kernel(made, x)[0].to(dtype))


def test_inputs_are_rounded_to_the_type_that_the_config_asks_for() -> None:
    x = smooth((BLOCK + 3,), 2, 15)
    made = kernel("linear", x[0].shape, [{"weight": 0.5}, {"weight": 0.25}], shared={"normalize": 0.0})
    got = run_kernel(made, x, cast=torch.bfloat16)[0]
    want = run_kernel(made, [row.bfloat16().float() for row in x])[0]
    assert torch.equal(got, want) and not torch.equal(got, run_kernel(made, x)[0])


def test_kernels_keep_within_the_scratch_rows_that_they_declare() -> None:
    """The engine's own row is the last one; a kernel that wrote there would spoil the comparison with the base."""
    x = coarse((2 * BLOCK,), 4, 16)
    own = {"weight": 0.5, "density": 0.5}
    for method in ("ties", "dare_linear", "dare_ties"):
        made = kernel(method, x[0].shape, [{}, own, own, own], shared={"rescale": 1.0}, base=0)
        got, facts = run_kernel(made, x, base=0)
        assert facts.differing == int((got != x[0]).sum()) > 0
