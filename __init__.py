"""weft: merge language-model checkpoints through a per-tensor task graph, in the memory you allow.

The functions are the Python interface (see `weft.api`); they are imported when they are used, so that `import weft` and
`weft --help` cost nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import diff, explain, inspect, merge, plan, report, run, status, verify
    from .engine.events import Summary
    from .planner.plan import Plan

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("plan", "run", "merge", "explain", "report", "inspect", "diff", "verify", "status"), "api"),
    "Plan": "planner.plan",
    "Summary": "engine.events",
}

__all__ = [
    "Plan",
    "Summary",
    "__version__",
    "diff",
    "explain",
    "inspect",
    "merge",
    "plan",
    "report",
    "run",
    "status",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        from .errors import check_platform

        check_platform()
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "errors"]
