"""The Gram matrix of a tensor's inputs: all that the geometric means need to know about them.

Every such mean lies in the span of its inputs, Σ cᵢ xᵢ, and its coefficients depend on inner products alone, so even an iteration
runs on the K × K matrix and costs no pass over the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from ..expression import Value, where, wide
from ..method import Found, Step, Sum

Matrix: TypeAlias = list[list[float]]

Coefficients: TypeAlias = Callable[[Matrix], Sequence[float]]
"""What a mean makes of the Gram matrix: the factors of its inputs."""


def inner_products(vectors: Sequence[Value]) -> list[Value]:
    """The products of each element of each pair, in float64: the lower triangle, row by row."""
    return [wide(vectors[i]) * wide(vectors[j]) for i in range(len(vectors)) for j in range(i + 1)]


def matrix(products: Sequence[Any]) -> list[list[Any]]:
    """The symmetric matrix of which `inner_products` gives the lower triangle; numbers and values alike."""
    count = (math.isqrt(8 * len(products) + 1) - 1) // 2
    return [[products[max(i, j) * (max(i, j) + 1) // 2 + min(i, j)] for j in range(count)] for i in range(count)]


def products_of_models(models: Sequence[Value]) -> list[Value]:
    """Of the models themselves."""
    return inner_products(models)


def products_of_task_vectors(base: Value, models: Sequence[Value]) -> list[Value]:
    """Of the models' differences from the base."""
    return inner_products([model - base for model in models])


def gram(coefficients: Coefficients, *, from_base: bool = False) -> Sum:
    """The pass that finds the coefficients of the models, or of their differences from the base."""

    def conclude(sums: Sequence[float], found: Found) -> Sequence[float]:
        return coefficients(matrix(sums)) if sums else []

    return Sum(Step(products_of_task_vectors if from_base else products_of_models), conclude)


def weighted_sum(values: Sequence[Value], weights: Sequence[Value]) -> Value:
    """Σ wᵢ xᵢ in input order; inputs of weight 0 are left out, so that their NaNs are too."""
    total = where(weights[0] == 0.0, 0.0, values[0] * weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = where(weight == 0.0, total, total + value * weight)
    return total


def span(models: Sequence[Value], weights: Sequence[Value]) -> Value:
    """The map of a mean of the models."""
    return weighted_sum(models, weights)


def span_from_base(base: Value, models: Sequence[Value], weights: Sequence[Value]) -> Value:
    """The map of a mean of their differences from the base."""
    return base + weighted_sum([model - base for model in models], weights)
