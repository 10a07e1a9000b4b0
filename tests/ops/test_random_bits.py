"""Bits that depend on (stream, model, index) and nothing else, and look random in every way that dropping elements needs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import references
from kernel_runs import merge
from weft.ops.lib import random_bits as module
from weft.ops.lib.random_bits import WORDS as BLOCK
from weft.ops.lib.random_bits import random_words
from weft.ops.lib.sparsify import threshold

N = 1 << 22


def bits(stream: str, model: int, count: int, begin: int = 0) -> Tensor:
    """`count` values from element `begin` on."""
    return torch.from_numpy(random_words(stream, model, begin, count))


def keep_with_probability(probability: float, values: Tensor) -> Tensor:
    """1 for what is kept, as `sparsify.at_random` does it."""
    return (values < threshold(probability)).int()


def unsigned(values: Tensor) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return values.numpy().view(np.uint32)


def test_agree_with_plain_unsigned_arithmetic() -> None:
    got = bits("7\0model.layers.3.mlp.up_proj.weight", 2, 3 * BLOCK + 11)
    want = references.bits("7\0model.layers.3.mlp.up_proj.weight", 2, 3 * BLOCK + 11)
    assert np.array_equal(got.numpy(), want)


def test_workers_that_begin_together_make_the_tables_once() -> None:
    """They are counted once in a plan's prediction of memory."""
    module._made_tables.cache_clear()
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda row: module.tables(), range(4)))
    assert all(other is found[0] for other in found)
    assert found[0].nbytes == module.TABLE_BYTES


def test_are_pinned() -> None:
    """Other numbers would change every result made with them: raise the methods' versions with them."""
    assert bits("0\0a", 0, 3).tolist() == references.bits("0\0a", 0, 3).tolist()
    assert unsigned(bits("0\0a", 0, 3)).tolist() == PINNED


PINNED = [3218959080, 2485388667, 573594988]


def test_depend_neither_on_where_one_begins_nor_on_how_long_the_block_is() -> None:
    whole = bits("1\0t", 0, 2 * BLOCK + 100)
    assert torch.equal(bits("1\0t", 0, 2 * BLOCK), whole[: 2 * BLOCK])
    assert torch.equal(bits("1\0t", 0, BLOCK + 100, begin=BLOCK), whole[BLOCK:])
    assert torch.equal(bits("1\0t", 0, 5), whole[:5])


OTHERS = [("0\0a", 1), ("1\0a", 0), ("0\0b", 0), ("0\0a ", 0), ("10\0a", 0)]


@pytest.mark.parametrize(("stream", "model"), OTHERS)
def test_other_streams_and_models_are_independent(stream: str, model: int) -> None:
    a, b = unsigned(bits("0\0a", 0, N)), unsigned(bits(stream, model, N))
    assert_unrelated(a, b)


def test_blocks_are_independent() -> None:
    values = unsigned(bits("0\0a", 0, 64 * BLOCK)).reshape(64, BLOCK)
    for other in (1, 2, 3, 32, 63):
        assert_unrelated(values[0], values[other])
    # The same place in consecutive blocks.
    assert_unrelated(values[:-1].flatten(), values[1:].flatten())


def test_neighbours_are_independent() -> None:
    values = unsigned(bits("0\0a", 0, N))
    for distance in (1, 2, 3, 64, 256, 4096):
        assert_unrelated(values[:-distance], values[distance:])


def assert_unrelated(a: references.Words, b: references.Words) -> None:
    """No correlation of values, of single bits, nor of being kept, at any density."""
    n, limit = len(a), 5.5 / math.sqrt(len(a))
    assert not np.array_equal(a, b)
    assert abs(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1]) < limit
    agree = np.bitwise_count(a ^ b)
    assert abs(float(agree.mean()) / 32 - 0.5) < 5.5 * 0.5 / math.sqrt(32 * n)
    for bit in (0, 7, 15, 16, 23, 31):
        equal = float((((a ^ b) >> np.uint32(bit)) & 1).mean())
        assert abs(equal - 0.5) < 5.5 * 0.5 / math.sqrt(n), bit
    for density in (0.01, 0.1, 0.5, 0.9):
        cut = density * 2.0**32
        both = float(((a < cut) & (b < cut)).mean())
        expected = density * density
        assert abs(both - expected) < 5.5 * math.sqrt(expected * (1 - expected) / n), density


@pytest.mark.parametrize("stream", ["0\0a", "1\0model.embed_tokens.weight", "4294967295\0lm_head.weight"])
def test_bytes_and_bits_are_uniform(stream: str) -> None:
    values = unsigned(bits(stream, 0, N))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((values >> np.uint32(shift)) & 0xFF, minlength=256)
        assert chi_square(counts) < limit_chi_square(255), shift
    for bit in range(32):
        ones = int(((values >> np.uint32(bit)) & 1).sum())
        assert abs(ones - N / 2) < 5.5 * math.sqrt(N) / 2, bit
    # Pairs of neighbours: their high four bits together.
    high = values >> np.uint32(28)
    assert chi_square(np.bincount(high[:-1:2] * 16 + high[1::2], minlength=256)) < limit_chi_square(255)


