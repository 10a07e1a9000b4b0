"""`weft inspect`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from . import options as o
from .terminal import literal, show_table

if TYPE_CHECKING:
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
    from rich.table import Table

    from .terminal import console as terminal

    console = terminal()
    label, commit = found.checkpoint.label, found.checkpoint.store.commit
    kind = found.architecture or found.model_type or "of an architecture that config.json does not name"
    console.print(
        f"[bold]{literal(label)}[/bold]  {literal(kind)}" + (f"  [dim]commit {literal(commit)}[/dim]" if commit else "")
    )
    table = Table.grid(padding=(0, 2))
    for name, text in _rows(found):
        table.add_row(f"[cyan]{name}[/cyan]", literal(text))
    console.print(table)
    console.print()
    (_show_tensors if tensors else _show_groups)(found)


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


def _show_groups(found: Inspection) -> None:
    from ..planner.sizes import format_count, format_size

    rows = (
        (
            group.pattern,
            f"{len(group.tensors)} of" if len(group.tensors) > 1 else "",
            _shape(group.shape),
            group.dtype,
            format_count(group.parameters),
            format_size(group.nbytes),
        )
        for group in found.groups
    )
    show_table(("tensors", "", "shape", "dtype", "parameters", "size"), rows)


def _show_tensors(found: Inspection) -> None:
    from ..planner.sizes import format_size

    rows = (
        (tensor.name, _shape(tensor.shape), tensor.dtype, format_size(tensor.nbytes), tensor.file.name, str(tensor.offset))
        for tensor in found.tensors
    )
    show_table(("tensor", "shape", "dtype", "size", "file", "offset"), rows)


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "one number"
