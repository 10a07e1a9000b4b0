"""Where a mixture's router sends prompts, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from ..engine.events import Routing
from .terminal import console as terminal
from .terminal import literal

WIDTH = 48
"""Characters of a prompt that are shown."""


def show_routings(routings: Sequence[Routing]) -> None:
    """For each prompt the weight of each expert over its tokens and all layers; bold where it is a positive prompt of theirs."""
    for routing in routings:
        experts = range(len(routing.shares[0]))
        table = Table("prompt", *(f"expert {e}" for e in experts), box=None, header_style="cyan")
        for prompt, owners, shares in zip(routing.prompts, routing.owners, routing.shares, strict=True):
            cells = [
                f"[bold]{share:.0%}[/bold]" if e in owners else f"{share:.0%}" for e, share in zip(experts, shares, strict=True)
            ]
            text = " ".join(prompt.split())
            table.add_row(literal(text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"), *cells)
        console = terminal()
        console.print("weight of each expert for the prompts' tokens, by what the base model's layers see; bold: meant for it")
        console.print(table)
