"""Which line of a config decided each parameter of an output tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..ops.method import Method, Parameter
from .arguments import declared, taking_part
from .config import LoadedConfig
from .document import Path, dotted
from .sites import Site
from .sources import Level

From = Literal["config", "default", "not set"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A parameter's value and what decided it: `key` at `line` of the config, for tensors whose names hold `filter` (None: all).

    `gradient` are the numbers of which the value is the one at the tensor's depth, if there are several.
    """

    parameter: str
    value: float | None
    decided_by: From
    line: int | None = None
    key: str | None = None
    filter: str | None = None
    gradient: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Origins:
    """Of one output tensor: its depth t, the parameters of each input in order, and those of the whole."""

    t: float
    inputs: tuple[tuple[Origin, ...], ...]
    shared: tuple[Origin, ...]


def origins(config: LoadedConfig, method: Method, site: Site) -> Origins:
    """What decided the parameters of a site's recipe."""
    inputs = tuple(
        tuple(
            origin(config, parameter, (use.source.own, *site.run.levels), use.tensor.name, site.depth)
            for parameter in declared(method, "model")
        )
        for use in taking_part(method, site)
    )
    shared = tuple(origin(config, parameter, site.run.levels, site.name, site.depth) for parameter in declared(method, "global"))
    return Origins(site.depth, inputs, shared)


def origin(config: LoadedConfig, parameter: Parameter, levels: Iterable[Level], tensor: str, t: float) -> Origin:
    """The nearest level that says something about `tensor` decides; else the default does."""
    for level in levels:
        setting = level.settings.get(parameter.name)
        position = setting.decides(tensor) if setting is not None else None
        if setting is None or position is None:
            continue
        condition = setting.conditions[position]
        path = _path(config, (*level.path, parameter.name), position)
        values = condition.gradient.values
        return Origin(
            parameter.name,
            float(condition.gradient.at(t)),
            "config",
            config.document.line(path),
            dotted(path),
            condition.filter,
            tuple(float(value) for value in values) if len(values) > 1 else (),
        )
    default = parameter.default
    return Origin(parameter.name, None, "not set") if default is None else Origin(parameter.name, float(default), "default")


def _path(config: LoadedConfig, path: Path, position: int) -> Path:
    """Where the condition stands that decided; one that is not written as a condition stands at the parameter."""
    value = (*path, position, "value")
    return value if value in config.document.lines else path
