"""Every output tensor of a config's parts in order, and the tensors that its sources have for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckpointError
from .embedding import RowMover
from .layout import Place, stands_for
from .recipe import Source
from .sources import Part, Run, SourceUse


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
    """What stands outside the part's layers: before them, or after."""
    names: dict[str, None] = {}
    for source in run.sources:
        for name, place in source.model.layout.places.items():
            inside = place.stack is not None and part.stack is not None and place.stack.prefix == part.stack.prefix
            if not inside and part.holds(place) and place.before is before:
                names.setdefault(name)
    for name in names:
        place = next(p for s in run.sources if (p := s.model.layout.places.get(name)))
        depth = place.layer / (place.stack.count - 1) if place.stack and place.stack.count > 1 else 0.0
        yield _site(name, run, depth, [name] * len(run.sources), mover)


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
    found = stands_for(name, checkpoint.tensors)
    if found is None or (found != name and checkpoint.config.get("tie_word_embeddings") is False):
        return None
    tensor = checkpoint.tensors[found]
    return Use(source, mover.move(name, checkpoint, tensor) if mover else tensor, found != name)
