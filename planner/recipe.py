"""What makes one output tensor: inputs, method and parameters, and a digest of all that could change its bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..ops.lib.noise import Noise
from ..ops.lib.rows import RowLayout
from ..ops.method import Arguments, Method
from ..ops.registry import methods
from .catalog import InputTensor, WeightFile
from .dtypes import ITEM_SIZES


@dataclass(frozen=True, slots=True)
class RowRun:
    """`count` rows of an embedding that move together: from row `first_old` on to row `first_new` on."""

    first_new: int
    first_old: int
    count: int


@dataclass(frozen=True, slots=True)
class MappedRows:
    """Rows of an input tensor at other places; where no run puts one, there is nothing that may be read.

    `shape` is that of the whole; `runs` are sorted by `first_new` and do not overlap. `width` as in `RowLayout`.
    """

    tensor: InputTensor
    shape: tuple[int, ...]
    runs: tuple[RowRun, ...]
    width: int | None = None

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
        return ITEM_SIZES[self.dtype] * (math.prod(self.shape[1:]) if self.width is None else self.width)


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
    result's bytes. `sources` are the inputs' models as the config names them, for people. `computed_by` is
    what computes it, where that decides bits (`computed_by`).
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
    computed_by: str | None = None

    def leaves(self) -> Iterator[InputTensor]:
        """Every tensor that is read for this one, also for inputs that are computed themselves: for each of these once."""
        met: set[str] = set()
        waiting: list[Source] = [*reversed(self.inputs)]
        while waiting:  # not by recursion: stages may follow one another in any number, and use one more than once
            source = waiting.pop()
            if not isinstance(source, Recipe):
                yield source.tensor if isinstance(source, MappedRows) else source
            elif source.digest not in met:
                met.add(source.digest)
                waiting.extend(reversed(source.inputs))


def computed_inputs(recipes: Iterable[Recipe]) -> tuple[Recipe, ...]:
    """All that is computed for these recipes, each once, inputs before what uses them."""
    found: dict[str, Recipe] = {}
    for recipe in recipes:
        waiting = [(recipe, iter(recipe.inputs))]
        while waiting:
            last, inputs = waiting[-1]
            source = next((s for s in inputs if isinstance(s, Recipe) and s.digest not in found), None)
            if source is not None:
                waiting.append((source, iter(source.inputs)))
                continue
            waiting.pop()
            if waiting:
                found.setdefault(last.digest, last)
    return tuple(found.values())


def files_of(recipes: Iterable[Recipe]) -> tuple[WeightFile, ...]:
    """The files that are read for some tensors, also for inputs that are computed themselves; each once."""
    found: dict[WeightFile, None] = {}
    seen: set[str] = set()

    def visit(recipe: Recipe) -> None:
        seen.add(recipe.digest)
        for source in recipe.inputs:
            if isinstance(source, Recipe):
                if source.digest not in seen:
                    visit(source)
            else:
                found[(source.tensor if isinstance(source, MappedRows) else source).file] = None

    for recipe in recipes:
        visit(recipe)
    return tuple(found)


Source = InputTensor | MappedRows | Recipe
"""An input: a tensor of a checkpoint, rows of one at other places, or a result that is computed in memory only."""


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


def method_recipe(
    name: str,
    dtype: str,
    method: Method,
    inputs: tuple[Source, ...],
    arguments: Arguments,
    *,
    cast: str | None = None,
    base_input: int | None = None,
    sources: tuple[str, ...] = (),
) -> Recipe:
    """What a method makes of its inputs, which have one shape."""
    digest = _digest(method.name, method.version, dtype, cast, inputs, arguments)
    return Recipe(name, dtype, arguments.shape, method.name, inputs, arguments, cast, base_input, digest, sources=sources)


def copy_recipe(name: str, dtype: str, source: Source, base_input: int | None, sources: tuple[str, ...] = ()) -> Recipe:
    """One input's values in `dtype`."""
    arguments = Arguments(source.shape, ({},))
    digest = _digest("copy", 1, dtype, None, (source,), arguments)
    return Recipe(name, dtype, source.shape, None, (source,), arguments, None, base_input, digest, sources=sources)


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
        source = method_recipe(name, source.dtype, methods()["passthrough"], (source,), arguments, base_input=base_input)
    if isinstance(source, Recipe) and source.dtype == dtype:
        return replace(source, name=name)  # what is computed is the result: nothing is left to do to it
    return copy_recipe(name, dtype, source, base_input)
