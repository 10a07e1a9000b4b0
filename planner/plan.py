"""The plan: everything a run needs, compiled from a config and headers. A pure function of (config, options, headers)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from ..errors import BudgetError, nearest
from ..ops.declare import Arguments, Kernel, Method
from ..ops.registry import methods
from .catalog import Checkpoint, WeightFile, open_checkpoint
from .config import LoadedConfig
from .document import Path
from .dtypes import ITEM_SIZES, TO_CONFIG
from .graph import Load, build_graph
from .layout import find_layout
from .locate import locate
from .memory import PIPELINE, Budget, Division, divide
from .model_config import LayerSource, merged_config
from .parameters import check_parameters
from .recipe import Recipe, RecipeMaker
from .reference import ModelReference
from .schedule import Schedule, schedule
from .shards import OutputPlace, Shard, lay_out
from .sizes import format_size
from .sources import Model, Part, parts

DEFAULT_SHARD = 5 * 10**9
PLAN_VERSION = 1
_TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece", "sentencepiece")


@dataclass(frozen=True, slots=True)
class Options:
    """What a user chooses beside the config. `commits` pins Hub models, by name, to what an earlier plan saw."""

    budget: Budget
    shard_size: int = DEFAULT_SHARD
    seed: int = 0
    copy_tokenizer: bool = True
    commits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A compiled merge."""

    config: LoadedConfig
    options: Options
    method: Method
    models: tuple[Model, ...]
    base: Model
    recipes: tuple[Recipe, ...]
    kernels: tuple[Kernel, ...]
    graph: nx.DiGraph[int]
    schedule: Schedule
    division: Division
    shards: tuple[Shard, ...]
    places: tuple[OutputPlace, ...]
    model_config: Mapping[str, Any]
    side_files: Mapping[str, int]
    layers: int
    notes: tuple[str, ...]
    digest: str

    @property
    def predicted_ram(self) -> int:
        """Peak resident bytes beyond what the process takes before its first task."""
        return self.division.fixed + self.schedule.arena

    @property
    def predicted_vram(self) -> int:
        """Peak bytes on the device."""
        return self.division.vram

    @property
    def bytes_written(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Elements of all output tensors."""
        return sum(recipe.arguments.size for recipe in self.recipes)

    def bytes_read(self) -> dict[str, int]:
        """Bytes read from each model, by its name."""
        read = {model.checkpoint.label: 0 for model in self.models}
        graph = self.graph
        for step in self.schedule.steps:
            for buffer in step.loads:
                task: Load = graph.nodes[buffer.task]["task"]
                read[task.tensor.file.model] += task.nbytes
        return read

    def files(self) -> tuple[WeightFile, ...]:
        """The weight files that are read, each once."""
        return tuple(dict.fromkeys(tensor.file for recipe in self.recipes for tensor in recipe.inputs))


def make_plan(config: LoadedConfig, options: Options) -> Plan:
    """Compile a config. Reads headers only.

    Raises ConfigError and CheckpointError for what cannot be merged, BudgetError where the budget is too small.
    """
    known = methods()
    merge = config.merge
    method = known.get(merge.merge_method)
    if method is None:
        raise config.error(("merge_method",), f"there is no method '{merge.merge_method}'{nearest(merge.merge_method, known)}")
    notes = check_parameters(config, method, known)
    lookup = _Models(options.commits)
    compiled = parts(config, method, lambda reference, path: lookup.get(config, reference, path))
    base = lookup.get(config, merge.base_model, ("base_model",)) if merge.base_model else compiled[0].runs[0].sources[0].model
    made = RecipeMaker(config, method, base.checkpoint.label, options.seed).make(compiled)
    recipes = made.recipes
    kernels = tuple(kernel_of(recipe) for recipe in recipes)
    division = divide(options.budget, kernels, [len(recipe.inputs) for recipe in recipes])
    graph, order = _schedule(recipes, kernels, range(len(recipes)), options.budget, division)
    shards, places = lay_out(recipes, options.shard_size)
    layers = _layers(compiled)
    custom = sorted(name for name in base.checkpoint.store.sizes() if name.endswith(".py"))
    if custom:
        notes.append(f"{base.reference} brings code of its own ({', '.join(custom)}), which is neither run nor copied")
    return Plan(
        config=config,
        options=options,
        method=method,
        models=lookup.all(),
        base=base,
        recipes=recipes,
        kernels=kernels,
        graph=graph,
        schedule=order,
        division=division,
        shards=shards,
        places=places,
        model_config=merged_config(base.checkpoint.config, _dtype(recipes), layers if _renumbered(config) else None),
        side_files=_side_files(base.checkpoint, options),
        layers=len(layers),
        notes=(*notes, *made.notes),
        digest=_digest(recipes, shards),
    )


def kernel_of(recipe: Recipe) -> Kernel:
    """The kernel of a recipe; one without a method is a copy."""
    if recipe.method is None:
        return methods()["passthrough"].kernel(Arguments(recipe.shape, ({},)))
    return methods()[recipe.method].kernel(recipe.arguments)


class _Models:
    """Opens each model once."""

    def __init__(self, commits: Mapping[str, str]) -> None:
        self.commits = commits
        self.opened: dict[ModelReference, Model] = {}

    def get(self, config: LoadedConfig, reference: ModelReference, path: Path) -> Model:
        if reference.adapter is not None:
            raise config.error(path, f"{reference}: adapters are not supported by this version of weft")
        if reference not in self.opened:
            checkpoint = open_checkpoint(locate(reference, self.commits.get(str(reference))))
            layout = find_layout(checkpoint.label, checkpoint.config, checkpoint.tensors)
            self.opened[reference] = Model(reference, checkpoint, layout)
        return self.opened[reference]

    def all(self) -> tuple[Model, ...]:
        return tuple(self.opened.values())


def remaining(plan: Plan, numbers: Sequence[int]) -> tuple[nx.DiGraph[int], Schedule]:
    """The graph and schedule of some of a plan's recipes only: of what is not on the disk yet."""
    if len(numbers) == len(plan.recipes):
        return plan.graph, plan.schedule
    return _schedule(plan.recipes, plan.kernels, numbers, plan.options.budget, plan.division)


def _schedule(
    recipes: Sequence[Recipe], kernels: Sequence[Kernel], numbers: Sequence[int], budget: Budget, division: Division
) -> tuple[nx.DiGraph[int], Schedule]:
    try:
        graph = build_graph(recipes, kernels, numbers, max(division.pool, 0))
        return graph, schedule(graph, max(division.pool, 0), PIPELINE)
    except BudgetError as error:
        needed = error.needed + division.fixed
        mebibytes = -(-needed // (1 << 20))
        raise BudgetError(
            f"--ram {format_size(budget.ram)} is too little for this merge: {error}, "
            f"beside {format_size(division.fixed)} for {budget.workers} workers; --ram {mebibytes}MiB would do",
            mebibytes << 20,
        ) from None


def _layers(compiled: Sequence[Part]) -> list[LayerSource]:
    """For each output layer of the first part, the model and layer whose config describes it."""
    layers: list[LayerSource] = []
    for run in compiled[0].runs:
        source = run.sources[run.base or 0]
        layers.extend((source.model.checkpoint.config, source.first + j) for j in range(run.layers))
    return layers


def _renumbered(config: LoadedConfig) -> bool:
    """Whether the output's layers may differ from the base model's."""
    merge = config.merge
    return merge.slices is not None


def _dtype(recipes: Sequence[Recipe]) -> str | None:
    """The config name of the element type that most of the result has."""
    sizes: dict[str, int] = {}
    for recipe in recipes:
        sizes[recipe.dtype] = sizes.get(recipe.dtype, 0) + ITEM_SIZES[recipe.dtype] * recipe.arguments.size
    most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    return TO_CONFIG.get(most) if most else None


def _side_files(checkpoint: Checkpoint, options: Options) -> dict[str, int]:
    return {
        name: size
        for name, size in checkpoint.side_files.items()
        if options.copy_tokenizer
        or (not any(part in name.lower() for part in _TOKENIZER) and not name.endswith((".model", ".tiktoken")))
    }


def _digest(recipes: Sequence[Recipe], shards: Sequence[Shard]) -> str:
    """Of everything that decides the shards' bytes; budget, workers and order are no part of it."""
    total = hashlib.sha256(json.dumps([PLAN_VERSION, [(shard.name, shard.size) for shard in shards]]).encode())
    for recipe in recipes:
        total.update(f"{recipe.name}\0{recipe.digest}\n".encode())
    return total.hexdigest()[:32]


def default_workers() -> int:
    """One worker a core that this process may use, at most eight: merging is bound by memory and disk, not by arithmetic."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, 8))
