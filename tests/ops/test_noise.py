"""Normal noise: its distribution, and that it is a function of seed, tensor and element."""

from __future__ import annotations

import math

import torch

from kernel_runs import run_kernel
from weft.ops.backends.host import draw
from weft.ops.lib.noise import Noise, noise_kernel, normal_numbers, uniform_numbers
from weft.ops.method import BLOCK


def normal(stream: str, count: int) -> torch.Tensor:
    return torch.from_numpy(draw(normal_numbers, stream, count))


def test_it_is_standard_normal() -> None:
    z = normal("a", 1 << 18).double()
    assert torch.isfinite(z).all()
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs((z**3).mean()) < 0.03 and abs((z**4).mean() - 3) < 0.08
    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    assert (z.quantile(quantiles) - expected).abs().max() < 0.03
    assert abs((z[1:] * z[:-1]).mean()) < 0.01


def test_it_depends_on_the_stream_and_the_element_alone() -> None:
    whole = normal("a", 3 * BLOCK)
    made = noise_kernel(Noise(1.0, 1.0), "a")
    tiled, _ = run_kernel(made, [torch.zeros(3 * BLOCK)], tile=made.part, shuffle=3)
    assert torch.equal(tiled, whole)
    assert torch.equal(normal("a", BLOCK - 7), whole[: BLOCK - 7])
    assert not torch.equal(normal("b", 100), whole[:100])


def test_uniform_numbers() -> None:
    u = torch.from_numpy(draw(uniform_numbers, "a", 1 << 18)).double()
    assert u.min() > 0 and u.max() <= 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
