"""Where text goes that rich lays out."""

from __future__ import annotations

from rich.console import Console

_ENOUGH = 4000


def console() -> Console:
    """Standard output: as wide as the terminal, or where there is none so wide that no line is cut or folded."""
    found = Console(soft_wrap=True, highlight=False)
    return found if found.is_terminal else Console(soft_wrap=True, highlight=False, width=_ENOUGH)
