"""What a run would find done in its output folder, without changing anything there that a run relies on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..planner.plan import Plan
from .reuse import outlook, state_of


@dataclass(frozen=True, slots=True)
class Prospect:
    """What an output folder is to a plan (None: none is named), and the recipes whose tensors it has already."""

    state: str | None = None
    done: frozenset[int] = frozenset()


def prospect(plan: Plan, out: Path | None) -> Prospect:
    """Look at an output folder as a run would."""
    if out is None:
        return Prospect()
    found = outlook(plan, out)
    return Prospect(state_of(plan, out), found.numbers if found is not None else frozenset())
