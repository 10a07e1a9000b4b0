"""Everything that a report shows, as plain data: a plan, what is done of it already, and what a run measured.

Kept small enough to stand in a page: names, shapes, parameters and task patterns that repeat are stored once and referred to by
number, so a model of tens of thousands of tensors takes a megabyte or two.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from .describe import describe
from .plan import Plan
from .recipe import Recipe
from .report_memory import thinned, usage
from .report_parameters import parameter_values, settings
from .report_rows import Rows, find_rows
from .report_tasks import TensorTasks, tensor_tasks

REPORT_VERSION = 1
NAMED = 4
"""Models that a title names at most."""


def report_data(
    plan: Plan,
    *,
    state: str | None = None,
    done: Collection[int] = (),
    measured: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A plan's report.

    `state` is what the output folder is now (None where none is named), `done` the recipes whose tensors it holds already,
    `measured` what `engine.recorder` saw of a run. Sizes are bytes, times seconds.
    """
    rows = find_rows(plan)
    tasks = tensor_tasks(plan)
    about = describe(plan)
    return {
        "version": REPORT_VERSION,
        "about": about,
        "title": plan.config.merge.name or _title(plan),
        "source": plan.config.document.source,
        "config": plan.config.text,
        "models": about["models"],
        "rows": [{"label": row.label, "stack": row.stack, "layer": row.layer, "prefix": row.prefix} for row in rows.rows],
        "parameters": parameter_values(plan, rows),
        "memory": _memory(plan),
        "tensors": _tensors(plan, rows, tasks),
        "reuse": {"state": state, "done": sorted(done)},
        "measured": dict(measured) if measured is not None else None,
    }


def _title(plan: Plan) -> str:
    """The merge as people would call it: "slerp of one and two"."""
    names = [str(model.reference).rstrip("/").rsplit("/", 1)[-1] for model in plan.models]
    shown = names if len(names) <= NAMED else [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    return f"{plan.method.name} of {' and '.join([', '.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)}"


def _memory(plan: Plan) -> dict[str, Any]:
    """Curves of the pool over the steps of the schedule, and what is constant beside it."""
    curve, numbers = thinned(usage(plan.schedule))
    computes = (plan.graph.nodes[plan.schedule.steps[number].compute]["task"] for number in numbers)
    outputs = {recipe.name: number for number, recipe in enumerate(plan.recipes)}
    division = plan.division
    return {
        "steps": len(plan.schedule.steps),
        "at": list(numbers),
        "tensor": [outputs.get(plan.all_recipes[compute.recipe].name, -1) for compute in computes],
        "kept": list(curve.kept),
        "own": list(curve.own),
        "ahead": list(curve.ahead),
        "fixed": {"overhead": division.overhead, "scratch": division.scratch, "statistics": division.state},
        "pool": plan.schedule.arena,
    }


class _Numbered:
    """Values that repeat, each stored once under a number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[str, int] = {}

    def add(self, value: Any) -> int:
        key = json.dumps(value, sort_keys=True)
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]


COLUMNS = ("row", "rest", "shape", "dtype", "method", "parameters", "pattern", "shard", "bytes", "read")
"""What the numbers of a tensor's list mean. `rest` is its name without the row's prefix; `bytes` and `read` are no references."""


def _tensors(plan: Plan, rows: Rows, tasks: list[TensorTasks]) -> dict[str, Any]:
    """The output tensors as lists of numbers (`COLUMNS`), with the tables that the numbers point into."""
    tables = {name: _Numbered() for name in ("rest", "shape", "dtype", "method", "parameters", "pattern", "read")}
    labels = {label: i for i, label in enumerate(plan.stores)}
    items = []
    for number, (recipe, made) in enumerate(zip(plan.recipes, tasks, strict=True)):
        row = rows.of[number]
        items.append(
            [
                row,
                tables["rest"].add(recipe.name.removeprefix(rows.rows[row].prefix)),
                tables["shape"].add(list(recipe.shape)),
                tables["dtype"].add(recipe.dtype),
                tables["method"].add(recipe.method or "copy"),
                tables["parameters"].add([list(setting) for setting in settings(recipe)]),
                tables["pattern"].add(_pattern(recipe, made, rows, labels)),
                plan.places[number].shard,
                plan.places[number].nbytes,
                tables["read"].add([made.read.get(label, 0) for label in plan.stores]),
            ]
        )
    return {
        "columns": list(COLUMNS),
        "items": items,
        "neighbours": {str(number): list(made.neighbours) for number, made in enumerate(tasks) if made.neighbours},
        **{name: table.values for name, table in tables.items()},
    }


def _pattern(recipe: Recipe, made: TensorTasks, rows: Rows, labels: Mapping[str, int]) -> list[Any]:
    """[leaves, groups, edges] of a tensor's tasks, in terms that tensors of other layers share.

    A leaf is [model, file, dtype, shift of the layer, name]: `model` is -1 for what the run itself makes, `name` is null where it
    is the output's but for the layer.
    """
    place = rows.place(recipe.name)
    leaves = []
    for leaf in made.leaves:
        there = rows.place(leaf.name)
        numbered = place.stack is not None and there.stack is not None and there.rest == place.rest
        alike = leaf.name == recipe.name or (numbered and there.stack == place.stack)
        shift = there.layer - place.layer if alike and numbered else 0
        leaves.append([labels.get(leaf.file.model, -1), leaf.file.name, leaf.dtype, shift, None if alike else leaf.name])
    groups = [[kind, list(what) if isinstance(what, tuple) else what, tasks, nbytes] for kind, what, tasks, nbytes in made.groups]
    return [leaves, groups, [list(edge) for edge in made.edges]]
