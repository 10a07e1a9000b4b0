"""Embedding rows laid out anew, against a rendering that takes one row at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_runs import run_kernel
from weft.ops.lib.rows import RowLayout, rows_kernel
from weft.ops.method import BLOCK

NAN = float("nan")


def slow(inputs: list[Tensor], layout: RowLayout) -> Tensor:
    """The rules, row by row: sums of a few rows in float32, the mean of all of them in float64."""
    rows = inputs[0].float().clone()
    for row, sources in layout.exceptions:
        total = torch.zeros_like(rows[row])
        for source in sources:
            total = total + inputs[source][row].float()
        rows[row] = total / len(sources) if len(sources) > 1 else total
    if layout.real < len(rows):
        rows[layout.real :] = rows[: layout.real].double().mean(0).float()
    return rows.to(inputs[0].dtype)


def alike(got: Tensor, want: Tensor, real: int) -> bool:
    """Rows of tokens to the last bit; the mean, which is a sum of blocks, to rounding."""
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}[got.dtype]
    return torch.equal(got[:real], want[:real]) and torch.allclose(
        got[real:].double(), want[real:].double(), rtol=step, atol=1e-6
    )


def inputs_of(layout: RowLayout, shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs in which every row that nobody may read is NaN, as memory that was never written may be."""
    random = torch.Generator().manual_seed(shape[0] + count)
    made = [torch.full(shape, NAN, dtype=dtype) for _ in range(count)]
    made[0][: layout.real] = torch.randn((layout.real, *shape[1:]), generator=random).to(dtype)
    for row, sources in layout.exceptions:
        made[0][row] = NAN
        for source in sources:
            made[source][row] = torch.randn(shape[1:], generator=random).to(dtype)
    return made


def check(
    layout: RowLayout, shape: tuple[int, ...], count: int, dtype: torch.dtype = torch.float32, tile: int | None = None
) -> Tensor:
    inputs = inputs_of(layout, shape, count, dtype)
    got, facts = run_kernel(rows_kernel(shape, layout), inputs, dtype=dtype, tile=tile)
    assert alike(got, slow(inputs, layout), layout.real)
    assert (facts.nan, facts.inf) == (0, 0)
    return got


def test_own_rows_come_to_the_last_bit() -> None:
    layout = RowLayout(5, ())
    inputs = [torch.tensor([[1.0, -0.0], [1e-45, 3.4e38], [7.0, 8.0], [0.1, 0.2], [5.0, 6.0]])]
    got, _ = run_kernel(rows_kernel((5, 2), layout), inputs)
    assert torch.equal(got.view(torch.int32), inputs[0].view(torch.int32))


def test_zero_one_and_several_donors() -> None:
    layout = RowLayout(4, ((1, ()), (2, (1,)), (3, (1, 2))))
    own = torch.tensor([[1.0, 2.0], [NAN, NAN], [NAN, NAN], [NAN, NAN]])
    first = torch.tensor([[NAN, NAN], [NAN, NAN], [3.0, 4.0], [1.0, 0.0]])
    second = torch.tensor([[NAN, NAN], [NAN, NAN], [NAN, NAN], [0.0, 5.0]])
    got, _ = run_kernel(rows_kernel((4, 2), layout), [own, first, second])
    assert got.tolist() == [[1, 2], [0, 0], [3, 4], [0.5, 2.5]]


def test_padding_is_the_mean_of_the_real_rows_exceptions_among_them() -> None:
    layout = RowLayout(3, ((1, ()), (2, (1,))))
    own = torch.tensor([[3.0], [NAN], [NAN], [NAN], [NAN]])
    other = torch.tensor([[NAN], [NAN], [9.0], [NAN], [NAN]])
    got, _ = run_kernel(rows_kernel((5, 1), layout), [own, other])
    assert got.flatten().tolist() == [3, 0, 9, 4, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    check(RowLayout(30, ((0, (1, 2)), (7, ()), (29, (2,)))), (33, 12), 3, dtype)


def test_a_bias_has_rows_of_one_element() -> None:
    check(RowLayout(9, ((2, (1, 2)), (8, ()))), (12,), 3)


@pytest.mark.parametrize("width", [1, 96, 4096, BLOCK + 5])
def test_at_the_edges_of_blocks(width: int) -> None:
    """The first and last rows of blocks are the exceptions; some blocks have nothing but padding."""
    block = rows_kernel((1, width), RowLayout(1, ())).block // width
    rows = 3 * block + 2
    real = 2 * block + 1 if block > 1 else 3
    edges = sorted({0, block - 1, block, 2 * block - 1, 2 * block} & set(range(real)))
    layout = RowLayout(real, tuple((row, ((), (1,), (1, 2))[i % 3]) for i, row in enumerate(edges)))
    check(layout, (rows, width), 3)


def test_tiles_and_the_order_of_parts_change_no_bit() -> None:
    layout = RowLayout(70_001, tuple((row, (1,) if row % 2 else (1, 2)) for row in range(5, 70_000, 977)))
    shape = (80_000, 24)
    made = rows_kernel(shape, layout)
    inputs = inputs_of(layout, shape, 3)
    whole, _ = run_kernel(made, inputs)
    assert alike(whole, slow(inputs, layout), layout.real)
    for tile, shuffle in ((made.part, 1), (2 * made.part, 2)):
        assert torch.equal(run_kernel(made, inputs, tile=tile, shuffle=shuffle)[0], whole)


def test_the_mean_of_many_large_rows_does_not_overflow() -> None:
    own = torch.full((1001, 2), 60_000.0, dtype=torch.float16)
    got, facts = run_kernel(rows_kernel((1001, 2), RowLayout(1000, ())), [own], dtype=torch.float16)
    assert got[-1].tolist() == [60_000, 60_000] and (facts.nan, facts.inf) == (0, 0)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([(), (1,), (3,), (2, 2), (2500,)]))
    real = data.draw(st.integers(1, 60))
    size = real + data.draw(st.integers(0, 40))
    count = data.draw(st.integers(1, 4))
    donors = st.lists(st.integers(1, count - 1), unique=True, max_size=count - 1) if count > 1 else st.just([])
    wanted = data.draw(st.dictionaries(st.integers(0, real - 1), donors, max_size=real))
    layout = RowLayout(real, tuple((row, tuple(who)) for row, who in sorted(wanted.items())))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    check(layout, (size, *width), count, dtype)
