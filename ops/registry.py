"""The methods there are: every module of this package that has a `METHODS` tuple adds to them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from .declare import Method


@cache
def methods() -> Mapping[str, Method]:
    """All methods by name, in alphabetical order."""
    package = importlib.import_module(__package__ or "weft.ops")
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(package.__path__):
        declared: tuple[Method, ...] = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), "METHODS", ())
        found.update({method.name: method for method in declared})
    return MappingProxyType(dict(sorted(found.items())))