def chi_square(counts: Any) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2).sum() / expected)


def limit_chi_square(freedom: int) -> float:
    """Passed by chance once in ten million (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 5.2 * math.sqrt(2 / (9 * freedom))) ** 3


DENSITIES = [0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999]


@pytest.mark.parametrize("density", DENSITIES)
def test_the_share_kept_is_the_density(density: float) -> None:
    kept = keep_with_probability(density, bits("3\0a", 1, N))
    assert set(torch.unique(kept).tolist()) == {0.0, 1.0}
    assert abs(float(kept.mean(dtype=torch.float64)) - density) < 5 * math.sqrt(density * (1 - density) / N)


@pytest.mark.parametrize("density", [0.001, 0.3, 0.999])
def test_the_number_kept_varies_between_runs_of_elements_as_it_should(density: float) -> None:
    """Too even would be as wrong as too uneven: a chi-square of the counts in runs of 1,024 elements, and in columns of them."""
    kept = keep_with_probability(density, bits("3\0a", 1, N)).double().view(-1, 1024)
    for counts, length in ((kept.sum(1), 1024), (kept.sum(0), N // 1024)):
        statistic = float(((counts - density * length) ** 2).sum() / (length * density * (1 - density)))
        freedom = len(counts)
        assert abs(statistic - freedom) < 6 * math.sqrt(freedom * (2 + 1 / (length * density * (1 - density))))


def test_gaps_between_rare_survivors_are_geometric() -> None:
    density = 0.001
    places = torch.nonzero(keep_with_probability(density, bits("8\0a", 0, N))).flatten().double()
    gaps = places.diff()
    assert float(gaps.mean()) == pytest.approx(1 / density, rel=5 / math.sqrt(len(gaps)))
    # Exponential in the limit: its standard deviation is its mean.
    assert float(gaps.std()) == pytest.approx(1 / density, rel=10 / math.sqrt(len(gaps)))


def test_probabilities_at_the_ends() -> None:
    values = torch.tensor([-(1 << 31), -(1 << 31) + 1, -1, 0, (1 << 31) - 2, (1 << 31) - 1], dtype=torch.int32)
    assert keep_with_probability(0.0, values.clone()).tolist() == [0.0] * 6
    assert keep_with_probability(2.0**-32, values.clone()).tolist() == [1, 0, 0, 0, 0, 0]
    assert keep_with_probability(0.5, values.clone()).tolist() == [1, 1, 1, 0, 0, 0]
    assert keep_with_probability(1 - 2.0**-32, values.clone()).tolist() == [1, 1, 1, 1, 1, 0]
    assert keep_with_probability(1e-12, values.clone()).tolist() == [0.0] * 6
    assert keep_with_probability(1 - 1e-12, values.clone()).tolist() == [1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_rescaled_survivors_have_the_mean_and_variance_of_theory(density: float) -> None:
    """δ·m/p has the mean δ and the variance δ²(1−p)/p."""
    delta = torch.full((N,), 0.5)
    got = merge("dare_linear", [torch.zeros(N), delta], [{}, {"weight": 1.0, "density": density}], base=0).double()
    variance = 0.25 * (1 - density) / density
    assert abs(float(got.mean()) - 0.5) < 5 * math.sqrt(variance / N)
    # The variance of a two-valued variable's estimate follows from the count of survivors.
    assert float(got.var()) == pytest.approx(variance, rel=6 / math.sqrt(N * density * (1 - density)))
    plain = merge("dare_linear", [torch.zeros(N), delta], [{}, {"weight": 1.0, "density": density}], {"rescale": 0.0}, base=0)
    assert torch.equal(plain != 0, got != 0) and set(plain.tolist()) == {0.0, 0.5}


def test_another_seed_drops_other_elements() -> None:
    x = [torch.zeros(BLOCK), torch.ones(BLOCK)]
    models = [{}, {"weight": 1.0, "density": 0.5}]
    one, same, other = (merge("dare_ties", x, models, base=0, stream=f"{seed}\0a") for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert 0.48 < float(((one != 0) == (other != 0)).double().mean()) < 0.52


def test_models_of_one_tensor_drop_different_elements() -> None:
    """With the same elements dropped in both, sums would be 0 or 2 only."""
    x = [torch.zeros(BLOCK), torch.ones(BLOCK), torch.ones(BLOCK)]
    model = {"weight": 1.0, "density": 0.5}
    got = merge("dare_linear", x, [{}, model, model], {"rescale": 0.0}, base=0)
    assert abs(float((got == 1.0).double().mean()) - 0.5) < 0.02
