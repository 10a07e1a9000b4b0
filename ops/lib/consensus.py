"""Electing a sign for each element, and adding what agrees with it (Yadav et al. 2023, section 4)."""

from __future__ import annotations

from collections.abc import Sequence

from ..expression import Value, is_nan, where


def agreeing(vectors: Sequence[Value], weights: Sequence[Value]) -> tuple[Value, Value]:
    """The sum of the elements whose sign is that of the sum of all (0 counts as +), and the sum of those models' weights.

    Where there is a NaN the first is NaN.
    """
    everything = sum(vectors)
    assert isinstance(everything, Value)
    positive = everything >= 0.0
    agree = [where(positive, vector > 0.0, vector < 0.0) for vector in vectors]
    total = sum(where(yes, vector, 0.0) for yes, vector in zip(agree, vectors, strict=True))
    share = sum(where(yes, weight, 0.0) for yes, weight in zip(agree, weights, strict=True))
    assert isinstance(total, Value) and isinstance(share, Value)
    return where(is_nan(everything), everything, total), share
