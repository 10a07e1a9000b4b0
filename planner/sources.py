"""Which layers of which models feed which output layers: a config's `models`, `slices` or `modules` in one common form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import nearest
from ..ops.method import BaseRole, Method
from .catalog import Checkpoint
from .config import LoadedConfig, Module, Slice
from .document import Path
from .layout import Layout, Place, Stack
from .reference import ModelReference
from .setting import Setting

Settings = Mapping[str, Setting]

ONLY_MODULE = "default"
"""The module of a model that has no other."""


@dataclass(frozen=True, slots=True)
class Model:
    """An input model: its headers and its layers."""

    reference: ModelReference
    checkpoint: Checkpoint
    layout: Layout


@dataclass(frozen=True, slots=True)
class Level:
    """One level of parameters, and its key path for messages."""

    settings: Settings
    path: Path


@dataclass(frozen=True, slots=True)
class SourceUse:
    """One source of a run of layers. `first` is its first layer; `own` the parameters written at the source itself."""

    model: Model
    first: int
    own: Level
    is_base: bool
    path: Path


@dataclass(frozen=True, slots=True)
class Run:
    """Output layers that come from as many layers of each source. `levels`: the parameters above the sources, nearest first."""

    sources: tuple[SourceUse, ...]
    layers: int
    levels: tuple[Level, ...]
    path: Path

    @property
    def base(self) -> int | None:
        """The position of the base model among the sources."""
        return next((i for i, source in enumerate(self.sources) if source.is_base), None)


@dataclass(frozen=True, slots=True)
class Part:
    """A whole model, or one module of it: runs in order. `sliced` says whether the config wrote the runs itself.

    `stack` is the stack the runs speak of; `holds` decides which tensors belong to the part. `anchor` is the base model,
    or without one the first source: what the result is, and where a tensor comes from that no source of a run has.
    """

    runs: tuple[Run, ...]
    stack: Stack | None
    sliced: bool
    holds: Callable[[Place], bool]
    anchor: SourceUse

    @property
    def layers(self) -> int:
        """How many layers the result's stack has."""
        return sum(run.layers for run in self.runs)

    def renumbers(self, model: Model) -> bool:
        """Whether the result's last layer is another than the model's: what is numbered behind that one cannot stay there."""
        main = model.layout.main
        return self.sliced and main is not None and self.stack is not None and main.count != self.layers


Lookup = Callable[[ModelReference, Path], Model]


def parts(config: LoadedConfig, method: Method, lookup: Lookup) -> tuple[Part, ...]:
    """The config's parts. Raises ConfigError for slices outside their models, missing or misplaced base models."""
    merge = config.merge
    top = Level(merge.parameters or {}, ("parameters",))
    if merge.modules is None:
        reader = _Reader(config, method, lookup, (), (top,), None)
        return (reader.part(merge.slices, merge.models is not None, lambda place: True),)
    return _modules(config, method, lookup, merge.modules, top)


def _modules(config: LoadedConfig, method: Method, lookup: Lookup, modules: Mapping[str, Module], top: Level) -> tuple[Part, ...]:
    names = list(modules)

    def owner(place: Place) -> str:
        """The module that a tensor belongs to: named in it, else the first for what comes before layers, else the last."""
        words = (place.stack.prefix if place.stack else place.name).split(".")
        named = next((name for name in names if name in words), None)
        return named or (names[0] if place.before else names[-1])

    found = []
    for name, module in modules.items():
        path: Path = ("modules", name)
        level = Level(module.parameters or {}, (*path, "parameters"))
        reader = _Reader(config, method, lookup, path, (level, top), name)
        found.append(reader.part(module.slices, module.models is not None, lambda place, name=name: owner(place) == name))  # type: ignore[misc]
    return tuple(found)


def has_required(method: Method, levels: Sequence[Level]) -> bool:
    """Whether the levels set anything that a method asks of a model; true where it asks nothing."""
    required = [p.name for p in method.parameters if p.required and p.scope == "model"]
    return not required or any(name in level.settings for name in required for level in levels)


def _of(model: Model, stack: Stack | None) -> str:
    """Which of a model's stacks is meant, where it has several."""
    return f" in '{stack.prefix}'" if stack is not None and len(model.layout.stacks) > 1 else ""


