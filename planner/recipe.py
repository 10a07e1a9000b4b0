"""The recipe of each output tensor: its inputs in order, the method, and every parameter evaluated to a number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ConfigError
from ..ops.declare import Arguments, BaseRole, Method, MethodError, Parameter
from ..ops.noise import Noise
from ..ops.registry import methods
from ..ops.rows import RowLayout
from .catalog import InputTensor
from .config import LoadedConfig
from .dtypes import FROM_CONFIG, ITEM_SIZES, MERGED
from .layout import Place, Stack, input_embedding, is_output_embedding, stands_for
from .sources import Level, Part, Run, SourceUse

if TYPE_CHECKING:
    from .embedding import RowMover


@dataclass(frozen=True, slots=True)
class RowRun:
    """`count` rows of an embedding that move together: from row `first_old` on to row `first_new` on."""

    first_new: int
    first_old: int
    count: int


@dataclass(frozen=True, slots=True)
class MappedRows:
    """Rows of an input tensor at other places; where no run puts one, there is nothing that may be read.

    `shape` is that of the whole; `runs` are sorted by `first_new` and do not overlap.
    """

    tensor: InputTensor
    shape: tuple[int, ...]
    runs: tuple[RowRun, ...]

    @property
    def name(self) -> str:
        """The input tensor's name."""
        return self.tensor.name

    @property
    def dtype(self) -> str:
        """The input tensor's dtype."""
        return self.tensor.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return ITEM_SIZES[self.dtype] * math.prod(self.shape[1:])


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """An adapter's change of one tensor: inputs W, A, B become W + scale·B·A, or W + scale·(B·A)ᵀ if `transposed`."""

    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that makes one output tensor.

    `method` None copies input 0's bytes. `cast`: inputs of other types are rounded to this one first, as the config's `dtype`
    asks (None: they are taken as they are); all arithmetic is float32 nevertheless. `base_input` is the position of the base
    model's own tensor among the inputs, if it is one of them. `digest` changes whenever anything does that could change the
    result's bytes. `sources` are the inputs' models as the config names them, for people.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    method: str | None
    inputs: tuple[Source, ...]
    arguments: Arguments
    cast: str | None
    base_input: int | None
    digest: str
    special: RowLayout | LowRankUpdate | Noise | None = None
    sources: tuple[str, ...] = ()

    def leaves(self) -> Iterator[InputTensor]:
        """Every tensor that is read for this one, also for inputs that are computed themselves."""
        for source in self.inputs:
            if isinstance(source, Recipe):
                yield from source.leaves()
            else:
                yield source.tensor if isinstance(source, MappedRows) else source


Source = InputTensor | MappedRows | Recipe
"""An input: a tensor of a checkpoint, rows of one at other places, or a result that is computed in memory only."""


@dataclass(frozen=True, slots=True)
class Use:
    """One source's tensor, and the source it comes from."""

    source: SourceUse
    tensor: Source


@dataclass(frozen=True, slots=True)
class Recipes:
    """All recipes in the order of the output, and what the user should know about them."""

    recipes: tuple[Recipe, ...]
    notes: tuple[str, ...]


Local = Callable[[SourceUse], str]
"""The name under which a source holds the tensor."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where an output tensor comes from: the run it belongs to, what its sources have, and its depth t in the run."""

    name: str
    run: Run
    uses: list[Use]
    depth: float
    local: Local


