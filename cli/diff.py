"""`weft diff`"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .terminal import literal, show_table

if TYPE_CHECKING:
    from ..engine.difference import Comparison, Sums

_SHOWN = 10
"""Tensors that are listed unless all are asked for."""

DEFAULT_RAM = "256MiB"

Ram = Annotated[str, typer.Option(help="RAM for the comparison beyond what the process itself takes.")]


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A folder or a Hub name (org/name@revision).")],
    second: Annotated[str, typer.Argument(metavar="B", help="The model to compare it with.")],
    json: o.Json = False,
    tensors: Annotated[bool, typer.Option("--tensors", "--verbose", "-v", help="List every tensor that differs.")] = False,
    ram: Ram = DEFAULT_RAM,
    quiet: o.Quiet = False,
) -> None:
    """Show how two checkpoints differ, by layer and by tensor. Reads all weights of both, downloading those of Hub models."""
    from ..planner.sizes import parse_size

    budget = parse_size(ram)
    from ..engine.difference import compare, fetch, open_stored

    a, b = open_stored(first), open_stored(second)
    for checkpoint in (a, b):
        fetch(checkpoint, quiet=quiet)
    with _progress(sum(file.size for file in (*a.files, *b.files)), quiet) as seen:
        found = compare(a, b, budget, seen)
    if json:
        import json as serializer

        print(serializer.dumps(found.to_dict(), indent=2))
    else:
        _show(found, every=tensors)


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda nbytes: None
        return
    columns = BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compare", total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


def _show(found: Comparison, *, every: bool) -> None:

    from .terminal import console as terminal

    console = terminal()
    a, b = found.labels
    total = found.total
    if found.identical:
        console.print(f"identical: {len(found.tensors)} tensors, {total.elements:,} elements", highlight=False)
        return
    differing = sorted(
        (tensor for tensor in found.tensors if tensor.sums.differing),
        key=lambda tensor: (tensor.sums.relative is not None, -(tensor.sums.relative or 0), tensor.name),
    )
    console.print(f"[bold]{literal(a)}[/bold] → [bold]{literal(b)}[/bold]")
    console.print(
        f"{len(differing)} of {len(found.tensors)} tensors differ, in {total.differing:,} of {total.elements:,} elements: "
        f"relative norm {_number(total.relative)}, cosine {_number(total.cosine)}, largest difference {_number(total.largest)}"
    )
    for line in _remarks(found):
        console.print(f"[yellow]note[/yellow]  {literal(line)}")
    if not differing:
        return
    console.print()
    _show_sums("layer", ((layer or "outside the layers", sums) for layer, sums in found.layers().items()))
    console.print()
    shown = differing if every else differing[:_SHOWN]
    _show_sums("tensors, most different first", ((tensor.name, tensor.sums) for tensor in shown))
    if len(shown) < len(differing):
        console.print(f"and {len(differing) - len(shown)} more: --tensors lists them")


def _remarks(found: Comparison) -> Iterator[str]:
    a, b = found.labels
    for label, names in ((a, found.only_first), (b, found.only_second)):
        if names:
            yield f"only in {label}: {_some(names)}"
    if found.shapes:
        shapes = next(iter(found.shapes.values()))
        which = f"which is {list(shapes[0])} in {a} and {list(shapes[1])} in {b}"
        yield f"not compared, as their shapes disagree: {_some(tuple(found.shapes))}, {which}"
    retyped = [tensor for tensor in found.tensors if tensor.dtypes[0] != tensor.dtypes[1]]
    if retyped:
        x, y = retyped[0].dtypes
        yield f"of other types: {_some(tuple(t.name for t in retyped))}, which is {x} in {a} and {y} in {b}"
    total = found.total
    for label, nan, inf in zip(found.labels, total.nan, total.inf, strict=True):
        if nan or inf:
            yield f"{label} has {nan:,} NaN and {inf:,} Inf values, which the norms leave out"


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} tensors, such as {names[0]}" if len(names) > 1 else names[0]


def _show_sums(title: str, rows: Iterable[tuple[str, Sums]]) -> None:
    header = (title, "differing", "relative norm", "cosine", "largest")
    numbers = (
        (
            name,
            f"{sums.differing / max(sums.elements, 1):.1%}",
            _number(sums.relative),
            _number(sums.cosine),
            _number(sums.largest),
        )
        for name, sums in rows
    )
    show_table(header, numbers, right=True)


def _number(value: float | None) -> str:
    """Three digits that matter; of what is nearly one, those in which it is not."""
    if value is None:
        return "–"
    return f"{value:.7f}" if 0.9 < value < 1 else f"{value:.3g}"
