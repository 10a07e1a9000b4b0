"""Where text goes that rich lays out, and what keeps it in its line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_ENOUGH = 4000
_LONGEST = 2000


def console() -> Console:
    """Standard output: as wide as the terminal, or where there is none so wide that no line is cut or folded."""
    from rich.console import Console

    found = Console(soft_wrap=True, highlight=False)
    return found if found.is_terminal else Console(soft_wrap=True, highlight=False, width=_ENOUGH)


def one_line(text: str) -> str:
    """Names in configs and files may hold anything: what would break the line, or steer the terminal, is written as an escape."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