class RecipeMaker:
    """Makes the recipes of a config's parts; holds what is the same for all of them."""

    def __init__(self, config: LoadedConfig, method: Method, base_label: str, seed: int, mover: RowMover | None = None) -> None:
        self.config, self.method, self.base_label, self.seed, self.mover = config, method, base_label, seed, mover
        self.notes: dict[str, list[str]] = {}

    def make(self, parts: Sequence[Part]) -> Recipes:
        """Raises ConfigError and CheckpointError, naming the tensor."""
        recipes = [self._recipe(site) for site in self.sites(parts)]
        seen: set[str] = set()
        for recipe in recipes:
            if recipe.name in seen:
                raise CheckpointError(f"tensor '{recipe.name}' would be written by two modules: name modules as the tensors do")
            seen.add(recipe.name)
        notes = tuple(f"{len(names)} tensors {what} (such as {names[0]})" for what, names in self.notes.items())
        return Recipes(tuple(recipes), notes)

    def sites(self, parts: Sequence[Part]) -> Iterator[Site]:
        """Every output tensor in order. Raises CheckpointError where a layer has none."""
        for part in parts:
            yield from self._outside(part, part.runs[0], lambda place: place.before)
            yield from self._layers(part)
            yield from self._outside(part, part.runs[-1], lambda place: not place.before)

    def _outside(self, part: Part, run: Run, wanted: Callable[[Place], bool]) -> Iterator[Site]:
        names: dict[str, None] = {}
        for source in run.sources:
            for name, place in source.model.layout.places.items():
                inside = place.stack is not None and part.stack is not None and place.stack.prefix == part.stack.prefix
                if not inside and part.holds(place) and wanted(place):
                    names.setdefault(name)
        for name in names:
            place = next(p for s in run.sources if (p := s.model.layout.places.get(name)))
            depth = place.layer / (place.stack.count - 1) if place.stack and place.stack.count > 1 else 0.0
            uses = [Use(source, tensor) for source in run.sources if (tensor := self._find(source, name))]
            yield Site(name, run, uses, depth, lambda source, name=name: name)  # type: ignore[misc]

    def _layers(self, part: Part) -> Iterator[Site]:
        if part.stack is None:
            return
        grouped: dict[str, dict[int, list[Place]]] = {}
        out = 0
        for run in part.runs:
            for j in range(run.layers):
                depth = j / (run.layers - 1) if run.layers > 1 else 1.0
                yield from self._layer(part.stack, run, j, out, depth, grouped)
                out += 1

    def _layer(
        self, stack: Stack, run: Run, j: int, out: int, depth: float, grouped: dict[str, dict[int, list[Place]]]
    ) -> Iterator[Site]:
        rests: dict[str, None] = {}
        for source in run.sources:
            label = str(source.model.reference)
            if label not in grouped:
                grouped[label] = _by_layer(source.model.layout.places.values(), stack.prefix)
            for place in grouped[label].get(source.first + j, []):
                rests.setdefault(place.rest)
        if not rests:
            raise CheckpointError(f"{run.sources[0].model.reference}: there is no tensor of layer {run.sources[0].first + j}")
        for rest in rests:

            def local(source: SourceUse, rest: str = rest) -> str:
                return Place("", stack, 0, rest).at(source.first + j)

            name = Place("", stack, 0, rest).at(out)
            uses = [Use(source, tensor) for source in run.sources if (tensor := self._find(source, local(source)))]
            yield Site(name, run, uses, depth, local)

    def _find(self, source: SourceUse, name: str) -> Source | None:
        """A source's tensor; a tied output projection that has no tensor of its own is its input embedding."""
        checkpoint = source.model.checkpoint
        found = stands_for(name, checkpoint.tensors)
        if found is None or (found != name and checkpoint.config.get("tie_word_embeddings") is False):
            return None
        if found != name:
            self._note(f"are read from the input embedding of {source.model.reference}, to which they are tied", name)
        tensor = checkpoint.tensors[found]
        return self.mover.move(name, checkpoint, tensor) if self.mover else tensor

    def taking_part(self, site: Site) -> list[Use]:
        """The sources whose tensors are merged."""
        return [use for use in site.uses if not self._only_lends_files(use, site.run)] or site.uses

    def _recipe(self, site: Site) -> Recipe:
        name, run, depth = site.name, site.run, site.depth
        self._check_missing(name, run, site.uses, site.local)
        uses = self.taking_part(site)
        first = uses[0].tensor
        for use in uses[1:]:
            self._check_alike(name, uses[0], use)
        if first.dtype not in MERGED:
            base = next((use for use in uses if use.source.is_base), uses[0])
            self._note("are no floating-point numbers and are copied", name)
            return self._copy(name, base, base.tensor.dtype)
        merge = self.config.merge
        chosen = merge.out_dtype or merge.dtype
        own = next((use for use in uses if use.source.is_base), uses[0]).tensor.dtype
        dtype = FROM_CONFIG[chosen] if chosen else own
        if (len(uses) == 1 and len(run.sources) > 1) or 0 in first.shape:
            return self._copy(name, uses[0], dtype)
        arguments = self._arguments(name, run, uses, depth)
        inputs = tuple(use.tensor for use in uses)
        try:
            kernel = self.method.kernel(arguments)
        except MethodError as error:
            raise self.config.error(run.path, f"tensor '{name}': {error}") from None
        cast = _cast(FROM_CONFIG[merge.dtype] if merge.dtype else None, inputs)
        if kernel.copies and isinstance(first, Recipe) and first.dtype == dtype:
            return replace(first, name=name)  # what is computed is the result: nothing is left to do to it
        digest = _digest(self.method.name, self.method.version, dtype, cast, inputs, arguments)
        base_input = self._base_input(uses)
        return Recipe(
            name, dtype, first.shape, self.method.name, inputs, arguments, cast, base_input, digest, sources=_sources(uses)
        )

    def _only_lends_files(self, use: Use, run: Run) -> bool:
        """A base model that has none of the parameters its method asks of a model gives config and tokenizer, no weights."""
        if self.method.base is not BaseRole.ORDINARY or not use.source.is_base:
            return False
        required = [p.name for p in self.method.parameters if p.required and p.scope == "model"]
        levels = (use.source.own, *run.levels)
        return bool(required) and not any(name in level.settings for name in required for level in levels)

    def _copy(self, name: str, use: Use, dtype: str) -> Recipe:
        arguments = Arguments(use.tensor.shape, ({},))
        digest = _digest("copy", 1, dtype, None, (use.tensor,), arguments)
        base = self._base_input([use])
        return Recipe(name, dtype, use.tensor.shape, None, (use.tensor,), arguments, None, base, digest, sources=_sources([use]))

    def _base_input(self, uses: Sequence[Use]) -> int | None:
        for i, use in enumerate(uses):
            tensor = use.tensor
            # A tensor that an adapter brings along is not the base model's, though it stands in its place.
            brought = isinstance(tensor, InputTensor) and tensor.file.model == str(use.source.model.reference.adapter)
            if use.source.model.checkpoint.label == self.base_label and not brought:
                return i
        return None

    def _check_missing(self, name: str, run: Run, uses: Sequence[Use], local: Local) -> None:
        """A weight that one source has and another lacks is an error, unless it is optional: a bias or a buffer."""
        if len(uses) == len(run.sources):
            return
        have = {id(use.source) for use in uses}
        for source in run.sources:
            if id(source) in have:
                continue
            if name.endswith("weight") or _elsewhere(source, local(source)):
                raise self._unfit(
                    source,
                    f"{source.model.reference}: missing weights: it has no '{local(source)}', "
                    f"which {uses[0].source.model.reference} has; "
                    "fetch it again, or merge models of one architecture",
                )
            self._note(f"are optional and missing from {source.model.reference}", name)

    def _check_alike(self, name: str, first: Use, other: Use) -> None:
        a, b = first.tensor, other.tensor
        if a.shape != b.shape:
            vocabulary = (
                len(a.shape) == 2 and a.shape[1:] == b.shape[1:] and (is_output_embedding(name) or input_embedding([name]))
            )
            hint = (
                "their vocabularies differ: set 'tokenizer_source: union' (or base, or a model) to bring their tokens together"
                if vocabulary
                else "only models of one architecture and size can be merged; shapes are never broadcast"
            )
            raise self._unfit(
                other.source,
                f"tensor '{name}' has shape {list(a.shape)} in {first.source.model.reference} "
                f"and {list(b.shape)} in {other.source.model.reference}: {hint}",
            )
        if (a.dtype in MERGED) != (b.dtype in MERGED):
            raise self._unfit(
                other.source,
                f"tensor '{name}' is {a.dtype} in {first.source.model.reference} "
                f"and {b.dtype} in {other.source.model.reference}: "
                "integers and floating-point numbers cannot be merged",
            )

    def _unfit(self, source: SourceUse, message: str) -> CheckpointError:
        """A checkpoint that does not fit the others, with the place in the config that names it."""
        return CheckpointError(str(self.config.error(source.path, message)))

    def _arguments(self, name: str, run: Run, uses: Sequence[Use], depth: float) -> Arguments:
        per_model = []
        for use in uses:
            values = {}
            for parameter in self._declared("model"):
                value = _first(parameter.name, (use.source.own, *run.levels), use.tensor.name, depth)
                value = parameter.default if value is None else value
                if value is not None:
                    values[parameter.name] = float(value)
                elif parameter.required and not (
                    use.source.is_base and self.method.base in (BaseRole.REQUIRED, BaseRole.OPTIONAL)
                ):
                    raise self._missing_parameter(parameter, use.source.path, name)
            per_model.append(values)
        shared = {}
        for parameter in self._declared("global"):
            value = _first(parameter.name, run.levels, name, depth)
            value = parameter.default if value is None else value
            if value is None and parameter.required:
                raise self._missing_parameter(parameter, ("parameters",), name)
            if value is not None:
                shared[parameter.name] = float(value)
        base = next((i for i, use in enumerate(uses) if use.source.is_base), None)
        if base is None and any(source.is_base for source in run.sources) and self.method.base is not BaseRole.ORDINARY:
            raise CheckpointError(f"tensor '{name}' is missing from the base model, and {self.method.name} needs it there")
        stream = f"{self.seed}\0{name}" if self.method.random else ""
        return Arguments(uses[0].tensor.shape, tuple(per_model), shared, base, stream)

    def _declared(self, scope: str) -> Iterable[Parameter]:
        return (p for p in self.method.parameters if p.scope == scope and not p.inert)

    def _missing_parameter(self, parameter: Parameter, path: tuple[str | int, ...], name: str) -> ConfigError:
        where = "of this model" if parameter.scope == "model" else "of the merge"
        return self.config.error(
            path,
            f"{self.method.name} needs the parameter '{parameter.name}' {where} ({parameter.help}), "
            f"and nothing sets it for tensor '{name}'",
        )

    def _note(self, what: str, name: str) -> None:
        names = self.notes.setdefault(what, [])
        if name not in names[-1:]:
            names.append(name)


