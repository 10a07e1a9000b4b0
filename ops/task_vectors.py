"""Task arithmetic and what grew from it: thin out the task vectors, agree on signs, add them to the base.

task_arithmetic (Ilharco et al. 2022), TIES (Yadav et al. 2023), DARE (Yu et al. 2023), Model Breadcrumbs (Davari and Belilovsky
2023) and DELLA (Deep et al. 2024) differ only in how a vector is thinned (`sparsify.py`) and in whether elements must agree in
sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .combine import elect_flips
from .declare import Arguments, BaseRole, Kernel, Method, Parameter, Scratch
from .sparsify import SCRATCH_ROWS, Sparsify, at_random, at_random_by_rank, by_magnitude, keep_all, without_outliers

if TYPE_CHECKING:
    from torch import Tensor

NO_WEIGHT = 1e-8


def _family(sparsify: Sparsify, *, consensus: bool) -> Callable[[Arguments], Kernel]:
    def kernel(arguments: Arguments) -> Kernel:
        base = arguments.base
        assert base is not None, "the planner gives these methods a base"
        tasks = [i for i in range(len(arguments.models)) if i != base]
        weights = [float(arguments.models[i]["weight"]) for i in tasks]
        normalize = bool(arguments.shared["normalize"])
        scale = float(arguments.shared["lambda"])

        def deltas(x: Sequence[Tensor], scratch: Scratch) -> Sequence[Tensor]:
            return [x[i].sub_(x[base]) for i in tasks]

        sparsifier = sparsify(arguments, tasks, deltas)

        def merge(x: Sequence[Tensor], start: int, scratch: Scratch, statistics: Sequence[Any]) -> Tensor:
            vectors = deltas(x, scratch)
            if not vectors:
                return x[base]
            factors = sparsifier.apply(vectors, start, scratch, statistics)
            for vector, weight, factor in zip(vectors, weights, factors, strict=True):
                if weight * factor != 1.0:
                    vector.mul_(weight * factor)
            add = _sum_of_agreeing if consensus else _sum
            return x[base].add_(add(vectors, weights, normalize, scratch), alpha=scale)

        return Kernel(
            merge,
            sparsifier.statistics,
            rows=SCRATCH_ROWS + 3,
            state_bytes=sparsifier.state_bytes,
            shared_bytes=sparsifier.shared_bytes,
            partial_bytes=sparsifier.partial_bytes,
            block=sparsifier.block,
        )

    return kernel


def _sum(vectors: Sequence[Tensor], weights: Sequence[float], normalize: bool, scratch: Scratch) -> Tensor:
    total = vectors[0]
    for vector in vectors[1:]:
        total.add_(vector)
    weight = sum(weights)
    return total.div_(weight) if normalize and abs(weight) >= NO_WEIGHT else total


def _sum_of_agreeing(vectors: Sequence[Tensor], weights: Sequence[float], normalize: bool, scratch: Scratch) -> Tensor:
    """Elements whose sign agrees with the sign of the sum (0 counts as +), added; Yadav et al. 2023, section 4, "elect"."""
    import torch

    sign, spare, share = (scratch.row(SCRATCH_ROWS + i) for i in range(3))
    flips = elect_flips(vectors, sign)
    for vector in vectors:  # afterwards the agreeing elements are the positive ones
        vector.view(torch.int32).bitwise_xor_(flips)
    if normalize:
        torch.gt(vectors[0], 0.0, out=share).mul_(weights[0])
        for vector, weight in zip(vectors[1:], weights[1:], strict=True):
            share.add_(torch.gt(vector, 0.0, out=spare), alpha=weight)
    total = vectors[0].clamp_min_(0.0)
    for vector in vectors[1:]:
        total.add_(vector.clamp_min_(0.0))
    if normalize:
        # Nothing agrees: the sum is 0 and so is what it is divided by.
        least = min(weights)
        total.div_(share.clamp_min_(least) if least > 0.0 else share.add_(torch.eq(share, 0.0, out=spare)))
    total.view(torch.int32).bitwise_xor_(flips)
    return total


_WEIGHT = Parameter("weight", "number", "model", "factor on this model's task vector", required=True)
_LAMBDA = Parameter("lambda", "number", "global", "factor on the merged task vector", default=1.0)
_INT8_MASK = Parameter("int8_mask", "boolean", "global", "", inert="it never changed values, only another tool's memory")
_GAMMA = Parameter("gamma", "number", "model", "share of the largest elements to drop", default=0.01, low=0.0, high=1.0)
_EPSILON = Parameter("epsilon", "number", "model", "how far the probability moves with the rank", default=0.15)


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", "boolean", "global", "divide by the sum of the weights", default=default)


def _thinned(
    name: str,
    summary: str,
    source: str,
    sparsify: Sparsify,
    *,
    consensus: bool,
    normalize: bool,
    rescale: bool,
    sparse: str,
    extra: Parameter | None = None,
    random: bool = False,
) -> Method:
    """A method that thins its task vectors; what differs between them is what is given here."""
    density = Parameter("density", "number", "model", f"share of the task vector to keep, {sparse}", default=1.0, low=0.0)
    restore = Parameter("rescale", "boolean", "global", "restore the thinned vector's size", default=rescale)
    own = (extra,) if extra else ()
    parameters = (_WEIGHT, density, *own, _normalize(normalize), _LAMBDA, restore, _INT8_MASK)
    kernel = _family(sparsify, consensus=consensus)
    return Method(name, summary, source, BaseRole.REQUIRED, (0, None), parameters, kernel, version=2, random=random)


METHODS = (
    Method(
        name="task_arithmetic",
        summary="Add the models' weighted differences from the base.",
        source="Ilharco et al. 2022, Editing models with task arithmetic, section 2",
        base=BaseRole.REQUIRED,
        models=(0, None),
        parameters=(
            _WEIGHT,
            Parameter(
                "density", "number", "model", "", inert="task_arithmetic keeps whole task vectors; use ties or dare_linear"
            ),
            _normalize(False),
            _LAMBDA,
            Parameter("rescale", "boolean", "global", "", inert="nothing is thinned out, so nothing is rescaled"),
            _INT8_MASK,
        ),
        kernel=_family(keep_all, consensus=False),
    ),
    _thinned(
        "ties",
        "Keep each difference's largest elements, elect a sign, add those that agree.",
        "Yadav et al. 2023, TIES-Merging, section 4",
        by_magnitude,
        consensus=True,
        normalize=True,
        rescale=False,
        sparse="largest magnitudes first",
    ),
    _thinned(
        "dare_linear",
        "Drop elements of each difference at random, rescale, add.",
        "Yu et al. 2023, Language models are super Mario, section 3.2",
        at_random,
        consensus=False,
        normalize=False,
        rescale=True,
        sparse="chosen at random",
        random=True,
    ),
    _thinned(
        "dare_ties",
        "Drop elements at random, rescale, then elect signs as ties does.",
        "Yu et al. 2023, section 3.2; Yadav et al. 2023, section 4",
        at_random,
        consensus=True,
        normalize=False,
        rescale=True,
        sparse="chosen at random",
        random=True,
    ),
    _thinned(
        "breadcrumbs",
        "Drop each difference's largest and smallest elements, add the rest.",
        "Davari and Belilovsky 2023, Model Breadcrumbs, section 3",
        without_outliers,
        consensus=False,
        normalize=False,
        rescale=False,
        sparse="after the largest are dropped",
        extra=_GAMMA,
    ),
    _thinned(
        "breadcrumbs_ties",
        "Drop largest and smallest elements, then elect signs as ties does.",
        "Davari and Belilovsky 2023, section 3; Yadav et al. 2023, section 4",
        without_outliers,
        consensus=True,
        normalize=False,
        rescale=False,
        sparse="after the largest are dropped",
        extra=_GAMMA,
    ),
    _thinned(
        "della",
        "Drop elements at random, large ones less often, rescale, then elect signs as ties does.",
        "Deep et al. 2024, DELLA-Merging, section 3",
        at_random_by_rank,
        consensus=True,
        normalize=True,
        rescale=True,
        sparse="large ones more often",
        extra=_EPSILON,
        random=True,
    ),
    _thinned(
        "della_linear",
        "Drop elements at random, large ones less often, rescale, add.",
        "Deep et al. 2024, DELLA-Merging, section 3",
        at_random_by_rank,
        consensus=False,
        normalize=False,
        rescale=True,
        sparse="large ones more often",
        extra=_EPSILON,
        random=True,
    ),
)
