"""How two checkpoints differ: against plain float64 arithmetic on whole tensors, within the budget."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import llama_config, llama_tensors, write_model
from weft.engine import difference
from weft.engine.difference import Comparison, Sums, compare, sums_of
from weft.errors import BudgetError
from weft.ops.method import BLOCK
from weft.planner.catalog import open_checkpoint
from weft.planner.store import Folder

MIB = 1 << 20
SCRATCH = [torch.empty(BLOCK, dtype=torch.float64) for _ in range(3)]
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


def difference_of(a: Path, b: Path, ram: int = 64 * MIB) -> Comparison:
    return compare(open_checkpoint(Folder(a, a.name)), open_checkpoint(Folder(b, b.name)), ram)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([0, 1, 7, BLOCK - 1, BLOCK, 2 * BLOCK + 5]),
    st.sampled_from(TYPES),
    st.sampled_from(TYPES),
    st.integers(0, 99),
)
def test_sums_are_those_of_the_whole(size: int, first: torch.dtype, second: torch.dtype, seed: int) -> None:
    chance = np.random.default_rng(seed)
    x = torch.from_numpy(chance.normal(size=size) * 3).to(first)
    y = x.to(second) if seed % 2 else torch.from_numpy(chance.normal(size=size) * 3).to(second)
    got = sums_of(x, y, SCRATCH)
    a, b = (t.to(torch.float64).numpy() for t in (x, y))
    assert got.elements == size and got.differing == int((a != b).sum())
    assert got.largest == (np.abs(a - b).max() if size else 0)
    for value, wanted in (
        (got.difference_square, ((a - b) ** 2).sum()),
        (got.first_square, (a**2).sum()),
        (got.second_square, (b**2).sum()),
        (got.product, (a * b).sum()),
    ):
        assert math.isclose(value, wanted, rel_tol=1e-9, abs_tol=1e-9)


def test_what_is_no_number_is_counted_and_left_out() -> None:
    nan, inf = math.nan, math.inf
    x = torch.tensor([1.0, nan, nan, inf, inf, -inf, 2.0])
    y = torch.tensor([1.0, nan, 5.0, inf, 1.0, inf, 4.0])
    got = sums_of(x, y, SCRATCH)
    assert got.nan == (2, 1) and got.inf == (3, 2)
    assert got.differing == 4  # NaN and NaN, Inf and Inf do not differ
    assert (got.difference_square, got.first_square, got.second_square, got.largest) == (4.0, 5.0, 17.0, 2.0)


def test_integers_that_float64_cannot_tell_apart_differ() -> None:
    assert sums_of(torch.tensor([1 << 60]), torch.tensor([(1 << 60) + 1]), SCRATCH).differing == 1


def test_norms_of_nothing() -> None:
    assert (Sums().relative, Sums().cosine) == (0.0, None)
    assert sums_of(torch.zeros(3), torch.ones(3), SCRATCH).relative is None


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        tensors = {
            k: torch.randn(t.shape, generator=chance).bfloat16() for k, t in llama_tensors(vocabulary=700, hidden=300).items()
        }
        write_model(tmp_path / name, tensors, llama_config())
    whole = difference_of(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(difference, "PIECE", 2 * BLOCK)  # bfloat16: a block
    assert difference_of(tmp_path / "a", tmp_path / "b") == whole
    assert whole.total.differing > 0 and not whole.identical
    assert list(whole.layers()) == ["", "model.layers.0", "model.layers.1"]
    assert whole.kinds()["model.layers.*.mlp.down_proj.weight"].elements == 2 * 300 * 600
    for key in (whole.layers, whole.kinds):
        assert sum((sums for sums in key().values()), Sums()).elements == whole.total.elements


def test_what_only_one_has_and_what_disagrees(tmp_path: Path) -> None:
    first = llama_tensors()
    second = llama_tensors(head=False) | {"extra": torch.ones(1), "model.norm.weight": torch.ones(5)}
    second["model.embed_tokens.weight"] = second["model.embed_tokens.weight"].bfloat16()
    write_model(tmp_path / "a", first, llama_config())
    write_model(tmp_path / "b", second, llama_config())
    found = difference_of(tmp_path / "a", tmp_path / "b")
    assert (found.only_first, found.only_second) == (("lm_head.weight",), ("extra",))
    assert found.shapes == {"model.norm.weight": ((4,), (5,))}
    types = {tensor.name: tensor.dtypes for tensor in found.tensors}
    assert types["model.embed_tokens.weight"] == ("F32", "BF16") and found.total.differing == 0 and not found.identical
    assert difference_of(tmp_path / "a", tmp_path / "a").identical


def test_a_budget_that_is_too_small(tmp_path: Path) -> None:
    write_model(tmp_path / "a", llama_tensors(), llama_config())
    with pytest.raises(BudgetError, match=r"--ram 1\.00 MiB is too little: it needs at least --ram \d+MiB") as caught:
        difference_of(tmp_path / "a", tmp_path / "a", MIB)
    assert difference_of(tmp_path / "a", tmp_path / "a", caught.value.needed).identical
