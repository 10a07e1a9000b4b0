"""What made each tensor, as plain data: kept in the manifest, so that a later plan can say why a tensor must be computed again.

Parts that many tensors have in common stand in tables, once:

    tables   files      [model, file name, identity] of every file that is read
             settings   method, version, dtype, parameters, seed, what computes: what the recipes of many tensors share
             computed   entries of inputs that are computed in memory
    entry    {"settings": number, "shape": [...], "inputs": [...]}, an input being
             [file, name] or [file, name, hash of the row map], or the number of a computed input
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ops.registry import methods
from .recipe import MappedRows, Recipe, Source, computed_inputs


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One input of a tensor: a file's tensor, or, if `computed` is set, another tensor that is computed in memory."""

    model: str
    file: str
    identity: str
    name: str
    rows: str
    computed: Ingredients | None


@dataclass(frozen=True, slots=True)
class Ingredients:
    """Everything that a recipe's digest is made of, field by field. `special`: row maps and adapters; `computed_by`: a GPU."""

    method: str
    version: int
    dtype: str
    cast: str | None
    shape: tuple[int, ...]
    models: tuple[Mapping[str, float], ...]
    shared: Mapping[str, float]
    base: int | None
    seed: str | None
    special: str | None
    inputs: tuple[Ingredient, ...]
    computed_by: str | None = None


_SETTINGS = ("method", "version", "dtype", "cast", "models", "shared", "base", "seed", "special", "computed_by")


def ingredients_of(recipe: Recipe) -> Ingredients:
    """What a recipe is made of. What several of its inputs are made of is one object."""
    made: dict[str, Ingredients] = {}
    for inner in computed_inputs([recipe]):
        made[inner.digest] = _ingredients(inner, made)
    return _ingredients(recipe, made)


def _ingredients(recipe: Recipe, made: Mapping[str, Ingredients]) -> Ingredients:
    """The same, of what its computed inputs are made of."""
    known, arguments = methods(), recipe.arguments
    seed, found, _ = arguments.stream.partition("\0")
    return Ingredients(
        method=recipe.method or (type(recipe.special).__name__ if recipe.special is not None else "copy"),
        version=known[recipe.method].version if recipe.method else 1,
        dtype=recipe.dtype,
        cast=recipe.cast,
        shape=tuple(recipe.shape),
        models=tuple(dict(sorted(model.items())) for model in arguments.models),
        shared=dict(sorted(arguments.shared.items())),
        base=arguments.base,
        seed=seed if found else None,
        special=_short(repr(recipe.special)) if recipe.special is not None else None,
        inputs=tuple(_ingredient(source, made) for source in recipe.inputs),
        computed_by=recipe.computed_by,
    )


def _ingredient(source: Source, made: Mapping[str, Ingredients]) -> Ingredient:
    if isinstance(source, Recipe):
        return Ingredient("", "", "", source.name, "", made[source.digest])
    if isinstance(source, MappedRows):
        file = source.tensor.file
        rows = _short(json.dumps([(run.first_new, run.first_old, run.count) for run in source.runs]))
        return Ingredient(file.model, file.name, file.identity, source.name, rows, None)
    return Ingredient(source.file.model, source.file.name, source.file.identity, source.name, "", None)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Tables:
    """Collects what entries have in common while they are encoded."""

    files: dict[tuple[str, str, str], int] = field(default_factory=dict)
    settings: dict[str, int] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)

    def entry(self, made_of: Ingredients) -> dict[str, Any]:
        """A tensor's entry; what it shares with others goes into the tables."""
        known: dict[int, dict[str, Any]] = {}  # entries of computed inputs, by what these are made of
        waiting = [made_of]
        while waiting:
            last = waiting[-1]
            inner = [item.computed for item in last.inputs if item.computed is not None and id(item.computed) not in known]
            if inner:
                waiting += inner
            else:
                known[id(waiting.pop())] = self._entry(last, known)
        return known[id(made_of)]

    def _entry(self, made_of: Ingredients, known: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        common = json.dumps({name: getattr(made_of, name) for name in _SETTINGS}, separators=(",", ":"))
        return {
            "settings": self.settings.setdefault(common, len(self.settings)),
            "shape": list(made_of.shape),
            "inputs": [self._input(ingredient, known) for ingredient in made_of.inputs],
        }

    def _input(self, ingredient: Ingredient, known: Mapping[int, Mapping[str, Any]]) -> int | list[int | str]:
        if ingredient.computed is not None:
            entry = json.dumps([ingredient.name, known[id(ingredient.computed)]], separators=(",", ":"))
            return self.computed.setdefault(entry, len(self.computed))
        file = (ingredient.model, ingredient.file, ingredient.identity)
        number = self.files.setdefault(file, len(self.files))
        return [number, ingredient.name, ingredient.rows] if ingredient.rows else [number, ingredient.name]

    def plain(self) -> dict[str, list[Any]]:
        """The tables, once all entries are made."""
        return {
            "files": [list(file) for file in self.files],
            "settings": [json.loads(text) for text in self.settings],
            "computed": [json.loads(text) for text in self.computed],
        }


def decode(tables: Mapping[str, Sequence[Any]], entry: Mapping[str, Any]) -> Ingredients:
    """The reverse of `Tables.entry`. Raises KeyError, IndexError, TypeError or ValueError for what no writer of ours wrote."""
    made: dict[int, tuple[str, Ingredients]] = {}
    for number in sorted(_computed(tables, entry)):  # each needs only what stands before it
        name, inner = tables["computed"][number]
        made[number] = name, _decoded(tables, inner, made)
    return _decoded(tables, entry, made)


def _computed(tables: Mapping[str, Sequence[Any]], entry: Mapping[str, Any]) -> set[int]:
    """The numbers of all computed inputs that an entry needs, also within others."""
    found: set[int] = set()
    waiting = [(len(tables["computed"]), entry)]
    while waiting:
        number, holder = waiting.pop()
        for item in (item for item in holder["inputs"] if isinstance(item, int)):
            if not 0 <= item < number:
                raise ValueError("a computed input that needs itself")
            if item not in found:
                found.add(item)
                waiting.append((item, tables["computed"][item][1]))
    return found


def _decoded(
    tables: Mapping[str, Sequence[Any]], entry: Mapping[str, Any], made: Mapping[int, tuple[str, Ingredients]]
) -> Ingredients:
    common = tables["settings"][entry["settings"]]

    def source(item: Any) -> Ingredient:
        if isinstance(item, int):
            name, inner = made[item]
            return Ingredient("", "", "", name, "", inner)
        model, file, identity = tables["files"][item[0]]
        return Ingredient(model, file, identity, item[1], item[2] if len(item) > 2 else "", None)

    return Ingredients(
        method=common["method"],
        version=common["version"],
        dtype=common["dtype"],
        cast=common["cast"],
        shape=tuple(entry["shape"]),
        models=tuple(dict(model) for model in common["models"]),
        shared=dict(common["shared"]),
        base=common["base"],
        seed=common["seed"],
        special=common["special"],
        inputs=tuple(source(item) for item in entry["inputs"]),
        computed_by=common.get("computed_by"),
    )
