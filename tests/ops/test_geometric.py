"""Means of directions, nuslerp, multislerp, karcher and model_stock, against the formulas in float64 and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import references_more as references
from kernel_runs import kernel, merge
from references_more import LARGE, SHAPES, any_way, assert_rounding, beside, related, smooth, wide, without
from weft.ops.method import BLOCK, MethodError
from weft.ops.methods.karcher import karcher_weights
from weft.ops.methods.model_stock import interpolation_ratio
from weft.ops.methods.multislerp import multislerp_weights

SETTINGS = settings(max_examples=25, deadline=None)
SIZES = st.integers(2, 40)
SEEDS = st.integers(0, 1 << 30)
FLATTEN = {"flat": (True, False), "flat, rows asked for": (True, True), "last": (False, False), "first": (False, True)}


def weighted(*weights: float) -> list[dict[str, float]]:
    return [{"weight": weight} for weight in weights]


def vectors_at(angles: list[float], lengths: list[float], copies: int = 500) -> list[Tensor]:
    """Vectors in a plane at angles in degrees, repeated to fill a tensor."""
    made = []
    for angle, length in zip(angles, lengths, strict=True):
        pair = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))], dtype=torch.float64)
        made.append((pair * length / math.sqrt(copies)).repeat(copies).float())
    return made


# nuslerp


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("how", FLATTEN)
@pytest.mark.parametrize("place", [None, 0, 2])
def test_nuslerp(shape: tuple[int, ...], how: str, place: int | None) -> None:
    flatten, row_wise = FLATTEN[how]
    x = related(shape, 3, 1)
    shared = {"nuslerp_flatten": float(flatten), "nuslerp_row_wise": float(row_wise)}
    own = weighted(0.7, 0.4)
    if place is None:
        got = any_way("nuslerp", x[1:], own, shared)
        want = references.nuslerp(wide(x[1:]), [0.7, 0.4], None, flatten, row_wise)
    else:
        got = any_way("nuslerp", x, beside(own, place), shared, place)
        want = references.nuslerp(without(x, place), [0.7, 0.4], x[place].double(), flatten, row_wise)
    if how == "first" and shape == (2, BLOCK + 3):
        # Some of many short vectors are nearly opposite, where the coefficients are large.
        assert float(((got - want).abs() > 1e-5).double().mean()) < 0.01
        assert_rounding(got, want, 64_000)
    else:
        assert_rounding(got, want, 64)


@pytest.mark.parametrize("how", ["last", "first"])
def test_nuslerp_of_many_parts(how: str) -> None:
    flatten, row_wise = FLATTEN[how]
    x = related(LARGE, 3, 2)
    shared = {"nuslerp_flatten": float(flatten), "nuslerp_row_wise": float(row_wise)}
    got = any_way("nuslerp", x, beside(weighted(0.5, 0.3), 0), shared, 0)
    assert_rounding(got, references.nuslerp(wide(x[1:]), [0.5, 0.3], x[0].double(), flatten, row_wise), 64)


def test_nuslerp_settings_differ_from_each_other() -> None:
    x = smooth((6, 4, 5), 2, 3)
    results = [
        merge("nuslerp", x, weighted(0.5, 0.5), {"nuslerp_flatten": float(flat), "nuslerp_row_wise": float(rows)})
        for flat, rows in ((True, False), (False, False), (False, True))
    ]
    assert not torch.allclose(results[0], results[1]) and not torch.allclose(results[1], results[2])
    flat_rows = merge("nuslerp", x, weighted(0.5, 0.5), {"nuslerp_flatten": 1.0, "nuslerp_row_wise": 1.0})
    assert torch.equal(flat_rows, results[0])


@pytest.mark.parametrize(("weights", "t"), [((3.0, 1.0), 0.25), ((0.5, -0.5), 0.5), ((0.0, 0.0), 0.5), ((2.0, -1.0), -1.0)])
def test_nuslerp_takes_weights_as_shares(weights: tuple[float, float], t: float) -> None:
    x = vectors_at([10, 70], [2.0, 3.0])
    got = merge("nuslerp", x, weighted(*weights))
    angle = math.radians(60)
    want = (math.sin((1 - t) * angle) * x[0].double() + math.sin(t * angle) * x[1].double()) / math.sin(angle)
    assert_rounding(got, want)


@SETTINGS
@given(n=SIZES, seed=SEEDS, share=st.floats(0, 1), factor=st.floats(0.1, 3), how=st.sampled_from(["flat", "last", "first"]))
def test_nuslerp_of_opposite_vectors_is_a_line(n: int, seed: int, share: float, factor: float, how: str) -> None:
    """Also where rounding has moved them apart by a bit: the coefficients must not explode."""
    flatten, row_wise = FLATTEN[how]
    (x,) = smooth((n, 3), 1, seed)
    shared = {"nuslerp_flatten": float(flatten), "nuslerp_row_wise": float(row_wise)}
    got = merge("nuslerp", [x, -factor * x], weighted(1 - share, share), shared)
    assert_rounding(
        got, (1 - share) * x.double() - share * factor * x.double(), ulps=32 * 8 * max(1.0, n / abs(1 - share * 2 + 1e-3))
    )


@SETTINGS
@given(n=SIZES, seed=SEEDS, first=st.floats(0.1, 2), second=st.floats(0.1, 2))
def test_nuslerp_of_equal_models_changes_nothing(n: int, seed: int, first: float, second: float) -> None:
    x, base = smooth((n, 5), 2, seed)
    for flat, rows in FLATTEN.values():
        shared = {"nuslerp_flatten": float(flat), "nuslerp_row_wise": float(rows)}
        assert_rounding(merge("nuslerp", [x, x], weighted(first, second), shared), x.double())
        same = merge("nuslerp", [base, base, base], beside(weighted(first, second), 1), shared, 1)
        assert torch.equal(same, base)


@SETTINGS
@given(n=SIZES, seed=SEEDS)
def test_nuslerp_has_its_inputs_at_its_ends(n: int, seed: int) -> None:
    x = smooth((n, 3), 2, seed)
    for flat, rows in FLATTEN.values():
        shared = {"nuslerp_flatten": float(flat), "nuslerp_row_wise": float(rows)}
        assert_rounding(merge("nuslerp", x, weighted(1, 0), shared), x[0].double())
        assert_rounding(merge("nuslerp", x, weighted(0, 1), shared), x[1].double())


@SETTINGS
@given(rows=st.integers(2, 9), seed=SEEDS)
def test_nuslerp_by_vectors_treats_each_alone(rows: int, seed: int) -> None:
    """Permuting vectors permutes the result, and one of zeros does not touch its neighbours."""
    x = smooth((rows, 6), 2, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    last, own = {"nuslerp_flatten": 0.0}, weighted(0.3, 0.7)
    straight = merge("nuslerp", x, own, last)
    assert torch.equal(merge("nuslerp", [row[order] for row in x], own, last), straight[order])
    first = {**last, "nuslerp_row_wise": 1.0}
    turned = merge("nuslerp", [row.T.contiguous() for row in x], own, first).T
    assert_rounding(turned.contiguous(), straight.double())
    x[1][0] = x[0][1] = 0
    with_zeros = merge("nuslerp", x, own, last)
    assert torch.equal(with_zeros[2:], straight[2:])
    # A vector of zeros has no direction: it stands at a right angle to the other.
    assert_rounding(with_zeros[0], math.sin(0.3 * math.pi / 2) * x[0][0].double())
    assert_rounding(with_zeros[1], math.sin(0.7 * math.pi / 2) * x[1][1].double())


# multislerp


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("place", [None, 1])
def test_multislerp(shape: tuple[int, ...], count: int, normalize: bool, place: int | None) -> None:
    weights = [0.5, 0.3, 0.9, 0.1, 0.4][:count]
    x = related(shape, count + 1, 4)
    shared = {"normalize_weights": float(normalize)}
    if place is None:
        got = any_way("multislerp", x[1:], weighted(*weights), shared)
        want = references.multislerp(wide(x[1:]), weights, None, normalize)
    else:
        got = any_way("multislerp", x, beside(weighted(*weights), place), shared, place)
        want = references.multislerp(without(x, place), weights, x[place].double(), normalize)
    assert_rounding(got, want, 64)


def test_multislerp_keeps_to_the_sphere() -> None:
    x = vectors_at([0, 40, 90], [1.0, 1.0, 1.0])
    got = merge("multislerp", x, weighted(0.2, 0.5, 0.3))
    assert float(got.norm()) == pytest.approx(1.0, rel=1e-5)
    even = merge("multislerp", vectors_at([0, 80], [2.0, 4.0]), weighted(1, 1))
    assert_rounding(even, vectors_at([40], [3.0])[0].double(), 64)


def test_multislerp_eps_is_a_length() -> None:
    x = vectors_at([0, 60], [1.0, 1.0])
    got = merge("multislerp", x, weighted(0.5, 0.5), {"eps": 0.1})
    assert_rounding(got, references.multislerp(wide(x), [0.5, 0.5], eps=0.1), 64)
    assert not torch.allclose(got, merge("multislerp", x, weighted(0.5, 0.5)))


@SETTINGS
@given(n=SIZES, seed=SEEDS, factor=st.floats(0.1, 3))
@example(n=2, seed=2, factor=0.125)
def test_multislerp_of_two_opposite_vectors_is_their_weighted_sum(n: int, seed: int, factor: float) -> None:
    (x,) = smooth((n,), 1, seed)
    other = -factor * x
    got = merge("multislerp", [x, other], weighted(1, 1))
    size = float(x.abs().max()) * (1 + factor)
    assert float((got.double() - (x.double() + other.double()) / 2).abs().max()) <= 1e-6 * size


@SETTINGS
@given(n=SIZES, seed=SEEDS, factor=st.floats(0.1, 3))
def test_multislerp_refuses_three_directions_that_cancel_out(n: int, seed: int, factor: float) -> None:
    x, none = smooth((n,), 2, seed)
    with pytest.raises(MethodError, match="cancel out"):
        merge("multislerp", [x, -factor * x, torch.zeros_like(none)], weighted(1, 1, 1))


@pytest.mark.parametrize("changed", [1, 2])
def test_multislerp_goes_where_the_models_that_changed_go(changed: int) -> None:
    """Models without a change have no direction, and cancel nothing out."""
    base, *x = smooth((40,), 1 + changed, 5)
    models = [*x, base, base]
    weights = [0.3, 0.4, 0.5, 0.2][: len(models)]
    got = merge("multislerp", [base, *models], beside(weighted(*weights), 0), base=0)
    assert_rounding(got, references.multislerp(wide(models), weights, base.double()), 64)


def test_multislerp_refuses_a_star() -> None:
    with pytest.raises(MethodError, match="cancel out"):
        merge("multislerp", vectors_at([0, 120, 240], [1.0, 2.0, 3.0]), weighted(1, 1, 1))


def test_multislerp_refuses_weights_that_cannot_be_normalised() -> None:
    with pytest.raises(MethodError, match="sum to 0"):
        kernel("multislerp", (4,), weighted(1, -1))
    kernel("multislerp", (4,), weighted(1, -1), shared={"normalize_weights": 0.0})


@SETTINGS
@given(n=SIZES, count=st.integers(1, 5), seed=SEEDS, weight=st.floats(0.1, 3))
def test_multislerp_of_equal_models_changes_nothing(n: int, count: int, seed: int, weight: float) -> None:
    (x,) = smooth((n,), 1, seed)
    assert_rounding(merge("multislerp", [x] * count, weighted(*[weight] * count)), x.double())
    # A tensor that no model has changed is no reason to stop.
    assert torch.equal(merge("multislerp", [x] * (count + 1), beside(weighted(*[weight] * count), 0), base=0), x)
    zeros = torch.zeros(n)
    assert torch.equal(merge("multislerp", [zeros] * count, weighted(*[weight] * count)), zeros)


# karcher


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_karcher(shape: tuple[int, ...], count: int) -> None:
    x = related(shape, count + 1, 5)[1:]
    assert_rounding(any_way("karcher", x), references.karcher(wide(x)), 64)


@pytest.mark.parametrize("max_iter", [0, 1, 2, 50])
@pytest.mark.parametrize("tol", [0.3, 1e-5, 1e-12])
def test_karcher_stops_where_it_is_told(max_iter: int, tol: float) -> None:
    x = vectors_at([0, 10, 150], [1.0, 2.0, 0.5])
    x[2][::3] += 0.01
    got = merge("karcher", x, [{}] * 3, {"max_iter": max_iter, "tol": tol})
    assert_rounding(got, references.karcher(wide(x), max_iter, tol), 128)


def test_karcher_stops_where_it_has_arrived() -> None:
    """Also if no step is too short: there is no direction left to go."""
    x = vectors_at([20, 20], [1.0, 3.0])
    assert_rounding(merge("karcher", x, [{}] * 2, {"tol": 0.0}), 2 * x[0].double(), 64)


def test_karcher_takes_steps() -> None:
    x = vectors_at([0, 10, 150], [1.0, 1.0, 1.0])
    angles = []
    for steps in (0, 1, 10):
        got = merge("karcher", x, [{}] * 3, {"max_iter": steps})
        angles.append(math.degrees(math.atan2(float(got[1]), float(got[0]))))
    # On a circle the mean is that of the angles; the normalised sum, where it begins, is elsewhere.
    assert abs(angles[0] - 160 / 3) > 5 and abs(angles[1] - 160 / 3) < abs(angles[0] - 160 / 3)
    assert angles[2] == pytest.approx(160 / 3, abs=1e-3)


@SETTINGS
@given(n=st.integers(3, 40), count=st.integers(2, 5), seed=SEEDS)
def test_karcher_converges_to_where_nothing_pulls(n: int, count: int, seed: int) -> None:
    x = wide(related((n,), count + 1, seed)[1:])
    gram = [[float(a @ b) for b in x] for a in x]
    weights = karcher_weights(gram, 200, 1e-9)
    u = sum((w * row for w, row in zip(weights, x, strict=True)), torch.zeros(n, dtype=torch.float64))
    assert float(u.norm()) == pytest.approx(sum(float(row.norm()) for row in x) / count, rel=1e-9)
    u = u / u.norm()
    pull = torch.zeros(n, dtype=torch.float64)
    for row in x:
        v = row / row.norm()
        angle = math.acos(min(1.0, float(u @ v)))
        pull += angle / max(math.sin(angle), 1e-30) * (v - float(u @ v) * u)
    assert float(pull.norm()) < 1e-5


@SETTINGS
@given(n=SIZES, seed=SEEDS, factor=st.floats(0.1, 3))
def test_karcher_of_opposite_vectors_is_the_first_direction(n: int, seed: int, factor: float) -> None:
    (x,) = smooth((n,), 1, seed)
    got = merge("karcher", [x, -factor * x], [{}, {}])
    assert_rounding(got, x.double() * (1 + factor) / 2, 64)


def test_karcher_leaves_zeros_out_of_the_direction_but_not_of_the_length() -> None:
    x = vectors_at([0, 60], [1.0, 3.0])
    zeros = torch.zeros_like(x[0])
    got = merge("karcher", [x[0], zeros, x[1], zeros], [{}] * 4)
    assert_rounding(got, vectors_at([30], [1.0])[0].double(), 64)
    assert torch.equal(merge("karcher", [zeros, zeros], [{}, {}]), zeros)


@SETTINGS
@given(n=SIZES, count=st.integers(1, 5), seed=SEEDS, power=st.integers(-4, 20))
def test_karcher_properties(n: int, count: int, seed: int, power: int) -> None:
    (x,) = smooth((n,), 1, seed)
    assert_rounding(merge("karcher", [x] * count, [{}] * count), x.double())
    models = related((n,), count + 1, seed)[1:]
    straight = merge("karcher", models, [{}] * count)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert_rounding(merge("karcher", [row[order] for row in models], [{}] * count), straight[order].double())
    assert_rounding(merge("karcher", models[::-1], [{}] * count), straight.double(), 64)
    scaled = merge("karcher", [row * 2.0**power for row in models], [{}] * count)
    assert_rounding(scaled, straight.double() * 2.0**power)


# model_stock


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("filter_wise", [False, True])
@pytest.mark.parametrize("place", [0, 2])
def test_model_stock(shape: tuple[int, ...], count: int, filter_wise: bool, place: int) -> None:
    x = related(shape, count + 1, 6)
    base = x.pop(0)
    x.insert(place, base)
    got = any_way("model_stock", x, [{}] * len(x), {"filter_wise": float(filter_wise)}, place)
    assert_rounding(got, references.model_stock(base.double(), without(x, place), filter_wise), 128)


def test_model_stock_by_rows_in_many_parts() -> None:
    x = related(LARGE, 4, 7)
    got = any_way("model_stock", x, [{}] * 4, {"filter_wise": 1.0}, 0)
    assert_rounding(got, references.model_stock(x[0].double(), wide(x[1:]), True), 64)


@pytest.mark.parametrize(("degrees", "want"), [(0, 1.0), (60, 2 / 3), (90, 0.0)])
def test_model_stock_goes_as_far_as_models_agree(degrees: float, want: float) -> None:
    """The paper's figure: at 60° two of three parts of the way, at a right angle nowhere."""
    first, second = vectors_at([0, degrees], [2.0, 2.0])
    base = torch.zeros_like(first)
    got = merge("model_stock", [base, first, second], [{}] * 3, base=0).double()
    mean = (first.double() + second.double()) / 2
    assert float((got * mean).sum() / (mean * mean).sum()) == pytest.approx(want, abs=1e-6)


