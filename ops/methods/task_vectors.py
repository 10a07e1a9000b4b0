"""Task arithmetic and what grew from it: thin out the task vectors, agree on signs, add them to the base.

task_arithmetic (Ilharco et al. 2022), TIES (Yadav et al. 2023), DARE (Yu et al. 2023), Model Breadcrumbs (Davari and Belilovsky
2023) and DELLA (Deep et al. 2024) differ only in how a vector is thinned (`lib/sparsify.py`) and in whether elements must agree
in sign.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..expression import Value, where
from ..lib import sparsify
from ..lib.consensus import agreeing
from ..lib.sparsify import Sparsifier, task_vectors
from ..method import Arguments, BaseRole, Found, Kernel, Method, Parameter, Step

NO_WEIGHT = 1e-8

Way = Callable[[Arguments], Sparsifier]


def add_within_cuts(base: Value, models: Sequence[Value], settings: Sequence[Any], **rest: Any) -> Value:
    """Thinned by magnitude, or not at all."""
    return _added(base, models, settings, sparsify.within_cuts, **rest)


def add_at_random(base: Value, models: Sequence[Value], settings: Sequence[Any], **rest: Any) -> Value:
    """Thinned at random."""
    return _added(base, models, settings, sparsify.at_random, **rest)


def add_at_random_by_rank(base: Value, models: Sequence[Value], settings: Sequence[Any], **rest: Any) -> Value:
    """Thinned at random by rank."""
    return _added(base, models, settings, sparsify.at_random_by_rank, **rest)


def _added(
    base: Value,
    models: Sequence[Value],
    settings: Sequence[Any],
    thin: Callable[[Value, int, Any], Value],
    *,
    factors: Sequence[Value],
    weights: Sequence[Value],
    divisor: Value | None,
    consensus: bool,
    normalize: bool,
    scale: Value,
) -> Value:
    """The base and the sum of the thinned, weighted task vectors."""
    vectors = [
        thin(vector, number, own) * factor
        for number, (vector, own, factor) in enumerate(zip(task_vectors(base, models), settings, factors, strict=True))
    ]
    if not vectors:
        return base
    if not consensus:
        total = sum(vectors)
        assert isinstance(total, Value)
        return base + scale * (total if divisor is None else total / divisor)
    total, share = agreeing(vectors, weights)
    # Nothing agrees: the sum is 0 and so is what it is divided by.
    return base + scale * (total / where(share == 0.0, 1.0, share) if normalize else total)


def _family(way: Way, function: Callable[..., Value], *, consensus: bool) -> Callable[[Arguments], Kernel]:
    def kernel(arguments: Arguments) -> Kernel:
        weights = arguments.each("weight")
        normalize = bool(arguments.shared["normalize"])
        whole = sum(weights)
        sparsifier = way(arguments)

        def numbers(found: Found) -> dict[str, object]:
            known = dict(sparsifier.numbers(found))
            factors: Sequence[float] = known.pop("factors")  # type: ignore[assignment]
            return {
                **known,
                "factors": [weight * factor for weight, factor in zip(weights, factors, strict=True)],
                "weights": weights,
                "divisor": whole if normalize and abs(whole) >= NO_WEIGHT else None,
                "consensus": consensus,
                "normalize": normalize,
                "scale": float(arguments.shared["lambda"]),
            }

        return Kernel(
            Step(function, numbers),
            sparsifier.passes,
            base=arguments.base,
            width=sparsifier.width,
            random=arguments.stream,
            state_bytes=sparsifier.state_bytes,
            shared_bytes=sparsifier.shared_bytes,
            partial_bytes=sparsifier.partial_bytes,
            block=sparsifier.block,
        )

    return kernel


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
    way: Way,
    function: Callable[..., Value],
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
    kernel = _family(way, function, consensus=consensus)
    return Method(name, summary, source, BaseRole.REQUIRED, (0, None), parameters, kernel, version=3, random=random)


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
        kernel=_family(sparsify.keep_all, add_within_cuts, consensus=False),
        version=2,
    ),
    _thinned(
        "ties",
        "Keep each difference's largest elements, elect a sign, add those that agree.",
        "Yadav et al. 2023, TIES-Merging, section 4",
        sparsify.by_magnitude,
        add_within_cuts,
        consensus=True,
        normalize=True,
        rescale=False,
        sparse="largest magnitudes first",
    ),
    _thinned(
        "dare_linear",
        "Drop elements of each difference at random, rescale, add.",
        "Yu et al. 2023, Language models are super Mario, section 3.2",
        sparsify.randomly,
        add_at_random,
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
        sparsify.randomly,
        add_at_random,
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
        sparsify.without_outliers,
        add_within_cuts,
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
        sparsify.without_outliers,
        add_within_cuts,
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
        sparsify.randomly_by_rank,
        add_at_random_by_rank,
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
        sparsify.randomly_by_rank,
        add_at_random_by_rank,
        consensus=False,
        normalize=False,
        rescale=True,
        sparse="large ones more often",
        extra=_EPSILON,
        random=True,
    ),
)
