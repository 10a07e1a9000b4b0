"""The plan: everything a run needs, compiled from a config and headers. A pure function of (config, options, headers)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import networkx as nx

from ..errors import BudgetError
from ..ops.backends.compiled import available
from ..ops.method import Fallback, Kernel, Method
from .catalog import WeightFile
from .compile import Merge, compile_merge
from .computed_by import Stamp, processor
from .config import LoadedConfig
from .dtypes import ITEM_SIZES
from .graph import Compute, Load, build_graph, copies_bytes
from .kernels import kernel_of
from .memory import LEAST_COMPILED, PIPELINE, Budget, Division, divide
from .mixture import compile_mixture
from .models import Models
from .recipe import Recipe, computed_inputs, files_of
from .router import ROUTER, Router, check_routers
from .schedule import Schedule, schedule
from .shards import OutputPlace, Shard, lay_out, weights_stem
from .side_files import notes as side_notes
from .sizes import format_size
from .sources import Model
from .stages import alone, as_checkpoint
from .store import Store

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


@dataclass(frozen=True, repr=False)
class Plan:
    """A compiled merge.

    `recipes` are the output tensors' in order, `inner` those of inputs that are computed in memory; tasks number them in this
    order, and `kernels` has one for each. `stores` has the models and adapters that are read, by name. `limit` is the memory
    beyond which the schedule goes only if it must: that of the largest stage, or the budget. `merges` are the compiled documents:
    the stages by name, the result under "". `kept` counts the tensors of parts that not all models have, which one model gives.
    """

    config: LoadedConfig
    options: Options
    method: Method
    models: tuple[Model, ...]
    base: Model
    stores: Mapping[str, Store]
    recipes: tuple[Recipe, ...]
    inner: tuple[Recipe, ...]
    kernels: tuple[Kernel, ...]
    graph: nx.DiGraph[int]
    schedule: Schedule
    division: Division
    limit: int
    shards: tuple[Shard, ...]
    places: tuple[OutputPlace, ...]
    model_config: Mapping[str, Any]
    side_files: Mapping[str, int]
    written_files: Mapping[str, bytes]
    layers: int
    notes: tuple[str, ...]
    digest: str
    merges: Mapping[str, Merge] = field(default_factory=dict)
    kept: int = 0
    routers: tuple[Router, ...] = ()

    def __repr__(self) -> str:
        from .describe import headline

        return f"<weft plan: {headline(self)} · {format_size(self.predicted_ram)} RAM>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from .describe import plan_as_html

        return plan_as_html(self)

    @cached_property
    def all_recipes(self) -> tuple[Recipe, ...]:
        """Outputs' and computed inputs' recipes, as tasks number them."""
        return (*self.recipes, *self.inner)

    @property
    def base_name(self) -> str:
        """The base model as the config names it; where it is a stage, the model whose files the stage has."""
        return str(self.base.reference) if self.base.checkpoint.files else self.base.checkpoint.store.label

    @property
    def index_name(self) -> str:
        """The file that says which shard a tensor is in, where there are several."""
        return f"{weights_stem(self.model_config)}.safetensors.index.json"

    @property
    def computes(self) -> bool:
        """Whether anything is computed; else bytes are only moved."""
        return bool(self.inner or self.routers) or not all(map(copies_bytes, self.recipes, self.kernels))

    @property
    def predicted_ram(self) -> int:
        """Peak resident bytes beyond what the process takes before its first task."""
        routers = (router.memory(self.options.budget).ram for router in self.routers)
        return max(self.division.fixed + self.schedule.arena, *routers, 0)

    @property
    def predicted_vram(self) -> int:
        """Peak bytes on the device."""
        return max(self.division.vram, *(router.memory(self.options.budget).vram for router in self.routers), 0)

    @property
    def bytes_written(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def parameters(self) -> int:
        """Elements of all output tensors."""
        return sum(recipe.arguments.size for recipe in self.recipes)

    def spare(self, task: Compute) -> bool:
        """Whether a task is a pass over a tile that is only made where earlier passes did not find what they looked for."""
        return not task.maps and isinstance(self.kernels[task.recipe].statistics[task.passes[0]], Fallback)

    def bytes_read(self) -> dict[str, int]:
        """Bytes read from each model and adapter, by its name, if no spare pass is needed."""
        read = dict.fromkeys(self.stores, 0)
        graph = self.graph
        for step in (step for step in self.schedule.steps if not self.spare(graph.nodes[step.compute]["task"])):
            for buffer in step.loads:
                task: Load = graph.nodes[buffer.task]["task"]
                if task.tensor.file.model != ROUTER:
                    read[task.tensor.file.model] += task.nbytes
        for tensor in (tensor for router in self.routers for tensor in router.reads()):
            read[tensor.file.model] += tensor.nbytes
        return read

    def files(self) -> tuple[WeightFile, ...]:
        """The weight files that tasks read, each once."""
        return files_of(self.recipes)

    def input_files(self, *, everything: bool = False) -> tuple[WeightFile, ...]:
        """The models' files that are read for tasks and routers, each once; `everything` as for `Router.reads`."""
        routers = (tensor.file for router in self.routers for tensor in router.reads(everything=everything))
        return tuple(dict.fromkeys(file for file in (*self.files(), *routers) if file.model != ROUTER))

    def downloaded_files(self) -> tuple[WeightFile, ...]:
        """All weight files of all models: a model that is half here could not be planned with when the Hub is away."""
        return tuple(dict.fromkeys(file for model in self.models for file in model.checkpoint.files))


