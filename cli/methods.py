"""`weft methods`"""

from __future__ import annotations


def methods() -> None:
    """List the merge methods and their parameters."""
    from rich.markup import escape
    from rich.table import Table

    from ..ops.declare import BaseRole, Method, Parameter
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
        console.print(f"[bold]{method.name}[/bold]  {escape(method.summary)}  [dim]{takes(method)}[/dim]", highlight=False)
        table = Table.grid(padding=(0, 2), pad_edge=True)
        for parameter in method.parameters:
            table.add_row("", f"[cyan]{parameter.name}[/cyan]", escape(describe(parameter)))
        console.print(table)
        if method.source:
            console.print(f"  [dim]{escape(method.source)}[/dim]", highlight=False)
        console.print()


def _value(value: float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
