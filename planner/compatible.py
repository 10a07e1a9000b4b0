"""Whether the tensors that sources have for one output tensor can be merged: the same shape, the same kind, none missing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import CheckpointError
from .belonging import absent_module, may_lack
from .config import LoadedConfig
from .dtypes import MERGED
from .families import class_of, of_one_family
from .layout import Place, Stack, input_embedding, is_output_embedding
from .recipe import Source
from .sites import Site, Use
from .sources import Model, SourceUse
from .token_axes import vocabulary_size


@dataclass(frozen=True, slots=True)
class Lack:
    """A source without a tensor: `module` is the part of which it has nothing; None where it only does without this one."""

    source: SourceUse
    module: str | None


def lacking(config: LoadedConfig, site: Site, base_label: str) -> list[Lack]:
    """The sources that are whole without the tensor: it is a bias or a buffer, or part of what they have nothing of.

    Raises CheckpointError for a source that is incomplete without it, or of another architecture, and for the model of
    `base_label`, whose class the result will have, where a model of another family brings what that class has no place for.
    """
    owner = site.uses[0].source
    at = next(local for source, local in zip(site.run.sources, site.names, strict=True) if source is owner)
    place = owner.model.layout.places.get(at) or Place(at)
    have = {id(use.source) for use in site.uses}
    without = []
    for source, local in zip(site.run.sources, site.names, strict=True):
        if id(source) in have:
            continue
        if may_lack(source.model, local, owner.model, place):
            without.append(Lack(source, absent_module(source.model.layout, local)))
        elif site.name.endswith("weight") or _elsewhere(source, local) or _replaced(source, owner, site.uses[0].tensor):
            raise _unfit(config, source, _lost(source, local, owner, place))
        elif source.model.checkpoint.label == base_label and not of_one_family(source.model, owner.model):
            raise _unfit(
                config,
                owner,
                f"{owner.model.reference} ({class_of(owner.model)}) has '{at}', which {source.model.reference} has not: "
                f"the result would be {class_of(source.model)}, whose programs drop such a tensor; merge models of one family",
            )
        else:
            without.append(Lack(source, None))
    return without


def _replaced(source: SourceUse, owner: SourceUse, tensor: Source) -> bool:
    """Whether a matrix without the name of a weight, such as fused experts, is something else in a source that lacks it."""
    bias = tensor.name.endswith("bias")
    return not bias and len(tensor.shape) > 1 and tensor.dtype in MERGED and _of_its_own(source.model, owner.model) is not None


def _of_its_own(model: Model, other: Model) -> str | None:
    """A tensor of a model's layers that no layer of the other has."""
    kinds = {_kind(name) for name in other.layout.places}
    return next((name for name, place in model.layout.places.items() if place.stack and _kind(name) not in kinds), None)


def _lost(source: SourceUse, name: str, owner: SourceUse, at: Place) -> str:
    """What to say of a tensor that a source should have: it is incomplete, or the two are made of other things."""
    here, there = source.model, owner.model
    apart = f"{here.reference} and {there.reference} are of different architectures"
    if all(_kind(other) != _kind(name) for other in here.layout.places):
        if own := _of_its_own(here, there):
            return (
                f"{apart}: only {there.reference} has '{at.name}', and only {here.reference} has '{own}'; "
                "merge models whose layers are made of the same tensors"
            )
        if at.stack is not None and at.stack.count > 1:
            return f"{apart}: no layer of {here.reference} has a '{at.rest}', as '{at.name}' is in {there.reference}"
    return f"{here.reference}: missing weights: it has no '{name}', which {there.reference} has; fetch it again"


def _kind(name: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def check_alike(config: LoadedConfig, name: str, first: Use, other: Use) -> None:
    """Raises CheckpointError where two sources' tensors differ in shape, or only one of them holds floating-point numbers."""
    a, b = first.tensor, other.tensor
    if a.shape != b.shape:
        raise _unfit(
            config,
            other.source,
            f"tensor '{name}' has shape {list(a.shape)} in {first.source.model.reference} "
            f"and {list(b.shape)} in {other.source.model.reference}: {_why_unlike(name, first, other)}",
        )
    if (a.dtype in MERGED) != (b.dtype in MERGED):
        raise _unfit(
            config,
            other.source,
            f"tensor '{name}' is {a.dtype} in {first.source.model.reference} "
            f"and {b.dtype} in {other.source.model.reference}: "
            "integers and floating-point numbers cannot be merged",
        )


def _why_unlike(name: str, first: Use, other: Use) -> str:
    """Why two tensors' shapes differ, and what to do."""
    a, b = first.tensor.shape, other.tensor.shape
    if len(a) != len(b) or [i for i in range(len(a)) if a[i] != b[i]] != _token_axis(name, first, other):
        return "only models of one architecture and size can be merged; shapes are never broadcast"
    if not of_one_family(first.source.model, other.source.model):
        return f"they are {class_of(first.source.model)} and {class_of(other.source.model)}: merge models of one family"
    return "their vocabularies differ: set 'tokenizer_source: union' (or base, or a model) to bring their tokens together"


def _token_axis(name: str, first: Use, other: Use) -> list[int]:
    """The dimension that goes by tokens, as far as names and config.json say; none where neither does."""
    if is_output_embedding(name) or input_embedding([name]):
        return [0]
    sizes = tuple(vocabulary_size(use.source.model.checkpoint.config) for use in (first, other))
    return [axis for axis, pair in enumerate(zip(first.tensor.shape, other.tensor.shape, strict=True)) if pair == sizes][:1]


def _unfit(config: LoadedConfig, source: SourceUse, message: str) -> CheckpointError:
    """A checkpoint that does not fit the others, with the place in the config that names it."""
    return CheckpointError(str(config.error(source.path, message)))


def _elsewhere(source: SourceUse, name: str) -> bool:
    """Whether other layers of the same model have the tensor that this one lacks."""
    for place in source.model.layout.places.values():
        if place.stack is not None and place.at(0) == _at_zero(name, place.stack):
            return True
    return False


def _at_zero(name: str, stack: Stack) -> str | None:
    head = f"{stack.prefix}." if stack.prefix else ""
    number, _, rest = name.removeprefix(head).partition(".")
    return f"{head}0.{rest}" if name.startswith(head) and number.isdigit() else None
