"""`weft inspect`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from ..planner.inspection import Inspection


def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a Hub name (org/name@revision), or MODEL+ADAPTER.")],
    json: o.Json = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", "--verbose", "-v", help="List every tensor and where it stands, not groups of them.")
    ] = False,
) -> None:
    """Say what a model is: tensors, layers, dtypes, sizes. Reads headers and small files only: no weights are downloaded."""
    from ..errors import ConfigError
    from ..planner.inspection import inspect_model
    from ..planner.reference import parse_reference

    try:
        reference = parse_reference(model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = inspect_model(reference)
    if json:
        import json as serializer

        print(serializer.dumps(found.to_dict(), indent=2))
        return
    _show(found, tensors)


def _show(found: Inspection, tensors: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from .terminal import console as terminal

    console = terminal()
    label, commit = found.checkpoint.label, found.checkpoint.store.commit
    kind = found.architecture or found.model_type or "of an architecture that config.json does not name"
    console.print(f"[bold]{escape(label)}[/bold]  {escape(kind)}" + (f"  [dim]commit {escape(commit)}[/dim]" if commit else ""))
    table = Table.grid(padding=(0, 2))
    for name, text in _rows(found):
        table.add_row(f"[cyan]{name}[/cyan]", escape(text))
    console.print(table)
    console.print()
    console.print(_tensors(found) if tensors else _groups(found))


def _rows(found: Inspection) -> Iterator[tuple[str, str]]:
    from ..planner.sizes import format_count, format_size

    files = found.checkpoint.files
    yield "parameters", f"{format_count(found.parameters)} ({found.parameters:,}) in {len(found.tensors)} tensors"
    yield "size", f"{format_size(found.nbytes)} in {len(files)} file{'s' if len(files) != 1 else ''}"
    yield "layers", ", ".join(f"{count} ({prefix or 'at the top'})" for prefix, count in found.stacks.items()) or "none found"
    total = max(found.parameters, 1)
    yield "dtypes", ", ".join(f"{dtype} {parameters / total:.1%}" for dtype, (_, parameters) in found.dtypes().items())
    yield "quantised", f"{found.quantization}: its weights cannot be merged" if found.quantization else "no"
    yield "tokenizer", found.tokenizer or f"{found.tokens:,} tokens"
    if found.adapter is not None:
        adapter = found.adapter
        ranks = ", ".join(map(str, adapter.ranks))
        replaced = f", {len(adapter.replaced)} replaced" if adapter.replaced else ""
        yield (
            "adapter",
            f"{adapter.label}: {len(adapter.patched)} tensors changed by rank {ranks}{replaced}, {adapter.nbytes:,} bytes",
        )


def _groups(found: Inspection) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from ..planner.sizes import format_count, format_size

    table = Table("tensors", "", "shape", "dtype", "parameters", "size", box=None, header_style="cyan")
    for group in found.groups:
        count = f"{len(group.tensors)} of" if len(group.tensors) > 1 else ""
        parts = (
            group.pattern,
            count,
            _shape(group.shape),
            group.dtype,
            format_count(group.parameters),
            format_size(group.nbytes),
        )
        table.add_row(*map(escape, parts))
    return table


def _tensors(found: Inspection) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from ..planner.sizes import format_size

    table = Table("tensor", "shape", "dtype", "size", "file", "offset", box=None, header_style="cyan")
    for tensor in found.tensors:
        parts = (
            tensor.name,
            _shape(tensor.shape),
            tensor.dtype,
            format_size(tensor.nbytes),
            tensor.file.name,
            str(tensor.offset),
        )
        table.add_row(*map(escape, parts))
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"
