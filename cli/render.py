"""Plans and summaries for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from ..engine.events import Summary
from ..engine.reuse import Outlook, outlook, state_of
from ..engine.system import free_disk
from ..planner.describe import headline, plan_rows
from ..planner.plan import Plan
from ..planner.reasons import summarise
from ..planner.sizes import format_duration, format_size
from .plan import disk_needed
from .terminal import console as terminal
from .terminal import literal, show_table

_STATES = {
    "new": "new",
    "unfinished": "an unfinished result: ",
    "complete": "the complete result of this plan: nothing to do",
    "another": "the result of another plan, valid until this one's is complete: ",
    "foreign": "other files: weft run will refuse it",
}


def show_plan(plan: Plan, out: Path | None, *, verbose: bool) -> None:
    """What `weft plan` prints."""
    console = terminal()
    console.print(f"[bold]{literal(headline(plan))}[/bold]")
    table = Table.grid(padding=(0, 2))
    for label, text in _rows(plan, out):
        table.add_row(f"[cyan]{label}[/cyan]", literal(text))
    console.print(table)
    for note in plan.notes:
        console.print(f"[yellow]note[/yellow]  {literal(note)}")
    if verbose:
        _show_tensors(plan)


def _rows(plan: Plan, out: Path | None) -> Iterator[tuple[str, str]]:
    yield from plan_rows(plan)
    found = outlook(plan, out) if out is not None else None
    needed = disk_needed(plan, found)
    free = free_disk(out or Path.cwd())
    short = "" if free >= needed else f": {format_size(needed - free)} too little"
    yield "disk", f"{format_size(needed)} needed, {format_size(free)} free{short}"
    if out is not None:
        state = state_of(plan, out)
        yield "output", f"{out}: {_STATES[state]}" + (_reuse(plan, found) if found and state in ("unfinished", "another") else "")
        if found and state == "another":
            for change in summarise(found.reasons):
                yield "because", change.text(len(plan.recipes))


def _reuse(plan: Plan, found: Outlook) -> str:
    text = f"reuse {found.reused}, compute {len(plan.recipes) - found.reused}"
    if found.copied:
        text += f"; {format_size(found.copied_bytes)} are copied"
    if found.kept_shards:
        text += f"; {len(found.kept_shards)} of {len(plan.shards)} files stay"
    return text


def _show_tensors(plan: Plan) -> None:
    rows = []
    for recipe in plan.recipes:
        settings = [*(f"{k} {v:g}" for k, v in recipe.arguments.shared.items())]
        for i, model in enumerate(recipe.arguments.models):
            settings += [f"{k}[{i}] {v:g}" for k, v in model.items()]
        inputs = dict.fromkeys(t.file.model if t.name == recipe.name else f"{t.file.model}:{t.name}" for t in recipe.leaves())
        shape = "×".join(map(str, recipe.shape))
        rows.append((recipe.name, shape, recipe.dtype, recipe.method or "copy", ", ".join(inputs), ", ".join(settings)))
    show_table(("tensor", "shape", "dtype", "method", "inputs", "parameters"), rows)


def say_plan(plan: Plan, *, verbose: bool) -> None:
    """The lines before a run."""
    console = terminal()
    console.print(f"[bold]{literal(headline(plan))}[/bold]")
    budget = plan.options.budget
    console.print(
        f"{len(plan.recipes)} tensors, {format_size(sum(plan.bytes_read().values()))} to read, "
        f"{format_size(plan.bytes_written)} to write, "
        f"at most {format_size(plan.predicted_ram)} of {format_size(budget.ram)} RAM"
        + ("" if budget.on_host else f" and {format_size(plan.predicted_vram)} of {format_size(budget.vram)} on {budget.device}")
    )
    for note in plan.notes:
        console.print(f"[yellow]note[/yellow]  {literal(note)}")
    if verbose:
        _show_tensors(plan)


def show_summary(summary: Summary, out: Path) -> None:
    """The lines after a run: what was checked, time, rates, memory measured beside predicted."""
    console = terminal()
    console.print(f"[bold green]done[/bold green] in {format_duration(summary.seconds)}: {literal(str(out))}")
    table = Table.grid(padding=(0, 2))
    for label, text in _summary_rows(summary):
        table.add_row(f"[cyan]{label}[/cyan]", literal(text))
    console.print(table)
    for warning in _warnings(summary):
        console.print(f"[bold yellow]warning[/bold yellow]  {literal(warning)}")


def _summary_rows(summary: Summary) -> Iterator[tuple[str, str]]:
    reused = f" ({summary.computed} computed, {summary.reused} reused)" if summary.reused else ""
    yield (
        "checked",
        (f"{summary.tensors} tensors, {summary.parameters:,} parameters, {summary.bytes_written:,} bytes: as planned{reused}"),
    )
    base = f"{summary.differing_tensors} of {summary.tensors} tensors"
    if summary.compared_elements:
        base += (
            f", {summary.differing_elements / summary.compared_elements:.1%} of the compared elements, differ from the base model"
        )
    else:
        base += " differ from the base model"
    if summary.foreign_tensors:
        base += f"; {summary.foreign_tensors} come from other models alone"
    yield "changed", base
    if summary.kept_tensors:
        yield "kept", f"{summary.kept_tensors} tensors of parts that not all models have, as one model has them"
    yield "NaN, Inf", f"{summary.nan}, {summary.inf}"
    seconds = max(summary.seconds, 1e-3)
    yield "rates", f"read {format_size(summary.bytes_read / seconds)}/s, written {format_size(summary.bytes_written / seconds)}/s"
    yield "peak RAM", f"{format_size(summary.measured_ram)} measured, {format_size(summary.predicted_ram)} predicted"
    if summary.predicted_vram:
        yield "peak VRAM", f"{format_size(summary.measured_vram)} measured, {format_size(summary.predicted_vram)} predicted"


def _warnings(summary: Summary) -> Iterator[str]:
    yield from summary.warnings
    if summary.compared_elements and not summary.differing_tensors and not summary.foreign_tensors:
        yield "the result is identical to the base model: check weights, t and which models are merged"
    if summary.nan or summary.inf:
        names = ", ".join(summary.nonfinite_tensors[:3])
        more = f" and {len(summary.nonfinite_tensors) - 3} more" if len(summary.nonfinite_tensors) > 3 else ""
        yield f"there are NaN or Inf values in {names}{more}: an input is damaged, or a weight too large for the dtype"
