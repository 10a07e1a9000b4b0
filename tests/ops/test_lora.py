"""Applying a low-rank adapter, against float64."""

from __future__ import annotations

import pytest
import torch

from kernel_runs import run_kernel
from weft.ops.lib.lora import BLOCK, lora_kernel
from weft.ops.method import Kernel

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def factors(rows: int, width: int, rank: int, transposed: bool, dtype: torch.dtype = torch.float32) -> Factors:
    random = torch.Generator().manual_seed(rows * 7 + rank)
    out, inner = (width, rows) if transposed else (rows, width)
    shapes = ((rows, width), (rank, inner), (out, rank))
    weight, a, b = (torch.randn(shape, generator=random).to(dtype) for shape in shapes)
    return weight, a, b


def run(made: Kernel, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, tile: int | None = None) -> torch.Tensor:
    """Tile by tile."""
    return run_kernel(made, [weight, a, b], dtype=weight.dtype, tile=tile)[0]


def expected(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, transposed: bool) -> torch.Tensor:
    product = b.double() @ a.double()
    return weight.double() + scale * (product.t() if transposed else product)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("rows", "width", "rank"),
    [
        (1, 1, 1),
        (5, 3, 2),
        (3, 5, 8),  # more ranks than rows or columns
        (1, 700, 40),
        (700, 1, 40),
        (4099, 96, 16),  # two blocks, the last of them short
        (2, BLOCK + 1, 3),  # a row is longer than a block
    ],
)
def test_float32_equals_float64_to_rounding(rows: int, width: int, rank: int, transposed: bool) -> None:
    weight, a, b = factors(rows, width, rank, transposed)
    made = lora_kernel((rows, width), tuple(a.shape), tuple(b.shape), 0.75, transposed)
    result = run(made, weight, a, b)
    bound = weight.abs().double() + 0.75 * rank * a.abs().max().double() * b.abs().max().double()
    assert ((result.double() - expected(weight, a, b, 0.75, transposed)).abs() <= 2e-7 * (1 + rank / 8) * bound).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_sixteen_bit_tensors_are_rounded_once(dtype: torch.dtype, transposed: bool) -> None:
    weight, a, b = factors(96, 64, 4, transposed, dtype)
    made = lora_kernel((96, 64), tuple(a.shape), tuple(b.shape), 2.0, transposed)
    result = run(made, weight, a, b)
    assert result.dtype == dtype
    exact = expected(weight, a, b, 2.0, transposed)
    assert (result != exact.to(dtype)).float().mean() < 0.001
    assert torch.allclose(result.double(), exact, rtol=torch.finfo(dtype).eps * 0.51, atol=1e-5)


def test_factors_keep_their_own_dtype() -> None:
    weight, a, b = factors(32, 16, 4, False)
    made = lora_kernel((32, 16), tuple(a.shape), tuple(b.shape), 1.0, False)
    a, b = a.half(), b.bfloat16()
    assert torch.allclose(run(made, weight, a, b).double(), expected(weight, a, b, 1.0, False), atol=1e-5)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "width", "rank"), [(30_011, 64, 8), (517, 4096, 100), (5, 300_000, 7)])
def test_tiles_do_not_change_a_bit(rows: int, width: int, rank: int, transposed: bool) -> None:
    weight, a, b = factors(rows, width, rank, transposed)
    made = lora_kernel((rows, width), tuple(a.shape), tuple(b.shape), -0.3, transposed)
    assert made.block % width == 0
    whole = run(made, weight, a, b)
    assert torch.equal(run(made, weight, a, b, tile=made.part), whole)
    assert torch.equal(run(made, weight, a, b, tile=2 * made.part), whole)


def test_a_zero_factor_changes_nothing() -> None:
    weight, a, b = factors(64, 32, 4, False)
    made = lora_kernel((64, 32), tuple(a.shape), tuple(b.shape), 1.0, False)
    assert torch.equal(run(made, weight, a, torch.zeros_like(b)), weight)


def test_blocks_are_whole_rows_and_as_many_as_fit() -> None:
    for width, rows in ((1, BLOCK), (4096, 64), (5000, 32), (BLOCK * 3, 1)):
        made = lora_kernel((8, width), (2, width), (8, 2), 1.0, False)
        assert made.block == rows * width
        assert made.whole == (1, 2)
