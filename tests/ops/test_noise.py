"""Normal noise: its distribution, and that it is a function of seed, tensor and element."""

from __future__ import annotations

import math

import torch

from weft.ops.declare import BLOCK
from weft.ops.noise import standard_normal, unit_uniform


def normal(stream: str, start: int, count: int) -> torch.Tensor:
    return standard_normal(stream, start, *(torch.empty(count) for _ in range(3)))


def test_it_is_standard_normal() -> None:
    z = normal("a", 0, 1 << 18).double()
    assert torch.isfinite(z).all()
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01
    assert abs((z**3).mean()) < 0.03 and abs((z**4).mean() - 3) < 0.08
    quantiles = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = math.sqrt(2) * torch.erfinv(2 * quantiles - 1)
    assert (z.quantile(quantiles) - expected).abs().max() < 0.03
    assert abs((z[1:] * z[:-1]).mean()) < 0.01


def test_it_depends_on_the_stream_and_the_element_alone() -> None:
    whole = normal("a", 0, 3 * BLOCK)
    for start, count in ((0, 100), (BLOCK - 7, 20), (BLOCK, BLOCK), (2 * BLOCK + 5, 1)):
        assert torch.equal(normal("a", start, count), whole[start : start + count])
    assert not torch.equal(normal("b", 0, 100), whole[:100])


def test_uniform_numbers() -> None:
    u = unit_uniform("a", 0, 0, torch.empty(1 << 18), torch.empty(1 << 18)).double()
    assert u.min() > 0 and u.max() <= 1
    assert abs(u.mean() - 0.5) < 0.003 and abs(u.var() - 1 / 12) < 0.001
