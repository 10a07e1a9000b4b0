"""weft: merge language-model checkpoints through a per-tensor task graph, in the memory you allow.

`weft.plan`, `weft.run` and `weft.merge` are the Python interface (see `weft.api`); they are imported when they are used, so that
`import weft` and `weft --help` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import merge, plan, run
    from .engine.events import Summary
    from .planner.plan import Plan

__version__ = "0.1.0"
__all__ = ["Plan", "Summary", "__version__", "merge", "plan", "run"]

_HOMES = {"merge": "api", "plan": "api", "run": "api", "Summary": "engine.events", "Plan": "planner.plan"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        from .errors import check_platform

        check_platform()
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
