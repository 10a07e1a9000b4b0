"""Compiled loops give the bits that NumPy gives, for every method, stored type and pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kernel_runs import arguments, run_kernel
from weft.ops.backends.compiled import Loop, build, compile_now, start
from weft.ops.lib.noise import Noise, noise_kernel
from weft.ops.method import BLOCK, PART, Kernel
from weft.ops.registry import methods

ONE: list[dict[str, float]] = [{}, {}]
TWO: list[dict[str, float]] = [{}, {"weight": 0.6}, {"weight": 0.7}]
THIN: list[dict[str, float]] = [{}, {"weight": 0.6, "density": 0.4}, {"weight": -0.7, "density": 0.7}]
CASES: dict[str, tuple[str, list[dict[str, float]], dict[str, float], int | None]] = {
    "linear": ("linear", [{"weight": 0.3}, {"weight": 0.6}], {}, None),
    "passthrough": ("passthrough", [{"scale": 0.3}], {}, None),
    "slerp": ("slerp", ONE, {"t": 0.3}, 0),
    "nearswap": ("nearswap", ONE, {"t": 0.001}, 0),
    "karcher": ("karcher", [{}, {}, {}], {}, None),
    "multislerp": ("multislerp", TWO, {}, 0),
    "model_stock": ("model_stock", [{}, {}, {}], {}, 0),
    "model_stock by rows": ("model_stock", [{}, {}, {}], {"filter_wise": 1.0}, 0),
    "nuslerp by rows": ("nuslerp", TWO, {"nuslerp_flatten": 0.0}, 0),
    "nuslerp by columns": ("nuslerp", TWO, {"nuslerp_flatten": 0.0, "nuslerp_row_wise": 1.0}, 0),
    "task_arithmetic": ("task_arithmetic", TWO, {}, 0),
    "ties": ("ties", THIN, {"rescale": 1.0}, 0),
    "breadcrumbs": ("breadcrumbs", [{**each, "gamma": 0.05} for each in THIN], {}, 0),
    "dare_ties": ("dare_ties", THIN, {}, 0),
    "dare_linear": ("dare_linear", THIN, {}, 0),
    "della": ("della", [{**each, "epsilon": 0.1} for each in THIN], {}, 0),
    "sce": ("sce", [{}, {}, {}], {"select_topk": 0.4}, 0),
    "ram": ("ram", [{}, {}, {}], {}, 0),
    "ramplus_tl": ("ramplus_tl", [{}, {}, {}], {}, 0),
    "arcee_fusion": ("arcee_fusion", ONE, {}, 0),
}
SHAPE = (2 * PART // 768 + 5, 768)


class Now:
    """Compiles a loop when it is asked for, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        start()

    def __call__(self, loop: Loop) -> Callable[..., Any]:
        self.count += 1
        run = build(loop, self.folder)
        compile_now(loop, run)
        return run


def inputs(count: int, dtype: torch.dtype, shape: tuple[int, ...] = SHAPE) -> list[Tensor]:
    """Models that differ little, with an Inf and a NaN in one of them."""
    chance = torch.Generator().manual_seed(4)
    base = torch.randn(shape, generator=chance) * 0.02
    made = [base, *(base + torch.randn(shape, generator=chance) * 0.002 for _ in range(count - 1))]
    made[-1].view(-1)[7], made[-1].view(-1)[BLOCK] = torch.nan, torch.inf
    return [each.to(dtype) for each in made]


def same(kernel: Kernel, x: list[Tensor], folder: Path, dtype: torch.dtype, **how: Any) -> None:
    loops = Now(folder)
    eager, seen = run_kernel(kernel, x, dtype=dtype, base=0, **how)
    fused, noted = run_kernel(kernel, x, dtype=dtype, base=0, loops=loops, **how)
    assert loops.count and torch.equal(as_bits(eager), as_bits(fused)) and seen == noted


def as_bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("case", CASES)
def test_every_method(case: str, tmp_path: Path) -> None:
    name, models, shared, base = CASES[case]
    x = inputs(len(models), torch.bfloat16)
    if case in ("slerp", "karcher", "multislerp", "nuslerp by rows", "nuslerp by columns", "model_stock", "model_stock by rows"):
        x = [each.nan_to_num(0.0, 0.0) for each in x]  # else all is NaN
    kernel = methods()[name].kernel(arguments(name, SHAPE, models, shared, base))
    same(kernel, x, tmp_path, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_stored_type(dtype: torch.dtype, tmp_path: Path) -> None:
    """Also of inputs of several types, rounded to one first, and of numbers too large and too small for a type."""
    models = [{"weight": 0.3}, {"weight": 0.6}]
    kernel = methods()["linear"].kernel(arguments("linear", (3000,), models))
    wide = torch.cat([10.0 ** torch.linspace(-46, 38, 2990), torch.tensor([0.0, -0.0, 1e-8, -6e-8, 65520, 65519, -1, 1, 3, 7])])
    a, b = wide.to(dtype), torch.flip(wide, (0,)).bfloat16()
    same(kernel, [a, b], tmp_path, dtype)
    same(kernel, [b, a], tmp_path, torch.bfloat16, cast=torch.float16)


def test_noise(tmp_path: Path) -> None:
    same(noise_kernel(Noise(0.1, 2.0), "a"), inputs(1, torch.bfloat16), tmp_path, torch.bfloat16)
