"""Checks every parameter that a config names against the method's declaration, before any tensor is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..errors import nearest
from ..ops.method import Method, Parameter
from .config import LoadedConfig, Slice
from .document import Path
from .setting import Setting


def check_parameters(config: LoadedConfig, method: Method, methods: Mapping[str, Method]) -> list[str]:
    """Notes on parameters that change nothing. Raises ConfigError for unknown names and values out of range.

    A lenient config has notes on names that no method has, and on parameters of the merge at a single model.
    """
    notes: dict[str, None] = {}
    for path, settings, at_source in places(config):
        for name, setting in settings.items():
            parameter = method.parameter(name)
            where = (*path, name)
            if parameter is None:
                owners = [other.name for other in methods.values() if other.parameter(name)]
                if not owners:
                    close = nearest(name, [p.name for p in method.parameters])
                    notes.setdefault(config.odd(where, f"{method.name} has no parameter '{name}'{close}", "it has no effect"))
                else:
                    notes.setdefault(f"the parameter '{name}' has no effect on {method.name} (it is one of {', '.join(owners)})")
            elif parameter.inert:
                notes.setdefault(f"the parameter '{name}' has no effect: {parameter.inert}")
            elif at_source and parameter.scope == "global":
                problem = f"'{name}' belongs to the whole merge, not to one model: move it to 'parameters' at the top"
                notes.setdefault(config.odd(where, problem, "it has no effect"))
            else:
                notes.update(dict.fromkeys(_check_values(config, where, parameter, setting)))
    return list(notes)


def _check_values(config: LoadedConfig, path: Path, parameter: Parameter, setting: Setting) -> Iterator[str]:
    """Notes on values of another kind, in a lenient config. Raises ConfigError."""
    for value in setting.values():
        if parameter.kind == "number" and isinstance(value, bool):
            problem = f"'{parameter.name}' is a number, not {str(value).lower()}"
            yield config.odd(path, problem, f"it counts as {int(value)}")
        if parameter.kind == "boolean" and value not in (True, False, 0, 1):
            yield config.odd(path, f"'{parameter.name}' is true or false, not {value}", "it counts as true")
        if parameter.low is not None and value < parameter.low:
            raise config.error(path, f"'{parameter.name}' is at least {parameter.low:g}, not {value}")
        if parameter.high is not None and value > parameter.high:
            raise config.error(path, f"'{parameter.name}' is at most {parameter.high:g}, not {value}")


def places(config: LoadedConfig) -> Iterator[tuple[Path, Mapping[str, Setting], bool]]:
    """Every map of parameters: its path, itself, and whether it belongs to one source."""
    merge = config.merge
    yield ("parameters",), merge.parameters or {}, False
    for i, entry in enumerate(merge.models or []):
        yield ("models", i, "parameters"), entry.parameters or {}, True
    yield from _slices((), merge.slices)
    for name, module in (merge.modules or {}).items():
        yield ("modules", name, "parameters"), module.parameters or {}, False
        for i, entry in enumerate(module.models or []):
            yield ("modules", name, "models", i, "parameters"), entry.parameters or {}, True
        yield from _slices(("modules", name), module.slices)


def _slices(path: Path, slices: list[Slice] | None) -> Iterator[tuple[Path, Mapping[str, Setting], bool]]:
    for i, piece in enumerate(slices or []):
        at: Path = (*path, "slices", i)
        yield (*at, "parameters"), piece.parameters or {}, False
        for j, source in enumerate(piece.sources):
            yield (*at, "sources", j, "parameters"), source.parameters or {}, True
