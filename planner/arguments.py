"""The parameters of one output tensor, each evaluated to a number: what the nearest setting says, or the default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..errors import CheckpointError, ConfigError
from ..ops.method import Arguments, BaseRole, Method, Parameter
from .config import LoadedConfig
from .document import Path
from .sites import Site, Use
from .sources import Level, Run, has_required


def declared(method: Method, scope: str) -> Iterator[Parameter]:
    """The parameters that a method has of each model, or of the merge ("global"), without those that do nothing."""
    return (parameter for parameter in method.parameters if parameter.scope == scope and not parameter.inert)


def taking_part(method: Method, site: Site) -> Sequence[Use]:
    """The sources whose tensors are merged."""
    return [use for use in site.uses if not _only_lends_files(method, use, site.run)] or site.uses


def _only_lends_files(method: Method, use: Use, run: Run) -> bool:
    """A base model that has none of the parameters its method asks of a model gives config and tokenizer, no weights."""
    if method.base is not BaseRole.ORDINARY or not use.source.is_base:
        return False
    return not has_required(method, (use.source.own, *run.levels))


def evaluate(config: LoadedConfig, method: Method, seed: int, site: Site, uses: Sequence[Use]) -> Arguments:
    """A site's arguments, where `uses` take part. Raises ConfigError where nothing sets a parameter that must be set."""
    name, run, depth = site.name, site.run, site.depth
    per_model = []
    for use in uses:
        values = {}
        for parameter in declared(method, "model"):
            value = _value(parameter, (use.source.own, *run.levels), use.tensor.name, depth)
            if value is not None:
                values[parameter.name] = float(value)
            elif parameter.required and not (use.source.is_base and method.base in (BaseRole.REQUIRED, BaseRole.OPTIONAL)):
                raise _missing(config, method, parameter, use.source.path, name)
        per_model.append(values)
    shared = {}
    for parameter in declared(method, "global"):
        value = _value(parameter, run.levels, name, depth)
        if value is None and parameter.required:
            raise _missing(config, method, parameter, ("parameters",), name)
        if value is not None:
            shared[parameter.name] = float(bool(value) if parameter.kind == "boolean" else value)
    base = next((i for i, use in enumerate(uses) if use.source.is_base), None)
    if base is None and any(source.is_base for source in run.sources) and method.base is not BaseRole.ORDINARY:
        raise CheckpointError(f"tensor '{name}' is missing from the base model, and {method.name} needs it there")
    stream = f"{seed}\0{name}" if method.random else ""
    return Arguments(uses[0].tensor.shape, tuple(per_model), shared, base, stream)


def _value(parameter: Parameter, levels: Iterable[Level], tensor: str, depth: float) -> float | bool | None:
    """The nearest level's value for a tensor; a level whose conditions all fail falls through to the next, and to the default."""
    for level in levels:
        setting = level.settings.get(parameter.name)
        value = setting.at(tensor, depth) if setting is not None else None
        if value is not None:
            return value
    return parameter.default


def _missing(config: LoadedConfig, method: Method, parameter: Parameter, path: Path, name: str) -> ConfigError:
    where = "of this model" if parameter.scope == "model" else "of the merge"
    return config.error(
        path,
        f"{method.name} needs the parameter '{parameter.name}' {where} ({parameter.help}), "
        f"and nothing sets it for tensor '{name}'",
    )
