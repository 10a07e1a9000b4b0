"""Whether a result's output head is its input embedding, and a config.json that says so.

A reader that is told `tie_word_embeddings: true` may drop a head that is there, and one that is told false makes up a head
that is not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from .catalog import Checkpoint, InputTensor
from .layout import is_input_embedding, is_output_embedding, main_settings
from .recipe import MappedRows, Recipe, Source

KEY = "tie_word_embeddings"


def says_tied(config: Mapping[str, Any]) -> bool | None:
    """Whether a config.json calls input and output embedding one, first at its top; None where it does not say."""
    said = (part[KEY] for part in main_settings(config) if isinstance(part.get(KEY), bool))
    return next(said, None)


def with_heads_said(
    config: Mapping[str, Any], base: Checkpoint, recipes: Iterable[Recipe]
) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """`config`, of the model `base`, as the head in the `recipes` has it, and a note where that was not what it said."""
    every = list(recipes)
    embeddings = [recipe for recipe in every if is_input_embedding(recipe.name)]
    shapes = {embedding.shape for embedding in embeddings}  # other tensors are called `output.weight` too
    heads = [recipe for recipe in every if is_output_embedding(recipe.name) and recipe.shape in shapes]
    own_shapes = {tensor.shape for name, tensor in base.tensors.items() if is_input_embedding(name)}
    had_head = any(is_output_embedding(name) and tensor.shape in own_shapes for name, tensor in base.tensors.items())
    if not embeddings:
        return config, ()
    if not heads:
        if not had_head or says_tied(config) is True:
            return config, ()
        return _saying(config, tied=True), (
            f"config.json says {KEY} true: what is merged has no output head of its own, but is tied to the input embedding",
        )
    own = next((head for head in heads if not any(_same(head, embedding) for embedding in embeddings)), None)
    said = [part[KEY] for part in main_settings(config) if isinstance(part.get(KEY), bool)]
    if own is None or not (any(said) or (not said and not had_head)):
        return config, ()
    return _saying(config, tied=False), (f"config.json says {KEY} false: '{own.name}' is not the same as the input embedding",)


def _saying(config: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """Said at the top, and in a language model's part if that says anything or nothing does: some classes take true."""
    new = copy.deepcopy(dict(config))
    silent = not any(KEY in part for part in main_settings(new))
    for part in main_settings(new):
        assert isinstance(part, dict)
        if part is new or silent or KEY in part:
            part[KEY] = tied
    return new


def _same(one: Source, other: Source) -> bool:
    """Whether two tensors are computed from the same bytes in the same way, under different names perhaps."""
    if isinstance(one, Recipe) and isinstance(other, Recipe):
        alike = (one.method, one.dtype, one.cast, one.arguments, one.special)
        if alike != (other.method, other.dtype, other.cast, other.arguments, other.special):
            return False
        return len(one.inputs) == len(other.inputs) and all(map(_same, one.inputs, other.inputs))
    if isinstance(one, MappedRows) and isinstance(other, MappedRows):
        return one.runs == other.runs and one.shape == other.shape and _same(one.tensor, other.tensor)
    if isinstance(one, InputTensor) and isinstance(other, InputTensor):
        return (one.file.identity, one.offset, one.dtype, one.shape) == (
            other.file.identity,
            other.offset,
            other.dtype,
            other.shape,
        )
    return False
