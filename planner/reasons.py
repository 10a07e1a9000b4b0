"""Why a tensor must be computed again: what made it last time, compared field by field with what would make it now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ops.lib.rows import RowLayout
from .ingredients import Ingredient, Ingredients

_TEXTS = {
    "new": "not in the earlier result",
    "damaged": "damaged or missing in the earlier result",
    "method": "the method changed",
    "version": "{what}'s arithmetic is another than in the version of weft that made it",
    "dtype": "dtype changed",
    "shape": "the shape changed",
    "seed": "the seed changed",
    "base": "another model is the base",
    "models": "other models are merged",
    "source": "it comes from other tensors",
    "input": "{what} changed",
    "parameter": "{what} changed",
    "tokens": "token rows move differently",
    "adapter": "the adapter's change is another",
    "device": "what computes changed",
    "recipe": "the recipe changed",
}
_VALUES = {"method", "dtype", "seed", "parameter", "device"}
"""Kinds whose values mean something to a reader."""


ROWS = RowLayout.__name__
_CPU = "the CPU"


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is not as it was. `kind` is a key of the table in docs/plan-json.md, `what` a parameter, file or method."""

    kind: str
    what: str = ""
    before: Any = None
    now: Any = None


@dataclass(frozen=True, slots=True)
class Change:
    """A reason and all tensors it holds for. `before` and `now` are None where they are not the same for all of them."""

    kind: str
    what: str
    before: Any
    now: Any
    tensors: tuple[str, ...]

    def text(self, total: int) -> str:
        """One line; `total` tensors there are in all."""
        values = f": {_value(self.before)} → {_value(self.now)}" if self.kind in _VALUES and self._known() else ""
        return f"{_TEXTS[self.kind].format(what=self.what)} for {where(self.tensors, total)}{values}"

    def _known(self) -> bool:
        return self.before is not None or self.now is not None


def differences(before: Ingredients | None, now: Ingredients) -> tuple[Reason, ...]:
    """Why `now` does not make what `before` made; at least one reason. None: there was no such tensor."""
    if before is None:
        return (Reason("new"),)
    return tuple(dict.fromkeys(_all_differences(before, now))) or (Reason("recipe"),)


def _all_differences(before: Ingredients, now: Ingredients) -> Iterator[Reason]:
    """Those of the tensor and of all that is computed for it, each pair once."""
    met: set[tuple[int, int]] = set()
    waiting = [_differences(before, now)]
    while waiting:
        found = next(waiting[-1], None)
        if found is None:
            waiting.pop()
        elif isinstance(found, Reason):
            yield found
        elif (pair := (id(found[0]), id(found[1]))) not in met:
            met.add(pair)
            waiting.append(_differences(*found))


_Pair = tuple[Ingredients, Ingredients]
"""What two computed inputs are made of, before and now."""


def _differences(before: Ingredients, now: Ingredients) -> Iterator[Reason | _Pair]:
    if before.method != now.method:
        yield Reason("method", "", before.method, now.method)
        yield from _inputs(before, now)
        return
    if before.version != now.version:
        yield Reason("version", now.method, before.version, now.version)
    if (before.dtype, before.cast) != (now.dtype, now.cast):
        yield Reason("dtype", "", before.cast or before.dtype, now.cast or now.dtype)
    if before.shape != now.shape:
        yield Reason("shape", "", before.shape, now.shape)
    if before.seed != now.seed:
        yield Reason("seed", "", before.seed, now.seed)
    if before.computed_by != now.computed_by:
        yield Reason("device", "", before.computed_by or _CPU, now.computed_by or _CPU)
    if before.special != now.special:
        yield Reason("tokens" if now.method == ROWS else "adapter")
    if len(before.inputs) == len(now.inputs):
        if before.base != now.base:
            yield Reason("base", "", before.base, now.base)
        for old, new in zip(before.models, now.models, strict=False):
            yield from _parameters(old, new)
    yield from _parameters(before.shared, now.shared)
    yield from _inputs(before, now)


def _parameters(before: Mapping[str, float], now: Mapping[str, float]) -> Iterator[Reason]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield Reason("parameter", name, before.get(name), now.get(name))


def _inputs(before: Ingredients, now: Ingredients) -> Iterator[Reason | _Pair]:
    if len(before.inputs) != len(now.inputs):
        yield Reason("tokens") if now.method == ROWS else Reason("models", "", _models(before.inputs), _models(now.inputs))
        return
    for old, new in zip(before.inputs, now.inputs, strict=True):
        if (old.computed is None) != (new.computed is None):
            moved = [side.computed.method for side in (old, new) if side.computed is not None] == [ROWS]
            yield Reason("tokens") if moved else Reason("models", "", _models(before.inputs), _models(now.inputs))
        elif old.computed is not None and new.computed is not None:
            yield old.computed, new.computed
        elif old.identity != new.identity and old.model != new.model:
            yield Reason("models", "", _models(before.inputs), _models(now.inputs))
        elif old.identity != new.identity and (old.file == new.file or old.name == new.name):
            yield Reason("input", f"{new.model}/{new.file}", old.identity, new.identity)
        elif old.name != new.name:
            yield Reason("source", "", old.name, new.name)
        elif old.rows != new.rows:
            yield Reason("tokens")


def _models(inputs: Sequence[Ingredient]) -> tuple[str, ...]:
    return tuple(item.model or item.name for item in inputs)


def summarise(reasons: Mapping[str, Sequence[Reason]]) -> tuple[Change, ...]:
    """Reasons by tensor, turned round: what changed, and for which tensors; what holds for most comes first."""
    grouped: dict[tuple[str, str], list[tuple[str, Reason]]] = {}
    for name, found in reasons.items():
        for reason in found:
            grouped.setdefault((reason.kind, reason.what), []).append((name, reason))
    changes = []
    for (kind, what), items in grouped.items():
        first = items[0][1]
        same = all((reason.before, reason.now) == (first.before, first.now) for _, reason in items)
        names = tuple(dict.fromkeys(name for name, _ in items))
        changes.append(Change(kind, what, first.before if same else None, first.now if same else None, names))
    return tuple(sorted(changes, key=lambda change: (-len(change.tensors), change.kind, change.what)))


def where(names: Sequence[str], total: int) -> str:
    """Which tensors, in few words: "mlp (64 tensors)"."""
    count = f"{len(names)} tensor{'s' if len(names) != 1 else ''}"
    if len(names) == total:
        return f"all {count}"
    modules = list(dict.fromkeys(_module(name) for name in names))
    heads = list(dict.fromkeys(module.split(".")[0] for module in modules))
    for words in (heads if len(modules) > 1 else modules, modules):
        if len(words) <= 3 and "model" not in words:
            return f"{', '.join(words)} ({count})"
    return count


def _module(name: str) -> str:
    """A tensor's name within its layer, without the last word: "mlp.down_proj"."""
    inside = re.sub(r"^.*\.\d+\.", "", name)
    return inside.rpartition(".")[0] or inside


def _value(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
