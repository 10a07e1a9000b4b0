"""The rows of a report: the result's layers in order, with what stands before and after them, and which tensor is in which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .layout import Place, find_layout
from .plan import Plan


@dataclass(frozen=True, slots=True)
class Row:
    """A layer of a stack, or with `layer` None the tensors that stand outside all layers. `prefix` begins its tensors' names."""

    label: str
    stack: str
    layer: int | None

    @property
    def prefix(self) -> str:
        """What all names of the row's tensors begin with."""
        if self.layer is None:
            return ""
        return f"{self.stack}.{self.layer}." if self.stack else f"{self.layer}."


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows in the order of the model, the row of each output tensor, and where each stands."""

    rows: tuple[Row, ...]
    of: tuple[int, ...]
    places: Mapping[str, Place]

    def place(self, name: str) -> Place:
        """Where a tensor of any model or stage stands, by the result's stacks: layers beyond the result's are still layers."""
        found = self.places.get(name)
        if found is not None:
            return found
        for stack in {place.stack for place in self.places.values() if place.stack}:
            head = f"{stack.prefix}." if stack.prefix else ""
            number, _, rest = name.removeprefix(head).partition(".")
            if name.startswith(head) and number.isdigit() and rest:
                return Place(name, stack, int(number), rest)
        return Place(name)


def find_rows(plan: Plan) -> Rows:
    """Sort the result's tensors into rows."""
    names = [recipe.name for recipe in plan.recipes]
    places = find_layout("the result", plan.model_config, names).places
    before, after = Row("before the layers", "", None), Row("after the layers", "", None)
    own: dict[str, Row] = {}
    layers: dict[tuple[str, int], Row] = {}
    for name in names:
        place = places[name]
        if place.stack is None:
            own[name] = before if place.before else after
            continue
        key = (place.stack.prefix, place.layer)
        own[name] = layers.setdefault(key, Row(f"layer {place.layer}", *key))
    stacks = list(dict.fromkeys(stack for stack, _ in layers))
    if len(stacks) > 1:
        layers = {key: Row(f"{key[0]} {key[1]}", *key) for key in layers}
    inside = sorted(layers, key=lambda key: (stacks.index(key[0]), key[1]))
    used = set(own.values())
    rows = [*([before] if before in used else []), *(layers[key] for key in inside), *([after] if after in used else [])]
    number = {(row.stack, row.layer, row.label if row.layer is None else ""): i for i, row in enumerate(rows)}
    of = tuple(number[row.stack, row.layer, row.label if row.layer is None else ""] for row in (own[name] for name in names))
    return Rows(tuple(rows), of, places)