def make_plan(config: LoadedConfig, options: Options) -> Plan:
    """Compile a config. Reads headers only.

    Raises ConfigError and CheckpointError for what cannot be merged, BudgetError where the budget is too small.
    """
    stages: list[tuple[Recipe, ...]] = []
    merges: dict[str, Merge] = {}
    routers_of_stages: list[Router] = []

    def compile_stage(stage: LoadedConfig) -> Any:
        compiled = _compile(stage, models, options)
        stages.append(compiled.recipes)
        merges[stage.merge.name or ""] = compiled
        routers_of_stages.extend(compiled.routers)
        return as_checkpoint(stage.merge.name or "", compiled)

    models = Models(options.commits, config.stages, compile_stage)
    models.compile_stages()
    merge = _compile(config, models, options)
    routers = tuple({router.digest: router for router in (*routers_of_stages, *merge.routers)}.values())
    check_routers(routers, options.budget)
    recipes = merge.recipes
    inner = computed_inputs(recipes)
    kernels = tuple(kernel_of(recipe) for recipe in (*recipes, *inner))
    division = _divide((*recipes, *inner), kernels, options.budget)
    limit = options.budget.ram
    if stages:
        with suppress(BudgetError):  # what is too little for a stage is too little for all: the whole says how much it needs
            limit = _largest_alone([*stages, recipes], options.budget)
    stamp = Stamp(options.budget, division.blocks)
    stamped = {name: replace(made, recipes=stamp.all(made.recipes)) for name, made in {**merges, "": merge}.items()}
    recipes = stamped[""].recipes
    inner = computed_inputs(recipes)
    graph, order = _schedule(recipes, inner, kernels, range(len(recipes)), options.budget, division, limit)
    shards, places = lay_out(recipes, options.shard_size, weights_stem(merge.model_config))
    notes = [*config.notes, *models.notes, *merge.notes, *(router.said() for router in routers)]
    notes += [note for store in models.stores.values() for note in store.notes()]
    for name, stage in merges.items():
        notes += [*config.stages[name].notes, *(f"stage {name}: {note}" for note in stage.notes)]
    copied = {name: size for name, size in merge.side_files.items() if name not in merge.written_files}
    notes += side_notes(str(merge.base.reference), merge.base.checkpoint.store.sizes(), copied)
    return Plan(
        config=config,
        options=options,
        method=merge.method,
        models=models.read_from(),
        base=merge.base,
        stores=models.stores,
        recipes=recipes,
        inner=inner,
        kernels=kernels,
        graph=graph,
        schedule=order,
        division=division,
        limit=limit,
        shards=shards,
        places=places,
        model_config=merge.model_config,
        side_files=_wanted(copied, options),
        written_files=merge.written_files,
        layers=merge.layers,
        notes=tuple(notes),
        digest=_digest(recipes, shards, _files_made(merge)),
        merges=stamped,
        kept=merge.kept,
        routers=routers,
    )


def _files_made(merge: Merge) -> Mapping[str, bytes]:
    """The files beside the weights that are not the base model's; a mixture's config.json says things that its tensors do not."""
    settings = {"config.json": json.dumps(merge.model_config, sort_keys=True).encode()} if merge.routers else {}
    return {**merge.written_files, **settings}