@SETTINGS
@given(n=SIZES, seed=SEEDS, filter_wise=st.booleans())
def test_model_stock_of_opposite_models_is_the_base(n: int, seed: int, filter_wise: bool) -> None:
    (delta,) = references.coarse((n, 3), 1, seed)
    base = torch.ones(n, 3)
    got = merge("model_stock", [base, base + delta, base - delta], [{}] * 3, {"filter_wise": float(filter_wise)}, 0)
    assert torch.equal(got, base)


@SETTINGS
@given(n=SIZES, count=st.integers(2, 5), seed=SEEDS, filter_wise=st.booleans())
def test_model_stock_of_equal_models(n: int, count: int, seed: int, filter_wise: bool) -> None:
    base, x = smooth((n, 7), 2, seed)
    shared = {"filter_wise": float(filter_wise)}
    assert torch.equal(merge("model_stock", [x] * (count + 1), [{}] * (count + 1), shared, 0), x)
    assert_rounding(merge("model_stock", [base] + [x] * count, [{}] * (count + 1), shared, 0), x.double())


@SETTINGS
@given(rows=st.integers(2, 9), seed=SEEDS)
def test_model_stock_by_rows_treats_each_alone(rows: int, seed: int) -> None:
    x = related((rows, 8), 3, seed)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    by_rows = {"filter_wise": 1.0}
    straight = merge("model_stock", x, [{}] * 3, by_rows, 0)
    assert torch.equal(merge("model_stock", [row[order] for row in x], [{}] * 3, by_rows, 0), straight[order])
    for i in range(rows):
        assert_rounding(straight[i], merge("model_stock", [row[i] for row in x], [{}] * 3, base=0).double(), 64)
    # An unchanged row stays as it is.
    for row in x[1:]:
        row[0] = x[0][0]
    assert torch.equal(merge("model_stock", x, [{}] * 3, by_rows, 0)[0], x[0][0])


def test_small_lengths_do_not_divide() -> None:
    assert interpolation_ratio([[1e-14, 1e-14], [1e-14, 1e-14]]) == pytest.approx(2e-8 / (1 + 1e-8))
    assert multislerp_weights([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5], 1e-8) == [0.5, 0.5]
    assert karcher_weights([[0.0, 0.0], [0.0, 0.0]], 10, 1e-5) == [0.0, 0.0]


@pytest.mark.parametrize("method", ["nuslerp", "multislerp", "karcher", "model_stock"])
def test_damaged_values_stay_visible(method: str) -> None:
    x = related((BLOCK + 9,), 3, 8)
    x[2][BLOCK + 3] = math.nan
    own = weighted(0.5, 0.5)
    if method == "model_stock":
        got = merge(method, x, [{}] * 3, base=0)
    else:
        got = merge(method, x[1:], own if method != "karcher" else [{}, {}])
    assert torch.isnan(got[BLOCK + 3])
