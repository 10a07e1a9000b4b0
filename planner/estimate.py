"""How long a merge will take, from its bytes and elements. Rates are of a plain two-core machine; an estimate, not a promise."""

from __future__ import annotations

from .plan import Plan

START_UP = 3.0
"""Seconds to import torch and read headers."""

READ_RATE = 1.5e9
WRITE_RATE = 0.5e9
"""Bytes a second of a common solid-state disk."""

MAP_COST = 1.2e-9
STATISTIC_COST = 1.0e-9
"""Seconds one worker needs for an element of one input, in the map and in each pass of statistics."""


def estimate_seconds(plan: Plan) -> float:
    """Seconds of a run: reading, computing and writing overlap, so the slowest decides."""
    read = sum(plan.bytes_read().values()) / READ_RATE
    write = plan.bytes_written / WRITE_RATE
    work = 0.0
    for recipe, kernel in zip(plan.all_recipes, plan.kernels, strict=True):
        work += recipe.arguments.size * len(recipe.inputs) * (MAP_COST + STATISTIC_COST * kernel.passes)
    return START_UP + max(read, write, work / plan.options.budget.workers)
