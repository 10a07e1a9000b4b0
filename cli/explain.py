"""`weft explain`"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .terminal import literal

if TYPE_CHECKING:
    from rich.tree import Tree

    from ..planner.explain import Explanation, Made, Stored
    from ..planner.provenance import Origin


def explain(
    config: o.Config,
    tensor: Annotated[str, typer.Argument(help="A tensor of the result: its name, a part of it, or a pattern with * and ?.")],
    out: Annotated[
        Path | None, typer.Argument(help="The folder of the result: says whether the tensor is there already.")
    ] = None,
    json: o.Json = False,
    ram: o.Ram = None,
    vram: o.Vram = None,
    device: o.Device = None,
    workers: o.Workers = None,
    out_shard_size: o.ShardSize = None,
    seed: o.Seed = None,
    lenient: o.Lenient = None,
    values: o.Values = None,
) -> None:
    """Say where one tensor of a merge comes from: inputs, method, the config line behind each parameter, cost and place."""
    plan = o.compile_plan(config, o.Wishes(ram, vram, device, workers, out_shard_size, seed, None, lenient, values or ()))
    from ..planner.explain import explain as of
    from ..planner.explain import find_tensor

    found = of(plan, find_tensor(plan, tensor))
    state = _state(out, found) if out is not None else None
    if json:
        import json as serializer

        print(serializer.dumps(found.to_dict() | ({"out": state} if state else {}), indent=2))
    else:
        _show(found, out, state)


def _state(out: Path, found: Explanation) -> str:
    from ..engine.recorded import recorded_digest

    digest = recorded_digest(out, found.made.tensor)
    return "missing" if digest is None else "there" if digest == found.digest else "changed"


_STATES = {
    "missing": "not there yet: it would be computed",
    "there": "there already, made exactly like this",
    "changed": "there, but made from something else: it would be computed again",
}


def _show(found: Explanation, out: Path | None, state: str | None) -> None:
    from rich.table import Table

    from ..planner.sizes import format_size
    from .terminal import console as terminal

    console, made = terminal(), found.made
    console.print(f"[bold]{literal(made.tensor)}[/bold]  {_shape(made.shape)} {made.dtype}  {format_size(found.bytes_written)}")
    console.print(_tree(made, found.source))
    table = Table.grid(padding=(0, 2))
    many = "one tile" if found.tiles == 1 else f"{found.tiles} tiles"
    looks = f"{found.passes} pass{'es' if found.passes > 1 else ''}"
    passes = f": {looks} over the inputs for statistics, then the result" if found.passes else ""
    rows = [
        ("computed", f"in {many}{passes}"),
        ("read", f"{format_size(found.bytes_read)}"),
        ("memory", f"{format_size(found.memory)} for the buffers of one step"),
        ("write", f"{format_size(found.bytes_written)} to {found.shard}, from byte {found.offset:,} on"),
    ]
    if state is not None:
        rows.append(("output", f"{out}: {_STATES[state]}"))
    for label, text in rows:
        table.add_row(f"[cyan]{label}[/cyan]", literal(text))
    console.print(table)


def _tree(made: Made, source: str) -> Tree:
    from rich.tree import Tree

    from ..planner.explain import Stored

    def fill(branch: Tree, made: Made) -> None:
        for parameter in made.shared:
            branch.add(literal(_origin(parameter, source, made.t)))
        for one in made.inputs:
            fill_input(branch, one, made.t)
        if made.left_out:
            branch.add(f"… {made.left_out}")

    def fill_input(branch: Tree, one: Stored | Made, t: float | None) -> None:
        inner = branch.add(_stored(one) if isinstance(one, Stored) else _title(one))
        for parameter in one.parameters:
            inner.add(literal(_origin(parameter, source, t)))
        if not isinstance(one, Stored):
            fill(inner, one)

    root = Tree(_title(made))
    fill(root, made)
    return root


def _title(made: Made) -> str:

    stage = f"stage {made.stage}: " if made.stage else ""
    rounded = f"; inputs are rounded to {made.rounded_first} first" if made.rounded_first else ""
    return f"[cyan]{literal(stage + made.method)}[/cyan]  {literal(made.summary + rounded)}"


def _stored(one: Stored) -> str:

    from ..planner.sizes import format_size

    rows = f", of which {one.moved_rows} rows move" if one.moved_rows is not None else ""
    place = f"{one.file}, {format_size(one.nbytes)} from byte {one.offset:,} on{rows}"
    return f"[bold]{literal(one.model)}[/bold]  {literal(f'{one.tensor}  {_shape(one.shape)} {one.dtype}  {place}')}"


def _origin(one: Origin, source: str, t: float | None) -> str:
    """`t = 0.5  merge.yaml:12, parameters.t[1].value, for names with 'mlp', at t 0.4 of [0, 1]`"""
    value = "–" if one.value is None else f"{one.value:.6g}"
    return f"{one.parameter} = {value}  " + ", ".join(_decided(one, source, t))


def _decided(one: Origin, source: str, t: float | None) -> Iterator[str]:
    if one.decided_by != "config":
        yield one.decided_by
        return
    yield f"{source}:{one.line}"
    yield str(one.key)
    if one.filter is not None:
        yield f"for names with '{one.filter}'"
    if one.gradient and t is not None:
        yield f"at t = {t:.4g} of {[float(f'{value:g}') for value in one.gradient]}"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"
