"""One config's merge: its method, the recipes of its output tensors, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import nearest
from ..ops.method import Method
from ..ops.registry import methods
from .alignment import Alignment
from .config import LoadedConfig
from .dtypes import ITEM_SIZES, MERGED, TO_CONFIG
from .embedding import RowMover
from .families import family_notes
from .left_out import count_prediction_layers, left_out
from .model_config import merged_config
from .models import Models
from .parameters import check_parameters
from .recipe import Recipe
from .recipe_maker import RecipeMaker
from .restacked import restacked
from .router import Router
from .side_files import all_side_files
from .sites import sites
from .sources import Model, Part, parts
from .tied import with_heads_said
from .tokenization import models_of_tokens, plan_tokenization


@dataclass(frozen=True, slots=True)
class Merge:
    """A compiled config. `side_files` are copied from the base model, `written_files` made anew, also in place of those.

    `parts` and `mover` are what the recipes were made from, for those who ask which of the config's keys decided what.
    `kept` counts the tensors of parts that not all models have, which one model gives.
    `routers` are made before the recipes that read their vectors.
    """

    method: Method
    base: Model
    recipes: tuple[Recipe, ...]
    model_config: Mapping[str, Any]
    side_files: Mapping[str, int]
    written_files: Mapping[str, bytes]
    layers: int
    notes: tuple[str, ...]
    kept: int = 0
    parts: tuple[Part, ...] = ()
    mover: RowMover | None = None
    routers: tuple[Router, ...] = ()


def compile_merge(config: LoadedConfig, models: Models, seed: int) -> Merge:
    """Raises ConfigError and CheckpointError for what cannot be merged."""
    known = methods()
    merge = config.merge
    method = known.get(merge.merge_method)
    if method is None:
        raise config.error(("merge_method",), f"there is no method '{merge.merge_method}'{nearest(merge.merge_method, known)}")
    notes = check_parameters(config, method, known)
    aligned = Alignment(config, models)
    compiled = parts(config, method, aligned.get)
    base = compiled[0].anchor.model
    used = [*(source.model for part in compiled for run in part.runs for source in run.sources), base]
    used += [aligned.get(reference, path) for reference, path in models_of_tokens(config)]
    tokens = plan_tokenization(config, list({model.reference: model for model in used}.values()), base)
    made = RecipeMaker(config, method, base.checkpoint.label, seed).make(sites(compiled, tokens.mover))
    names = [recipe.name for recipe in made.recipes]
    described = restacked(config, compiled, base, made.recipes)
    described, count_notes = count_prediction_layers(described, compiled, names)
    described, of_heads = with_heads_said(described, base.checkpoint, made.recipes)
    settings, said = tokens.settings(merged_config(described, _dtype(made.recipes)))
    return Merge(
        method=method,
        base=base,
        recipes=made.recipes,
        model_config=settings,
        side_files={name: size for name, size in all_side_files(base.checkpoint).items() if not tokens.replaces(name)},
        written_files=tokens.files,
        layers=_main(compiled, base).layers,
        notes=(
            *notes,
            *aligned.notes,
            *family_notes(used, base),
            *_stacks_left(config, compiled),
            *of_heads,
            *made.notes,
            *left_out(compiled, names),
            *count_notes,
            *said,
            *tokens.notes,
        ),
        kept=made.kept,
        parts=compiled,
        mover=tokens.mover,
    )


def _main(compiled: Sequence[Part], base: Model) -> Part:
    """The part with the base model's main stack."""
    main = base.layout.main
    return next((part for part in compiled if main and part.stack and part.stack.prefix == main.prefix), compiled[0])


def _stacks_left(config: LoadedConfig, compiled: Sequence[Part]) -> Iterator[str]:
    """A note on which of a model's stacks `slices` are, where there are several."""
    part = compiled[0]
    if config.merge.modules is None and part.sliced and part.stack is not None:
        stacks = part.runs[0].sources[0].model.layout.stacks
        others = ", ".join(f"'{stack.prefix}'" for stack in stacks if stack.prefix != part.stack.prefix)
        if others:
            yield f"slices are of the layers of '{part.stack.prefix}'; {others} stay whole: 'modules' can slice each"


def _dtype(recipes: Sequence[Recipe]) -> str | None:
    """The config name of the element type that most of the result has."""
    sizes: dict[str, int] = {}
    for recipe in (recipe for recipe in recipes if recipe.dtype in MERGED):
        sizes[recipe.dtype] = sizes.get(recipe.dtype, 0) + ITEM_SIZES[recipe.dtype] * recipe.arguments.size
    most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    return TO_CONFIG.get(most) if most else None
