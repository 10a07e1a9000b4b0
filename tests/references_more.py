"""Further methods from their formulas, as in `references.py`, and what their tests share: shapes, inputs, comparisons.

Inputs of the references are float64 tensors of one shape, in the order of a config; `base` is the base model's tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from kernel_runs import kernel, run_kernel
from references import _add, _elect, bits, largest
from weft.ops.method import BLOCK


def rows_of(x: Tensor, *, along_first: bool = False) -> Tensor:
    """A matrix whose rows are the vectors along the last dimension, or along the first; a vector is one row."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    return x.reshape(x.shape[0], -1).T if along_first else x.reshape(-1, x.shape[-1])


def nuslerp(
    x: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None, flatten: bool = True, row_wise: bool = False
) -> Tensor:
    total = sum(weights)
    t = weights[1] / total if abs(total) > 1e-8 else 0.5
    v = [row - base for row in x] if base is not None else list(x)
    along_first = row_wise and not flatten and x[0].dim() > 1
    a, b = (row.reshape(1, -1) if flatten else rows_of(row, along_first=along_first) for row in v)
    units = [row / torch.where((n := row.norm(dim=1, keepdim=True)) > 1e-8, n, 1.0) for row in (a, b)]
    # As precise for nearly parallel vectors as for others (Kahan), unlike the arc cosine.
    angle = 2 * torch.atan2((units[0] - units[1]).norm(dim=1), (units[0] + units[1]).norm(dim=1)).unsqueeze(1)
    curved = angle.sin().abs() >= 1e-8
    sine = torch.where(curved, angle.sin(), 1.0)
    mixed = torch.where(curved, (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine, (1 - t) * a + t * b)
    mixed = (mixed.T if along_first else mixed).reshape(x[0].shape)
    return mixed if base is None else base + mixed


def multislerp(
    x: Sequence[Tensor], weights: Sequence[float], base: Tensor | None = None, normalize: bool = True, eps: float = 1e-8
) -> Tensor:
    v = [row - base for row in x] if base is not None else list(x)
    w = [weight / sum(weights) for weight in weights] if normalize else list(weights)
    zero = torch.zeros_like(x[0])
    lengths = [float(row.norm()) for row in v]
    units = [row / (length + eps) for row, length in zip(v, lengths, strict=True)]
    mean = sum((a * u for a, u in zip(w, units, strict=True)), zero)
    if float(mean.norm()) < eps:
        assert len(x) <= 2, "no mean direction"
        mixed = sum((a * row for a, row in zip(w, v, strict=True)), zero)
    else:
        mean = mean / mean.norm()
        tangent = sum((a * (u - (u * mean).sum() * mean) for a, u in zip(w, units, strict=True)), zero)
        tau = float(tangent.norm()) + eps
        size = sum(a * length for a, length in zip(w, lengths, strict=True))
        mixed = (mean * math.cos(tau) + tangent * math.sin(tau) / tau) * size
    return mixed if base is None else base + mixed


def karcher(x: Sequence[Tensor], max_iter: int = 10, tol: float = 1e-5) -> Tensor:
    lengths = [float(row.norm()) for row in x]
    units = [row / length for row, length in zip(x, lengths, strict=True) if length > tol]
    if not units:
        return torch.zeros_like(x[0])
    share, zero = 1 / len(x), torch.zeros_like(x[0])
    u = sum((share * v for v in units), zero)
    u = u / u.norm() if float(u.norm()) >= tol else units[0]
    for _ in range(max_iter):
        tangent = zero
        for v in units:
            cosine = min(1.0, max(-1.0, float((u * v).sum())))
            angle = math.acos(cosine)
            if angle >= tol and math.sin(angle) > 1e-12:
                tangent = tangent + share * angle / math.sin(angle) * (v - cosine * u)
        step = float(tangent.norm())
        if step < tol:
            break
        u = u * math.cos(step) + tangent / step * math.sin(step)
        u = u / u.norm()
    return u * sum(share * length for length in lengths)


def model_stock(base: Tensor, x: Sequence[Tensor], filter_wise: bool = False) -> Tensor:
    """Where offsets cancel out, so that the formula divides by 0, the base."""
    k = len(x)
    offsets = [rows_of(row - base) if filter_wise else (row - base).reshape(1, -1) for row in x]
    cosines = []
    for i in range(k):
        for j in range(i):
            product = (offsets[i] * offsets[j]).sum(1)
            cosines.append(product / (offsets[i].norm(dim=1) * offsets[j].norm(dim=1)).clamp(min=1e-6))
    cosine = torch.stack(cosines).mean(0).clamp(-1, 1)
    below = 1 + (k - 1) * cosine
    t = torch.where(below.abs() > 1e-12, k * cosine / below, 0.0).unsqueeze(1)
    mean = torch.stack([row.reshape(offsets[0].shape) for row in x]).mean(0)
    return (t * mean + (1 - t) * base.reshape(mean.shape)).reshape(base.shape)


def nearswap(base: Tensor, x: Tensor, t: float) -> Tensor:
    w = (t / (base - x).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * x + (1 - w) * base


def ram(base: Tensor, x: Sequence[Tensor], epsilon: float = 1e-5) -> Tensor:
    z = [torch.where((row - base).abs() > epsilon, row - base, 0.0) for row in x]
    count = sum(((row != 0).double() for row in z), torch.zeros_like(base))
    return base + sum(z, torch.zeros_like(base)) / count.clamp(min=1)


def ramplus_tl(base: Tensor, x: Sequence[Tensor], r: float = 0.1, alpha: float = 0.2, epsilon: float = 1e-5) -> Tensor:
    z = [torch.where((row - base).abs() > epsilon, row - base, 0.0) for row in x]
    count = sum(((row != 0).double() for row in z), torch.zeros_like(base))
    total = torch.zeros_like(base)
    for row in z:
        alone, shared = (row != 0) & (count == 1), (row != 0) & (count > 1)
        ratio = int(shared.sum()) / max(int(alone.sum()), epsilon) if epsilon or alone.any() else 0.0
        factor = 1 + r * min(max(ratio, 0.0), alpha)
        total = total + torch.where(count == 1, row * factor, row)
    return base + total / count.clamp(min=1)


def variances(base: Tensor, x: Sequence[Tensor]) -> Tensor:
    """Population variance over models of the task vectors."""
    deltas = torch.stack([row - base for row in x])
    return ((deltas - deltas.mean(0)) ** 2).mean(0)


def sce(base: Tensor, x: Sequence[Tensor], select_topk: float = 1.0) -> Tensor:
    deltas = [row - base for row in x]
    if select_topk < 1:
        variance = variances(base, x)
        kept = largest(variance, math.floor(select_topk * int((variance != 0).sum())))
        deltas = [torch.where(kept, delta, 0.0) for delta in deltas]
    squares = [float((delta**2).mean()) for delta in deltas]
    weights = [s / sum(squares) for s in squares] if sum(squares) >= 1e-6 else [1 / len(x)] * len(x)
    sign = torch.where(sum(deltas, torch.zeros_like(base)) >= 0, 1.0, -1.0).double()
    above, below = torch.zeros_like(base), torch.zeros_like(base)
    for weight, delta in zip(weights, deltas, strict=True):
        mask = (delta.sign() == sign).double()
        above, below = above + weight * delta * mask, below + weight * mask
    return base + above / below.clamp(min=1e-6)


def arcee_fusion(base: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and which elements are taken over. Float32 inputs: the divergence's rounding is part of the method."""
    p, q = (rows_of(row).softmax(1) + 1e-8 for row in (x, base))
    divergence = (p * (p / q).log()).sum(1, keepdim=True)
    divergence = torch.where(divergence < 0, 1e-20, divergence)  # none is; rounding said so
    importance = (rows_of(x) - rows_of(base)).abs() * divergence
    ordered = importance.flatten().sort().values
    low, middle, high = (float(ordered[math.floor(q * (len(ordered) - 1))]) for q in (0.25, 0.5, 0.75))
    taken = (importance >= torch.tensor(middle + 1.5 * (high - low), dtype=torch.float32)).reshape(base.shape)
    return torch.where(taken, base.double() + (x - base).double(), base.double()), taken


def crumbs(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Where the elements stand that are neither outliers nor too small; of equal magnitudes the first count as larger."""
    n = delta.numel()
    keep = min(math.floor(density * n), n)
    top = min(math.floor(gamma * n), n - keep)
    return largest(delta, top + keep) & ~largest(delta, top)


def breadcrumbs(
    base: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[float],
    densities: Sequence[float],
    gammas: Sequence[float],
    consensus: bool,
    normalize: bool = False,
    rescale: bool = False,
    scale: float = 1.0,
) -> Tensor:
    deltas = []
    for row, density, gamma in zip(x, densities, gammas, strict=True):
        delta = row - base
        thin = torch.where(crumbs(delta, density, gamma), delta, 0.0)
        before, after = float(delta.abs().sum()), float(thin.abs().sum())
        deltas.append(thin * (before / after) if rescale and before >= 1e-7 and after >= 1e-7 else thin)
    return (_elect if consensus else _add)(base, deltas, weights, normalize, scale)


def ladder(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The probability of keeping each element, by the rank of its magnitude in its row."""
    rows = rows_of(delta)
    ranks = rows.abs().sort(dim=1, stable=True).indices.argsort(dim=1).double()
    width = rows.shape[1]
    share = ranks / (width - 1) if width > 1 else torch.full_like(rows, 0.5)
    return ((density - epsilon) + 2 * epsilon * share).reshape(delta.shape)


def uniform(stream: str, model: int, shape: Sequence[int]) -> Tensor:
    """The random numbers in [0, 1) of a tensor's elements: the 24 high bits of each, seen as signed."""
    values = (bits(stream, model, math.prod(shape)).astype(np.int64) >> 8) + (1 << 23)
    return torch.from_numpy(values).double().mul(2.0**-24).reshape(tuple(shape))


def della(
    base: Tensor,
    x: Sequence[Tensor],
    weights: Sequence[float],
    probabilities: Sequence[Tensor | None],
    kept: Sequence[Tensor],
    consensus: bool,
    normalize: bool,
    rescale: bool = True,
    scale: float = 1.0,
) -> Tensor:
    """`kept` are the elements that chance left; no probabilities: all stay."""
    deltas = []
    for row, probability, mask in zip(x, probabilities, kept, strict=True):
        delta = row - base
        if probability is not None:
            delta = torch.where(mask, delta / probability if rescale else delta, 0.0)
        deltas.append(delta)
    return (_elect if consensus else _add)(base, deltas, weights, normalize, scale)


# What tests of these methods share.

SHAPES = [(1,), (7,), (5, 13), (3, 4, 5), (BLOCK - 1,), (BLOCK + 1,), (97, 769), (2, BLOCK + 3), (3, 11, BLOCK // 16)]
"""Sizes at and around the ends of blocks, rows longer and shorter than a block, in one to three dimensions."""

LARGE = (20, 40_000)
"""Several parts, whether blocks are whole rows or not."""


def smooth(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Inputs as weights are: normal, of different lengths."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance) * (0.5 + i) for i in range(count)]


def related(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """A base, and models that share a part of their differences from it."""
    base, common, *own = smooth(shape, count + 1, seed)
    return [base, *(base + 0.3 * common + 0.2 * row for row in own)]


def coarse(shape: Sequence[int], count: int, seed: int) -> list[Tensor]:
    """Multiples of 1/64 of small size: their differences and sums are exact, and equal magnitudes are everywhere."""
    chance = torch.Generator().manual_seed(seed)
    return [torch.randint(-128, 129, tuple(shape), generator=chance).float() / 64 for _ in range(count)]


def wide(x: Sequence[Tensor]) -> list[Tensor]:
    return [row.double() for row in x]


def without(x: Sequence[Tensor], place: int) -> list[Tensor]:
    """All inputs but the base, in float64."""
    return [row.double() for i, row in enumerate(x) if i != place]


def beside(own: Sequence[Mapping[str, float]], place: int) -> list[Mapping[str, float]]:
    """The models' parameters with the base's empty ones at its place."""
    return [*own[:place], {}, *own[place:]]


def any_way(
    method: str,
    x: Sequence[Tensor],
    models: Sequence[Mapping[str, float]] | None = None,
    shared: Mapping[str, float] | None = None,
    base: int | None = None,
    stream: str = "0\0tensor",
) -> Tensor:
    """The merged tensor, which must be the same bits in one tile and in as many as possible, done in another order."""
    own = models if models is not None else [{}] * len(x)
    made = kernel(method, tuple(x[0].shape), own, shared=shared, base=base, stream=stream)
    whole = run_kernel(made, x)[0]
    tiled = run_kernel(made, x, tile=made.part, shuffle=5)[0]
    assert torch.equal(whole.view(torch.int32), tiled.view(torch.int32))
    return whole


def assert_rounding(got: Tensor, want: Tensor, ulps: float = 32.0, unsure: Tensor | None = None) -> None:
    """Equal but for a few roundings relative to the largest result; `unsure` elements, of which few may be, are left out."""
    assert got.dtype == torch.float32 and got.shape == want.shape
    away = (got.double() - want).abs()
    if unsure is not None:
        assert float(unsure.double().mean()) <= 0.01
        away = away[~unsure]
    bound = ulps * torch.finfo(torch.float32).eps * max(float(want.abs().max()), 1e-30)
    assert float(away.max()) <= bound
