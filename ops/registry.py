"""The methods there are.

Every `Method` at the top level of a module in `methods/` is one, alone or in a tuple called METHODS, and so is what any installed
package names by an entry point in the group `weft.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from ..errors import InputError
from .method import Method

GROUP = "weft.methods"


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, in alphabetical order. Raises InputError for an entry point that brings no new method."""
    found = {method.name: method for method in _own()}
    for point, method in _foreign():
        if method.name in found:
            raise InputError(
                f"{_where(point)} brings a method '{method.name}', which there is already: uninstall it, or rename its"
            )
        found[method.name] = method
    return MappingProxyType(dict(sorted(found.items())))


def _own() -> Iterator[Method]:
    package = importlib.import_module(f"{__package__}.methods")
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        yield from (value for value in vars(module).values() if isinstance(value, Method))
        yield from getattr(module, "METHODS", ())


def _foreign() -> Iterator[tuple[EntryPoint, Method]]:
    """An entry point names a Method, or a tuple of them."""
    for point in entry_points(group=GROUP):
        try:
            loaded = point.load()
        except Exception as error:  # whatever a package raises when it is imported
            raise InputError(f"{_where(point)} cannot be loaded: {type(error).__name__}: {error}") from error
        for method in loaded if isinstance(loaded, tuple) else (loaded,):
            if not isinstance(method, Method):
                raise InputError(f"{_where(point)} is of type {type(method).__name__}, not weft.ops.method.Method")
            yield point, method


def _where(point: EntryPoint) -> str:
    """An entry point in words, with the package that brings it."""
    package = f" of the package {point.dist.name}" if point.dist else ""
    return f"the entry point {point.name} = '{point.value}' in {GROUP}{package}"