def _first(name: str, levels: Iterable[Level], tensor: str, depth: float) -> float | bool | None:
    """The nearest level's value for a tensor; a level whose conditions all fail falls through to the next."""
    for level in levels:
        setting = level.settings.get(name)
        value = setting.at(tensor, depth) if setting is not None else None
        if value is not None:
            return value
    return None


def _sources(uses: Iterable[Use]) -> tuple[str, ...]:
    return tuple(str(use.source.model.reference) for use in uses)


def _by_layer(places: Iterable[Place], prefix: str) -> dict[int, list[Place]]:
    found: dict[int, list[Place]] = {}
    for place in places:
        if place.stack is not None and place.stack.prefix == prefix:
            found.setdefault(place.layer, []).append(place)
    return found


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


def _cast(dtype: str | None, inputs: Sequence[Source]) -> str | None:
    """The 16-bit type to which inputs must be rounded; widening changes nothing."""
    return dtype if dtype in ("F16", "BF16") and any(tensor.dtype != dtype for tensor in inputs) else None


def _digest(
    method: str,
    version: int,
    dtype: str,
    cast: str | None,
    inputs: Sequence[Source],
    arguments: Arguments,
    special: object = None,
) -> str:
    made_of: Mapping[str, object] = {
        "method": method,
        "version": version,
        "dtype": dtype,
        "cast": cast,
        "shape": arguments.shape,
        "inputs": [identity(source) for source in inputs],
        "models": [sorted(m.items()) for m in arguments.models],
        "shared": sorted(arguments.shared.items()),
        "base": arguments.base,
        "stream": arguments.stream,
        "special": repr(special) if special is not None else None,
    }
    return hashlib.sha256(json.dumps(made_of, separators=(",", ":")).encode()).hexdigest()[:32]


