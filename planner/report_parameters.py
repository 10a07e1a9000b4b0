"""What a config's parameters come to: a value for each layer and kind of tensor, and for each model where models differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..ops.method import BaseRole
from ..ops.registry import methods
from .plan import Plan
from .recipe import MappedRows, Recipe, Source
from .report_rows import Rows

DIGITS = 9
"""Significant digits: enough for any value that a person writes, without the noise of float arithmetic."""

Values = tuple[float | None, ...]


@dataclass(slots=True)
class _Seen:
    """A parameter's values: by kind of tensor and layer, and of single tensors outside the layers."""

    inside: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    outside: dict[str, float] = field(default_factory=dict)

    def values(self) -> set[float]:
        return {*self.outside.values(), *(value for layers in self.inside.values() for value in layers.values())}


def parameter_values(plan: Plan, rows: Rows) -> list[dict[str, Any]]:
    """One map a parameter: `merge` (a stage's name; empty for the result), `method`, `name`, `boolean` and `models`.

    Each of `models` is {`model`: its name, or null for a parameter of the whole merge; `constant`: the value, where it is the
    same for all tensors, else null; `series`: [{`stack`, `label`, `kinds`: tensors' names within a layer; `values`: one a layer,
    null where a layer has no such tensor}]; `outside`: [[tensor, value]] outside the layers}. Kinds of equal values are one
    series.
    """
    found: dict[tuple[str, str, str], dict[str | None, _Seen]] = {}
    for merge, recipe in _merged(plan):
        assert recipe.method is not None
        for model, name, value in settings(recipe):
            seen = found.setdefault((merge, recipe.method, name), {}).setdefault(model, _Seen())
            place = rows.place(recipe.name)
            if place.stack is None:
                seen.outside[recipe.name] = value
            else:
                seen.inside.setdefault((place.stack.prefix, place.rest), {})[place.layer] = value
    declared = methods()
    return [
        {
            "merge": merge,
            "method": method,
            "name": name,
            "boolean": method in declared and (p := declared[method].parameter(name)) is not None and p.kind == "boolean",
            "models": [_model(model, seen) for model, seen in models.items()],
        }
        for (merge, method, name), models in found.items()
    ]


def _merged(plan: Plan) -> Iterator[tuple[str, Recipe]]:
    """Every recipe that a method makes, with the stage it belongs to: those of the result first."""
    merge_of: dict[str, str] = {}
    for recipe in plan.recipes:
        if recipe.method:
            yield "", recipe
    for recipe in (*plan.recipes, *reversed(plan.inner)):  # what uses an input comes before it
        for position, source in enumerate(recipe.inputs):
            if isinstance(source, Recipe) and source.digest not in merge_of:
                own = source.special is None  # an adapter or moved rows belong to the merge that uses them
                named = own and position < len(recipe.sources)
                merge_of[source.digest] = recipe.sources[position] if named else merge_of.get(recipe.digest, "")
                if own and source.method:
                    yield merge_of[source.digest], source


def settings(recipe: Recipe) -> Iterator[tuple[str | None, str, float]]:
    """A recipe's parameters: (model or None, name, value), without those of a base that the method compares with only."""
    for name, value in recipe.arguments.shared.items():
        yield None, name, _rounded(value)
    method = methods().get(recipe.method or "")
    apart = recipe.arguments.base if method and method.base in (BaseRole.REQUIRED, BaseRole.OPTIONAL) else None
    labels = _distinct(recipe.sources or map(_origin, recipe.inputs))
    for i, (label, values) in enumerate(zip(labels, recipe.arguments.models, strict=False)):
        if i != apart:
            for name, value in values.items():
                yield label, name, _rounded(value)


def _origin(source: Source) -> str:
    """The model that an input comes from, where its recipe does not say how the config names it."""
    while isinstance(source, Recipe):
        source = source.inputs[0]
    return (source.tensor if isinstance(source, MappedRows) else source).file.model


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    """The names; where one model stands several times in a merge, with the number of its turn."""
    turns: dict[str, int] = {}
    found = []
    for name in names:
        turns[name] = turns.get(name, 0) + 1
        found.append(name if turns[name] == 1 else f"{name} ({turns[name]})")
    return tuple(found)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _model(model: str | None, seen: _Seen) -> dict[str, Any]:
    values = seen.values()
    if len(values) == 1:
        return {"model": model, "constant": values.pop(), "series": [], "outside": []}
    return {"model": model, "constant": None, "series": _series(seen.inside), "outside": [list(x) for x in seen.outside.items()]}


def _series(inside: Mapping[tuple[str, str], Mapping[int, float]]) -> list[dict[str, Any]]:
    depth: dict[str, int] = {}
    for (stack, _), layers in inside.items():
        depth[stack] = max(depth.get(stack, 0), max(layers) + 1)
    groups: dict[tuple[str, Values], list[str]] = {}
    for (stack, kind), layers in inside.items():
        values = tuple(layers.get(layer) for layer in range(depth[stack]))
        groups.setdefault((stack, values), []).append(kind)
    parts = Counter((stack, _part(kind)) for stack, kind in inside)
    return [
        {"stack": stack, "label": _label(stack, kinds, parts), "kinds": kinds, "values": list(values)}
        for (stack, values), kinds in groups.items()
    ]


def _label(stack: str, kinds: list[str], parts: Mapping[tuple[str, str], int]) -> str:
    """Kinds in short: a part of the layer where all of its tensors are meant (`parts` has their number), else their names."""
    own = Counter(_part(kind) for kind in kinds)
    whole = {part for part, count in own.items() if count == parts[stack, part]}
    return ", ".join(dict.fromkeys(_part(kind) if _part(kind) in whole else kind.removesuffix(".weight") for kind in kinds))


def _part(kind: str) -> str:
    """`self_attn` of `self_attn.q_proj.weight`."""
    return kind.partition(".")[0]
