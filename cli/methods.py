"""`weft methods`"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import options as o
from .terminal import literal

if TYPE_CHECKING:
    from ..ops.method import Method


def methods(json: o.Json = False) -> None:
    """List the merge methods and their parameters."""
    if json:
        import json as serializer

        from ..ops.registry import methods as all_methods

        print(serializer.dumps({name: describe_method(method) for name, method in all_methods().items()}, indent=2))
        return
    _show()


def describe_method(method: Method) -> dict[str, Any]:
    """A method's declaration as plain data for programs. Keys are stable; new ones may be added."""
    low, high = method.models
    return {
        "summary": method.summary,
        "source": method.source,
        "version": method.version,
        "base_model": method.base.name.lower(),
        "models": {"at_least": low, "at_most": high},
        "parameters": [asdict(parameter) for parameter in method.parameters],
    }


def _show() -> None:
    from rich.table import Table

    from ..ops.method import BaseRole, Parameter
    from ..ops.registry import methods as declared
    from .terminal import console as terminal

    def takes(method: Method) -> str:
        low, high = method.models
        count = f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"
        what = "model" if count == "1" else "models"
        ends = {
            BaseRole.REQUIRED: "base_model + ",
            BaseRole.MEMBER: "base_model among ",
            BaseRole.OPTIONAL: "optional base_model + ",
            BaseRole.ORDINARY: "",
        }
        return f"{ends[method.base]}{count} {what}"

    def describe(parameter: Parameter) -> str:
        if parameter.inert:
            return f"accepted, no effect: {parameter.inert}"
        default = "required" if parameter.required else "none" if parameter.default is None else _value(parameter.default)
        return f"{parameter.help} ({'per model' if parameter.scope == 'model' else 'global'}; {default})"

    console = terminal()
    for method in declared().values():
        console.print(f"[bold]{method.name}[/bold]  {literal(method.summary)}  [dim]{takes(method)}[/dim]", highlight=False)
        table = Table.grid(padding=(0, 2), pad_edge=True)
        for parameter in method.parameters:
            table.add_row("", f"[cyan]{parameter.name}[/cyan]", literal(describe(parameter)))
        console.print(table)
        if method.source:
            console.print(f"  [dim]{literal(method.source)}[/dim]", highlight=False)
        console.print()


def _value(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