def identity(source: Source) -> object:
    """What makes an input: its own digest, or the bytes of a file."""
    if isinstance(source, Recipe):
        return source.digest
    if isinstance(source, MappedRows):
        return [identity(source.tensor), [(run.first_new, run.first_old, run.count) for run in source.runs]]
    return source.file.identity, source.name, source.dtype, source.offset


def rows_recipe(name: str, inputs: Sequence[MappedRows], layout: RowLayout) -> Recipe:
    """An embedding laid out by another vocabulary: `inputs` as `ops/rows` wants them."""
    first = inputs[0]
    arguments = Arguments(first.shape, ({},) * len(inputs))
    digest = _digest("rows", 1, first.dtype, None, inputs, arguments, layout)
    return Recipe(name, first.dtype, first.shape, None, tuple(inputs), arguments, None, None, digest, layout)


def low_rank_recipe(weight: InputTensor | Recipe, a: InputTensor, b: InputTensor, update: LowRankUpdate) -> Recipe:
    """A tensor with an adapter applied, in the tensor's own dtype."""
    arguments = Arguments(weight.shape, ({}, {}, {}))
    inputs = (weight, a, b)
    digest = _digest("lora", 1, weight.dtype, None, inputs, arguments, update)
    return Recipe(weight.name, weight.dtype, weight.shape, None, inputs, arguments, None, 0, digest, update)


def expert_recipe(name: str, dtype: str, source: Source, noise: Noise, stream: str, base_input: int | None) -> Recipe:
    """A tensor of its own as part of a mixture: copied, scaled, or with noise. `stream` names its random bits.

    What changes is rounded to the tensor's own type, and then, if that is not it, to `dtype`: an expert is a model of its type.
    """
    if noise.scale:
        arguments = Arguments(source.shape, ({},), stream=stream)
        digest = _digest("noise", 1, source.dtype, None, (source,), arguments, noise)
        source = Recipe(name, source.dtype, source.shape, None, (source,), arguments, None, base_input, digest, noise)
    elif noise.factor != 1.0:
        arguments = Arguments(source.shape, ({"scale": noise.factor},))
        scaling = methods()["passthrough"]
        digest = _digest(scaling.name, scaling.version, source.dtype, None, (source,), arguments)
        source = Recipe(name, source.dtype, source.shape, scaling.name, (source,), arguments, None, base_input, digest)
    if isinstance(source, Recipe) and source.dtype == dtype:
        return replace(source, name=name)  # what is computed is the result: nothing is left to do to it
    arguments = Arguments(source.shape, ({},))
    digest = _digest("copy", 1, dtype, None, (source,), arguments)
    return Recipe(name, dtype, source.shape, None, (source,), arguments, None, base_input, digest)
