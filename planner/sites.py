"""Every output tensor of a config's parts in order, and the tensors that its sources have for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import CheckpointError
from .belonging import absent_module, may_lack, of_another_class
from .catalog import Checkpoint
from .embedding import RowMover
from .layout import Place, stands_for
from .recipe import Source
from .sources import Part, Run, SourceUse
from .tied import says_tied


@dataclass(frozen=True, slots=True)
class Use:
    """One source's tensor. `tied`: it is the input embedding, which stands for an output projection that has no tensor."""

    source: SourceUse
    tensor: Source
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """Where an output tensor comes from: the run it belongs to, what its sources have, and its depth t in the run.

    `names`: for each source of the run the name under which it holds the tensor, if it does.
    """

    name: str
    run: Run
    uses: tuple[Use, ...]
    depth: float
    names: tuple[str, ...]


def sites(parts: Sequence[Part], mover: RowMover | None) -> Iterator[Site]:
    """Every output tensor in order; `mover` lays out embeddings anew. Raises CheckpointError where a layer has no tensor."""
    for part in parts:
        yield from _outside(part, part.runs[0], mover, before=True)
        yield from _layers(part, mover)
        yield from _outside(part, part.runs[-1], mover, before=False)


def _outside(part: Part, run: Run, mover: RowMover | None, *, before: bool) -> Iterator[Site]:
    """What stands outside the part's layers: before them, or after. A part that an end of the stack lacks is one model's."""
    ends = (part.runs[0], part.runs[-1])
    sources = {id(source): source for source in (part.anchor, *ends[0].sources, *ends[1].sources)}
    listed = {id(source): source for source in run.sources}
    names: dict[str, None] = {}
    for number, source in {**listed, **sources}.items():
        for name in _of_source(part, source):
            if _fits(part, source, name) and (number in listed or not _is_detail(run, name)):
                names.setdefault(name)
    for name in names:
        owner = next(source for source in sources.values() if name in source.model.layout.places)
        place = owner.model.layout.places[name]
        if place.before is not before:
            continue
        depth = place.layer / (place.stack.count - 1) if place.stack and place.stack.count > 1 else 0.0
        without = next((end for end in ends if _does_without(end, owner, name)), None)
        if without is None and not any(_held(source.model.checkpoint, name) for source in run.sources):
            without = run
        chosen = (*without.sources, owner) if without else run.sources
        yield _site(name, replace(run, sources=chosen), depth, [name] * len(chosen), mover)


def _does_without(run: Run, owner: SourceUse, name: str) -> bool:
    """Whether all sources of a run are whole without a tensor: they have nothing of the part that it belongs to."""
    place = owner.model.layout.places[name]
    models = [source.model for source in run.sources]
    return not any(_held(model.checkpoint, name) for model in models) and all(
        absent_module(model.layout, name) != name and may_lack(model, name, owner.model, place) for model in models
    )


def _of_source(part: Part, source: SourceUse) -> Iterator[str]:
    """A source's tensors outside the part's layers; those of layers behind its last only where that stays the last."""
    for name, place in source.model.layout.places.items():
        inside = place.stack is not None and part.stack is not None and place.stack.prefix == part.stack.prefix
        moved = place.beyond and part.renumbers(source.model)
        if not inside and not moved and part.holds(place):
            yield name


def _fits(part: Part, source: SourceUse, name: str) -> bool:
    """Whether what a source has is of the result's kind: the anchor has it too, or could, because both are of one class."""
    anchor, model = part.anchor.model, source.model
    if model is anchor or _held(anchor.checkpoint, name) or not of_another_class(anchor, model):
        return True
    return not may_lack(anchor, name, model, model.layout.places[name])


def _is_detail(run: Run, name: str) -> bool:
    """Whether a tensor that only the anchor has belongs to a module that sources have: a bias or a buffer, say."""
    absent = (absent_module(source.model.layout, name) for source in run.sources if not _held(source.model.checkpoint, name))
    return any(module == name for module in absent)


def _layers(part: Part, mover: RowMover | None) -> Iterator[Site]:
    if part.stack is None:
        return
    grouped: dict[str, dict[int, list[Place]]] = {}
    out = 0
    for run in part.runs:
        for source in run.sources:
            label = str(source.model.reference)
            if label not in grouped:
                grouped[label] = _by_layer(source.model.layout.places.values(), part.stack.prefix)
        for j in range(run.layers):
            depth = j / (run.layers - 1) if run.layers > 1 else 1.0
            for rest in _in_layer(run, j, grouped):
                name = Place("", part.stack, 0, rest).at
                yield _site(name(out), run, depth, [name(source.first + j) for source in run.sources], mover)
            out += 1


def _in_layer(run: Run, j: int, grouped: Mapping[str, Mapping[int, Sequence[Place]]]) -> Iterable[str]:
    """The tensors of a run's layer `j`, by what stands behind the layer's number: those that any source has."""
    rests: dict[str, None] = {}
    for source in run.sources:
        for place in grouped[str(source.model.reference)].get(source.first + j, []):
            rests.setdefault(place.rest)
    if not rests:
        raise CheckpointError(f"{run.sources[0].model.reference}: there is no tensor of layer {run.sources[0].first + j}")
    return rests


def _by_layer(places: Iterable[Place], prefix: str) -> dict[int, list[Place]]:
    found: dict[int, list[Place]] = {}
    for place in places:
        if place.stack is not None and place.stack.prefix == prefix:
            found.setdefault(place.layer, []).append(place)
    return found


def _site(name: str, run: Run, depth: float, names: Sequence[str], mover: RowMover | None) -> Site:
    found = (_find(source, local, mover) for source, local in zip(run.sources, names, strict=True))
    return Site(name, run, tuple(use for use in found if use), depth, tuple(names))


def _find(source: SourceUse, name: str, mover: RowMover | None) -> Use | None:
    """A source's tensor; a tied output projection that has no tensor of its own is its input embedding."""
    checkpoint = source.model.checkpoint
    found = _held(checkpoint, name)
    if found is None:
        return None
    tensor = checkpoint.tensors[found]
    return Use(source, mover.move(name, checkpoint, tensor) if mover else tensor, found != name)


def _held(checkpoint: Checkpoint, name: str) -> str | None:
    """The tensor of a checkpoint that is or stands for `name`."""
    found = stands_for(name, checkpoint.tensors)
    return None if found != name and says_tied(checkpoint.config) is False else found
