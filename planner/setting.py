"""Parameter values: numbers, gradients over layers, and lists of conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .document import UnknownKey

LARGEST = 1 << 62
"""Whole numbers beyond this are no parameters."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A number, or numbers spread evenly over a slice's layers."""

    values: tuple[float | bool, ...]

    def at(self, t: float) -> float | bool:
        """The value at depth `t` in [0, 1]: linear between neighbours; truth values step."""
        if len(self.values) == 1:
            return self.values[0]
        position = t * (len(self.values) - 1)
        index = min(max(math.floor(position), 0), len(self.values) - 1)
        left, right = self.values[index], self.values[min(index + 1, len(self.values) - 1)]
        if isinstance(left, bool) or isinstance(right, bool):
            return left
        part = position - index
        return (1 - part) * left + part * right


@dataclass(frozen=True, slots=True)
class Condition:
    """A gradient for the tensors whose name holds `filter` (None: for all)."""

    gradient: Gradient
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """Conditions, tried in order."""

    conditions: tuple[Condition, ...]

    def decides(self, name: str) -> int | None:
        """The position of the condition that applies to tensor `name`, or None where none does."""
        return next((i for i, c in enumerate(self.conditions) if c.filter is None or c.filter in name), None)

    def at(self, name: str, t: float) -> float | bool | None:
        """The value for tensor `name` at depth `t`, or None where no condition applies."""
        position = self.decides(name)
        return None if position is None else self.conditions[position].gradient.at(t)

    def values(self) -> Iterable[float | bool]:
        """Every number that is written down."""
        return (value for condition in self.conditions for value in condition.gradient.values)


def parse_setting(value: Any) -> Setting:
    """A number or boolean, a list of them, or a list of `{filter, value}`. Raises ValueError with a message for the user."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return Setting(tuple(_condition(item, i) for i, item in enumerate(value)))
    return Setting((Condition(_gradient(value)),))


def _condition(item: Any, position: int) -> Condition:
    says = "each item of a list of conditions is {filter: text, value: number or list}, the filter optional"
    if not isinstance(item, dict) or "value" not in item:
        raise ValueError(says)
    if unknown := [key for key in item if key not in ("filter", "value")]:
        raise UnknownKey(says, [(position, key) for key in unknown])
    wanted = item.get("filter")
    if wanted is not None and not isinstance(wanted, str):
        raise ValueError(f"a filter is a part of a tensor's name, not {wanted!r}")
    return Condition(_gradient(item["value"]), None if wanted in (None, "*") else wanted)


def _gradient(value: Any) -> Gradient:
    values = [_number(item) for item in value] if isinstance(value, list) else [_number(value)]
    if not values:
        raise ValueError("an empty list has no values")
    return Gradient(tuple(values))


def _number(value: Any) -> float | bool:
    if isinstance(value, str):  # YAML 1.1 reads 1e-5, without a point, as text
        with suppress(ValueError):
            value = float(value)
    if not isinstance(value, int | float):
        raise ValueError(f"expected a number, a list of numbers or a list of conditions, not {value!r}")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError("the number is too large")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value
