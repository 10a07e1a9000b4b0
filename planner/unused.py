"""Which of a config's parameters change nothing: filters that are in no tensor's name, values that no tensor takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice

from ..ops.method import BaseRole, Method
from .config import LoadedConfig
from .document import Path
from .parameters import places
from .setting import Condition, Setting
from .sites import Site, Use
from .sources import Level

SHOWN = 20
"""Notes of this kind; more of them help nobody."""

_PATTERN = re.compile(r"[][*?^$|()\\+{}]+")
"""What a filter has only if it is meant as a pattern."""


class Unused:
    """Is shown a merge's tensors one by one, and knows in the end which conditions none of them took.

    It looks at conditions with a filter, and at a model's own values; a value for the whole merge that every tensor finds at its
    model is a default that may stand there. Names are kept only of settings with a condition that no tensor took so far.
    """

    def __init__(self, config: LoadedConfig, method: Method) -> None:
        self._config, self._method = config, method
        self._settings: dict[Path, Setting] = {}
        self._pending: dict[Path, set[int]] = {}
        self._names: dict[Path, dict[str, None]] = {}
        self._of_base: dict[Path, None] = {}
        for path, settings, at_source in places(config):
            for name, setting in settings.items():
                parameter = method.parameter(name)
                if parameter is None or parameter.inert or (at_source and parameter.scope == "global"):
                    continue
                key = (*path, name)
                self._settings[key], self._names[key] = setting, {}
                looked_at = {i for i, one in enumerate(setting.conditions) if one.filter or (at_source and i == 0)}
                if looked_at:
                    self._pending[key] = looked_at

    def see(self, site: Site, uses: Sequence[Use], *, taken: bool) -> None:
        """An output tensor that is made of `uses`, by the method (`taken`) or as a copy."""
        if not self._pending:
            return
        for parameter in self._method.parameters:
            if parameter.scope == "global":
                self._ask(parameter.name, site.run.levels, site.name, taken)
                continue
            for use in uses:
                apart = use.source.is_base and self._method.base in (BaseRole.REQUIRED, BaseRole.OPTIONAL)
                own = (*use.source.own.path, parameter.name)
                if apart and own in self._pending:
                    del self._pending[own]
                    self._of_base[own] = None
                self._ask(parameter.name, (use.source.own, *site.run.levels), use.tensor.name, taken and not apart)

    def _ask(self, parameter: str, levels: Iterable[Level], tensor: str, taken: bool) -> None:
        """The nearest level that has a value for a tensor gives it; those behind it know the tensor's name."""
        for level in levels:
            setting = level.settings.get(parameter)
            if setting is None:
                continue
            key = (*level.path, parameter)
            position = setting.decides(tensor)
            if pending := self._pending.get(key):
                self._names[key][tensor] = None
                if taken and position is not None:
                    pending.discard(position)
                    if not pending:
                        del self._pending[key]
            taken = taken and position is None

    def notes(self) -> tuple[str, ...]:
        """A line for each, with the place in the config."""
        found = list(islice(self._found(), SHOWN + 1))
        return (*found[:SHOWN], *(["there are more parameters that change nothing"] if len(found) > SHOWN else []))

    def _found(self) -> Iterator[str]:
        where = self._config.document.where
        for key in self._of_base:
            yield f"{where(key)}: has no effect, because {self._method.name} only compares with the base model"
        for key, pending in self._pending.items():
            setting, names = self._settings[key], self._names[key]
            for position in sorted(pending):
                condition = setting.conditions[position]
                at = (*key, position, "filter") if condition.filter else key
                yield f"{where(at)}: {_reason(key, setting, condition, position, names)}"


def _reason(key: Path, setting: Setting, condition: Condition, position: int, names: Mapping[str, None]) -> str:
    wanted = condition.filter
    if any(not earlier.filter for earlier in setting.conditions[:position]):
        return f"the condition for '{wanted}' is never reached, because one before it has no filter and holds for every tensor"
    if not wanted:
        return f"no tensor takes this {key[-1]}"
    if not any(wanted in name for name in names):
        return f"'{wanted}' is in no tensor's name, so the condition changes nothing{meant(wanted, names)}"
    if all(setting.decides(name) != position for name in names):
        return f"the condition for '{wanted}' is never reached, because those before it hold for the same tensors"
    return f"no tensor takes this {key[-1]}: those with '{wanted}' in their names have one of their own, or are copied"


def meant(wanted: str, names: Iterable[str]) -> str:
    """A clause that says what a filter that is in none of the names could have been."""
    every = list(names)
    if _PATTERN.search(wanted):
        says = "; a filter is a part of a name, not a pattern"
        counts = {piece: sum(piece in name for name in every) for piece in _PATTERN.split(wanted) if re.search("[a-z]", piece)}
        fitting = [piece for piece, count in counts.items() if count]
        best = min(fitting, key=lambda piece: counts[piece], default=None)
        return f"{says}: '{best}' alone holds for {counts[best]} tensors" if best else says
    steps = {step for name in every for step in name.split(".")}
    words = {word for step in steps if not step.isdecimal() for word in (step, *step.split("_")) if len(word) > 1}
    close = ".".join(step if step in steps else _closest(step, words) for step in wanted.split("."))
    if close != wanted and any(close in name for name in every):
        return f"; did you mean '{close}'?"
    example = next((name for name in every if any(step.isdecimal() for step in name.split("."))), every[0] if every else None)
    return f"; names are such as '{example}'" if example else ""


def _closest(step: str, words: Iterable[str]) -> str:
    return next(iter(get_close_matches(step.lower(), sorted(words), n=1, cutoff=0.6)), step)
