"""Model Stock: how far to go from the base towards the mean, from the angles between fine-tuned models (Jang et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..expression import Value, maximum, minimum, narrow, row_sum, sqrt, where
from ..lib.gram import Matrix, gram, inner_products, matrix
from ..method import Arguments, BaseRole, Kernel, Method, Parameter, Step, row_block

SMALL = 1e-6


def interpolation_ratio(products: Matrix) -> float:
    """The paper's t (section 4.2) from the Gram matrix of the task vectors."""
    count = len(products)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    norms = [math.sqrt(products[i][i]) for i in range(count)]
    cosine = sum(products[i][j] / max(norms[i] * norms[j], SMALL) for i, j in pairs) / len(pairs)
    cosine = min(1.0, max(-1.0, cosine))
    below = 1.0 + (count - 1) * cosine
    return count * cosine / below if abs(below) > 1e-12 else 0.0


def towards_mean(base: Value, models: Sequence[Value], ratio: Value) -> Value:
    """From the base, a share of the way to the models' mean."""
    mean = sum(model - base for model in models) * (1.0 / len(models))
    return base + mean * ratio


def towards_mean_by_row(base: Value, models: Sequence[Value]) -> Value:
    """The same with a ratio of each row's own."""
    vectors = [model - base for model in models]
    count = len(vectors)
    products = matrix([row_sum(product) for product in inner_products(vectors)])
    norms = [sqrt(products[i][i]) for i in range(count)]
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = sum(products[i][j] / maximum(norms[i] * norms[j], SMALL) for i, j in pairs) / float(len(pairs))
    cosine = maximum(minimum(cosine, 1.0), -1.0)
    below = 1.0 + cosine * float(count - 1)
    ratio = where(abs(below) > 1e-12, cosine * float(count) / below, 0.0)
    return base + sum(vectors) * (1.0 / count) * narrow(ratio)


def _kernel(arguments: Arguments) -> Kernel:
    if arguments.shared["filter_wise"] and len(arguments.shape) > 1:
        width = max(arguments.row, 1)
        return Kernel(Step(towards_mean_by_row), base=arguments.base, width=width, block=row_block(width))
    find = gram(lambda products: [interpolation_ratio(products)], from_base=True)
    return Kernel(Step(towards_mean, lambda found: {"ratio": found[0][0] if found[0] else 0.0}), (find,), base=arguments.base)


model_stock = Method(
    name="model_stock",
    summary="From the base towards the models' mean, as far as their agreement suggests.",
    source="Jang et al. 2024, Model Stock, section 4.2",
    base=BaseRole.REQUIRED,
    models=(2, None),
    parameters=(Parameter("filter_wise", "boolean", "global", "row by row instead of whole tensors", default=False),),
    kernel=_kernel,
    version=2,
)
