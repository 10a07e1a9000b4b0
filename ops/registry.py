"""The methods there are.

Every module of this package that has a `METHODS` tuple adds to them, and so does any installed package with an entry point in the
group `weft.methods`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType

from .declare import Method

GROUP = "weft.methods"


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, in alphabetical order. Raises TypeError or ValueError for an entry point that is no new method."""
    found = {method.name: method for method in _own()}
    for method in _foreign():
        if method.name in found:
            raise ValueError(f"an entry point of {GROUP} brings a method '{method.name}', which there is already")
        found[method.name] = method
    return MappingProxyType(dict(sorted(found.items())))


def _own() -> Iterator[Method]:
    package = importlib.import_module(__package__ or "weft.ops")
    for module in pkgutil.iter_modules(package.__path__):
        yield from getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "METHODS", ())


def _foreign() -> Iterator[Method]:
    """An entry point names a Method, or a tuple of them."""
    for point in entry_points(group=GROUP):
        loaded = point.load()
        for method in loaded if isinstance(loaded, tuple) else (loaded,):
            if not isinstance(method, Method):
                raise TypeError(
                    f"the entry point '{point.name}' of {GROUP} is {type(method).__name__}, not weft.ops.declare.Method"
                )
            yield method
