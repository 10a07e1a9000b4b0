"""How long a merge will take, from its bytes and elements. Rates are of a plain two-core machine; an estimate, not a promise."""

from __future__ import annotations

from ..ops.method import Fallback
from .graph import Compute
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
    return START_UP + max(read, write, _work(plan) / plan.options.budget.workers)


def _work(plan: Plan) -> float:
    """Seconds one worker computes, of every task: what is computed again for another pass counts each time."""
    work = 0.0
    for _, task in plan.graph.nodes(data="task"):
        if isinstance(task, Compute) and not plan.spare(task):
            recipe, kernel = plan.all_recipes[task.recipe], plan.kernels[task.recipe]
            passes = sum(not isinstance(kernel.statistics[index], Fallback) for index in task.passes)
            work += task.count * len(recipe.inputs) * (MAP_COST * task.maps + STATISTIC_COST * passes)
    return work