def _compile(config: LoadedConfig, models: Models, options: Options) -> Merge:
    if config.mixture is not None:
        return compile_mixture(config, config.mixture, models, options.seed, processor(options.budget))
    return compile_merge(config, models, options.seed)


def remaining(plan: Plan, numbers: Sequence[int]) -> tuple[nx.DiGraph[int], Schedule]:
    """The graph and schedule of some of a plan's recipes only: of what is not on the disk yet."""
    if len(numbers) == len(plan.recipes):
        return plan.graph, plan.schedule
    return _schedule(plan.recipes, plan.inner, plan.kernels, numbers, plan.options.budget, plan.division, plan.limit)


def _divide(recipes: Sequence[Recipe], kernels: Sequence[Kernel], budget: Budget) -> Division:
    """The budget's parts; bytes that are only moved need neither scratch nor statistics."""
    pairs = zip(recipes, kernels, strict=True)
    computed = [(recipe, kernel) for recipe, kernel in pairs if not copies_bytes(recipe, kernel)]
    work = sum(math.prod(recipe.shape) * len(recipe.inputs) * (kernel.passes + 1) for recipe, kernel in computed)
    compiled = work >= LEAST_COMPILED and available()
    return divide(budget, [kernel for _, kernel in computed], [_sizes(recipe) for recipe, _ in computed], compiled=compiled)


def _sizes(recipe: Recipe) -> list[int]:
    """Bytes of an element of each input, and of the output."""
    return [ITEM_SIZES[dtype] for dtype in (*(source.dtype for source in recipe.inputs), recipe.dtype)]


def _largest_alone(stages: Sequence[Sequence[Recipe]], budget: Budget) -> int:
    """The most memory that any of a config's stages would take if the ones before it were models on the disk."""
    results = {recipe.digest for stage in stages for recipe in stage}
    most = 0
    for stage in stages:
        recipes = alone(stage, results)
        inner = computed_inputs(recipes)
        every = (*recipes, *inner)
        kernels = tuple(kernel_of(recipe) for recipe in every)
        division = _divide(every, kernels, budget)
        _, order = _schedule(recipes, inner, kernels, range(len(recipes)), budget, division, budget.ram)
        most = max(most, division.fixed + order.arena)
    return most


def _schedule(
    recipes: Sequence[Recipe],
    inner: Sequence[Recipe],
    kernels: Sequence[Kernel],
    numbers: Sequence[int],
    budget: Budget,
    division: Division,
    limit: int,
) -> tuple[nx.DiGraph[int], Schedule]:
    number_of = {recipe.digest: len(recipes) + i for i, recipe in enumerate(inner)}

    def within(pool: int) -> tuple[nx.DiGraph[int], Schedule]:
        graph = build_graph([*recipes, *inner], kernels, numbers, max(pool, 0), number_of)
        return graph, schedule(graph, max(pool, 0), PIPELINE)

    if limit < budget.ram:
        with suppress(BudgetError):
            return within(limit - division.fixed)
    try:
        return within(division.pool)
    except BudgetError as error:
        needed = error.needed + division.fixed
        mebibytes = -(-needed // (1 << 20))
        raise BudgetError(
            f"--ram {format_size(budget.ram)} is too little for this merge: {error}, "
            f"plus {format_size(division.fixed)} for {budget.workers} workers; it needs at least --ram {mebibytes}MiB",
            mebibytes << 20,
        ) from None


def _wanted(side_files: Mapping[str, int], options: Options) -> dict[str, int]:
    """The side files to copy: all, or all but the tokenizer's."""

    def tokenizer(name: str) -> bool:
        return any(part in name.lower() for part in _TOKENIZER) or name.endswith((".model", ".tiktoken"))

    return {name: size for name, size in side_files.items() if options.copy_tokenizer or not tokenizer(name)}


def _digest(recipes: Sequence[Recipe], shards: Sequence[Shard], written: Mapping[str, bytes]) -> str:
    """Of everything that decides the shards' bytes and the files made anew; budget, workers and order are no part of it."""
    total = hashlib.sha256(json.dumps([PLAN_VERSION, [(shard.name, shard.size) for shard in shards]]).encode())
    for recipe in recipes:
        total.update(f"{recipe.name}\0{recipe.digest}\n".encode())
    for name, data in sorted(written.items()):
        total.update(f"{name}\0{hashlib.sha256(data).hexdigest()}\n".encode())
    return total.hexdigest()[:32]
