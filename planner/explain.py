"""Where one output tensor of a plan comes from: its sources, its method, what decided every parameter, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ConfigError, nearest
from ..ops.lib.rows import RowLayout
from ..ops.registry import methods
from .catalog import InputTensor
from .graph import Compute, Load, tree_of
from .plan import Plan
from .provenance import Origin, Origins, origins
from .recipe import LowRankUpdate, MappedRows, Recipe
from .sites import sites

EXPLANATION_VERSION = 1
_LISTED = 8
_DEPTH = 40
"""Results within each other that are shown; what is further in is left out."""


@dataclass(frozen=True, slots=True)
class Stored:
    """An input that is read: `nbytes` of a file from byte `offset` on. `moved_rows`: how many rows it gives, where they move."""

    model: str
    file: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    moved_rows: int | None
    parameters: tuple[Origin, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A result: of a method, a copy, an adapter, or rows laid out anew; `stage` is the document it is from, if not the last.

    `parameters` are its own as an input of something else, `shared` those of its method; `t` is None where there is none.
    `left_out` says why its inputs are not shown, if they are not: they stand above already, or there are too many levels.
    """

    tensor: str
    stage: str | None
    method: str
    summary: str
    dtype: str
    shape: tuple[int, ...]
    rounded_first: str | None
    t: float | None
    inputs: tuple[Stored | Made, ...]
    shared: tuple[Origin, ...]
    parameters: tuple[Origin, ...]
    left_out: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """One output tensor. `bytes_read` are those of its own loads: what an earlier tensor left in memory is not read again.

    `memory` is the most that the buffers of one of its steps take; `passes` counts looks at the inputs for statistics.
    """

    source: str
    made: Made
    elements: int
    tiles: int
    passes: int
    bytes_read: int
    bytes_written: int
    memory: int
    shard: str
    offset: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        return {"version": EXPLANATION_VERSION, **asdict(self)}


def find_tensor(plan: Plan, wanted: str) -> int:
    """The number of the recipe that `wanted` names: wholly, by a part of its name, or by a pattern with `*` and `?`.

    Raises ConfigError where none or several fit.
    """
    names = [recipe.name for recipe in plan.recipes]
    if wanted in names:
        return names.index(wanted)
    pattern = wanted if any(c in wanted for c in "*?[") else f"*{wanted}*"
    found = [name for name in names if fnmatchcase(name, pattern)]
    if len(found) == 1:
        return names.index(found[0])
    if not found:
        close = nearest(wanted, names)
        raise ConfigError(f"the result has no tensor '{wanted}'{close if close.startswith('; did') else ''}")
    more = ", …" if len(found) > _LISTED else ""
    raise ConfigError(f"'{wanted}' is {len(found)} tensors of the result: {', '.join(found[:_LISTED])}{more}; name one of them")


def explain(plan: Plan, number: int) -> Explanation:
    """What there is to say about output recipe `number`."""
    recipe = plan.recipes[number]
    inner = {made.digest: len(plan.recipes) + i for i, made in enumerate(plan.inner)}
    tree = tree_of(number, plan.all_recipes, plan.kernels, inner)
    computes, read, memory = [], 0, 0
    for step in plan.schedule.steps:
        task: Compute = plan.graph.nodes[step.compute]["task"]
        if task.recipe in tree.numbers:
            loads: list[Load] = [] if plan.spare(task) else [plan.graph.nodes[buffer.task]["task"] for buffer in step.loads]
            buffers = [*step.loads, *step.resident, *([step.output] if step.output else [])]
            read += sum(load.nbytes for load in loads)
            memory = max(memory, sum(buffer.nbytes for buffer in buffers))
            computes.append(task)
    place = plan.places[number]
    return Explanation(
        source=plan.config.document.source,
        made=_made(plan, recipe, (), set(), 0),
        elements=recipe.arguments.size,
        tiles=max((task.tiles for task in computes if task.recipe == number), default=1),
        passes=sum(kernel.passes for kernel in tree.kernels),
        bytes_read=read,
        bytes_written=place.nbytes,
        memory=memory,
        shard=plan.shards[place.shard].name,
        offset=place.offset,
        digest=recipe.digest,
    )


def _document(plan: Plan, recipe: Recipe) -> tuple[str, Recipe] | None:
    """The document whose tensor a recipe is, the result's last, and the recipe under its name there."""
    for stage, merge in sorted(plan.merges.items(), key=lambda item: not item[0]):
        own = next((other for other in merge.recipes if other.digest == recipe.digest), None)
        if own is not None:
            return stage, own
    return None


def _origins(plan: Plan, stage: str, recipe: Recipe) -> Origins | None:
    """What decided the parameters of a document's tensor; None where no method made it."""
    merge = plan.merges[stage]
    if recipe.method != merge.method.name:
        return None
    config = plan.config.stages[stage] if stage else plan.config
    site = next((site for site in sites(merge.parts, merge.mover) if site.name == recipe.name), None)
    return origins(config, merge.method, site) if site else None


def _made(plan: Plan, recipe: Recipe, parameters: Sequence[Origin], shown: set[str], depth: int) -> Made:
    """`shown`: the results that stand above already, by their digests."""
    left_out = "as above" if recipe.digest in shown else "further stages" if depth > _DEPTH else None
    shown.add(recipe.digest)
    document = _document(plan, recipe)
    found = _origins(plan, *document) if document else None
    each = found.inputs if found else ((),) * len(recipe.inputs)
    method, summary = _what(recipe)
    return Made(
        tensor=recipe.name,
        stage=document[0] or None if document else None,
        method=method,
        summary=summary,
        dtype=recipe.dtype,
        shape=recipe.shape,
        rounded_first=recipe.cast,
        t=found.t if found else None,
        inputs=() if left_out else tuple(_inputs(plan, recipe, each, shown, depth + 1)),
        shared=found.shared if found else (),
        parameters=tuple(parameters),
        left_out=left_out,
    )


def _inputs(
    plan: Plan, recipe: Recipe, each: Sequence[tuple[Origin, ...]], shown: set[str], depth: int
) -> Iterator[Stored | Made]:
    for source, parameters in zip(recipe.inputs, each, strict=True):
        if isinstance(source, Recipe):
            yield _made(plan, source, parameters, shown, depth)
        else:
            tensor = source.tensor if isinstance(source, MappedRows) else source
            moved = sum(run.count for run in source.runs) if isinstance(source, MappedRows) else None
            yield _stored(tensor, moved, parameters)


def _stored(tensor: InputTensor, moved: int | None, parameters: tuple[Origin, ...]) -> Stored:
    file = tensor.file
    shape, offset, nbytes = tensor.shape, tensor.offset, tensor.nbytes
    return Stored(file.model, file.name, tensor.name, tensor.dtype, shape, offset, nbytes, moved, parameters)


def _what(recipe: Recipe) -> tuple[str, str]:
    """A recipe's method in a word and in a sentence."""
    match recipe.special:
        case LowRankUpdate(scale, transposed):
            return "adapter", f"W + {scale:g}·{'(B·A)ᵀ' if transposed else 'B·A'}: a LoRA adapter's factors, added to the weight"
        case RowLayout():
            return "rows", "an embedding's rows, laid out by the new vocabulary"
    if recipe.method is None:
        return "copy", "the tensor of one model as it is" + (", rounded" if recipe.inputs[0].dtype != recipe.dtype else "")
    return recipe.method, methods()[recipe.method].summary