@dataclass(frozen=True, slots=True)
class _Reader:
    config: LoadedConfig
    method: Method
    lookup: Lookup
    path: Path
    levels: tuple[Level, ...]
    module: str | None

    def part(self, slices: list[Slice] | None, whole: bool, holds: Callable[[Place], bool]) -> Part:
        runs = (self._whole(),) if whole else tuple(self._slice(i, piece) for i, piece in enumerate(slices or []))
        base = self.config.merge.base_model
        at: Path = ("base_model",)
        first = runs[0].sources[0]
        anchor = SourceUse(self.lookup(base, at), 0, Level({}, at), True, at) if base else first
        return Part(runs, self._stack(first.model, self.path), not whole, holds, anchor)

    def _stack(self, model: Model, path: Path) -> Stack | None:
        if self.module is None:
            return model.layout.main
        for stack in model.layout.stacks:
            if self.module in stack.prefix.split("."):
                return stack
        if self.module == ONLY_MODULE and len(self.config.merge.modules or ()) == 1:
            return model.layout.main
        known = [step for stack in model.layout.stacks for step in stack.prefix.split(".") if step]
        raise self.config.error(path, f"{model.reference} has no module '{self.module}'{nearest(self.module, known)}")

    def _whole(self) -> Run:
        """`models`: all layers of each, the base model added where it is not among them."""
        merge = self.config.merge
        entries = (merge.modules[self.module].models if merge.modules and self.module else merge.models) or []
        sources = []
        for i, entry in enumerate(entries):
            path: Path = (*self.path, "models", i)
            model = self.lookup(entry.model, (*path, "model"))
            own = Level(entry.parameters or {}, (*path, "parameters"))
            sources.append(SourceUse(model, 0, own, entry.model == merge.base_model, path))
        layers = self._same_layers(sources)
        if merge.base_model is not None and self._counts() and not any(source.is_base for source in sources):
            sources.append(self._base_source(merge.base_model, 0, layers))
        return self._run(sources, merge.base_model, layers, self.levels, (*self.path, "models"), same_range=True)

    def _counts(self) -> bool:
        """Whether a base model that is not listed counts like those that are: it has the parameters that all models have."""
        listed_alone = self.method.base is not BaseRole.ORDINARY or self.method.models[1] is not None
        return not listed_alone and has_required(self.method, self.levels)

    def _same_layers(self, sources: list[SourceUse]) -> int:
        counts = []
        for source in sources:
            stack = self._stack(source.model, source.path)
            counts.append(stack.count if stack else 0)
            if counts[-1] != counts[0]:
                raise self.config.error(
                    source.path,
                    f"{source.model.reference} has {counts[-1]} layers{_of(source.model, stack)} "
                    f"and {sources[0].model.reference} has {counts[0]}: "
                    "merge models of equal depth, or choose layers with 'slices'",
                )
        return counts[0]

    def _slice(self, number: int, piece: Slice) -> Run:
        path: Path = (*self.path, "slices", number)
        base = piece.base_model or self.config.merge.base_model
        sources: list[SourceUse] = []
        lengths: list[int] = []
        for i, entry in enumerate(piece.sources):
            at: Path = (*path, "sources", i)
            model = self.lookup(entry.model, (*at, "model"))
            stack = self._stack(model, (*at, "model"))
            low, high = self._range(model, stack, entry.layer_range, (*at, "layer_range"))
            sources.append(SourceUse(model, low, Level(entry.parameters or {}, (*at, "parameters")), entry.model == base, at))
            lengths.append(high - low)
            if lengths[-1] != lengths[0]:
                raise self.config.error(
                    (*at, "layer_range"),
                    f"{lengths[-1]} layers, but the slice's first source has {lengths[0]}: all sources need equally many",
                )
        level = Level(piece.parameters or {}, (*path, "parameters"))
        same = len({source.first for source in sources}) == 1
        return self._run(sources, base, lengths[0], (level, *self.levels), path, same_range=same)

    def _range(self, model: Model, stack: Stack | None, given: list[int] | None, path: Path) -> tuple[int, int]:
        if stack is None:
            raise self.config.error(
                path[:-1],
                f"{model.reference} has no layers that its tensors' names number, so none to slice: merge it under 'models'",
            )
        count = stack.count
        low, high = given if given is not None else (0, count)
        if low >= high:
            raise self.config.error(
                path, f"[{low}, {high}] holds no layer: the upper bound is exclusive, so layer {low} alone is [{low}, {low + 1}]"
            )
        if low < 0 or high > count:
            last = f"layers 0 to {count - 1}" if count > 1 else "layer 0 alone"
            raise self.config.error(path, f"[{low}, {high}] is outside {model.reference}, which has {last}{_of(model, stack)}")
        return low, high

    def _run(
        self,
        sources: list[SourceUse],
        base: ModelReference | None,
        layers: int,
        levels: tuple[Level, ...],
        path: Path,
        *,
        same_range: bool,
    ) -> Run:
        """Check the sources against what the method wants, adding the base model where it must take part and is not listed."""
        role, name = self.method.base, self.method.name
        if role in (BaseRole.REQUIRED, BaseRole.MEMBER) and base is None:
            raise self.config.error((), f"{name} needs the key 'base_model': the model that the others are compared with")
        if base is not None and role is not BaseRole.ORDINARY and not any(source.is_base for source in sources):
            if not same_range:
                raise self.config.error(
                    path, f"{name} needs the base model {base} among the slice's sources, with its own layer_range"
                )
            sources = [*sources, self._base_source(base, sources[0].first, layers)]
        apart = role is BaseRole.REQUIRED or (role is BaseRole.OPTIONAL and base is not None)
        others = len(sources) - apart
        low, high = self.method.models
        if others < low or (high is not None and others > high):
            beside = " beside the base model" if apart else ""
            wanted = f"{low}" if low == high else f"at least {low}" if high is None else f"{low} to {high}"
            given = f"{others} are given" if others != 1 else "1 is given"
            if role is BaseRole.MEMBER and sources[-1].path == ("base_model",):
                given = f"the base model {base} is not among those given"
            raise self.config.error(path, f"{name} takes {wanted} model{'s' if wanted != '1' else ''}{beside}, and {given}")
        return Run(tuple(sources), layers, levels, path)

    def _base_source(self, base: ModelReference, first: int, layers: int) -> SourceUse:
        """The base model as one more source, without parameters of its own."""
        path: Path = ("base_model",)
        model = self.lookup(base, path)
        stack = self._stack(model, path)
        if (stack.count if stack else 0) < first + layers:
            had = f"{stack.count} layers{_of(model, stack)}" if stack else "no layers"
            raise self.config.error(path, f"{base} has {had}, too few for this merge")
        return SourceUse(model, first, Level({}, path), True, path)
