"""Where text goes that people read, and what keeps it in its line: all that commands print but JSON passes here."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_ENOUGH = 4000
_LONGEST = 2000

_PLAIN = {"→": "->", "…": "...", "×": "x", "·": "-", "–": "-", "├": "|", "└": "`", "│": "|", "─": "-", "━": "-", "ᵀ": "^T"}
"""What stands in for characters of weft's own where a terminal's encoding has none of them."""


def print_anything() -> None:
    """Let no character end a command: what the encoding of standard output or stderr lacks gets a stand-in, or is an escape."""
    codecs.register_error("weft", _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="weft")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character) or _escaped(character) for character in lacking), error.end


def console() -> Console:
    """Standard output: as wide as the terminal, or where there is none so wide that no line is cut or folded."""
    from rich.console import Console

    found = Console(soft_wrap=True, highlight=False, emoji=False)
    return found if found.is_terminal else Console(soft_wrap=True, highlight=False, emoji=False, width=_ENOUGH)


def one_line(text: str) -> str:
    """Names in configs and files may hold anything: what would break the line, or steer the terminal, is written as an escape."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} […] {text[-_LONGEST // 2 :]}"
    return printable(text)


def printable(text: str) -> str:
    """Text, a stranger's, without characters that no one sees, or that steer a terminal or the direction of writing."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def literal(text: str) -> str:
    """The same for a line of rich's markup, in which it is text and no markup."""
    from rich.markup import escape

    return escape(one_line(text))


def say(text: str, *, error: bool = False) -> None:
    """Print one plain line, to stderr where it is an error."""
    print(one_line(text), file=sys.stderr if error else sys.stdout)


def show_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: bool = False) -> None:
    """Print a table of any length, for which rich would take seconds; `right` aligns all columns but the first to the right."""
    from rich.cells import cell_len
    from rich.text import Text

    def width(cell: str) -> int:
        return len(cell) if cell.isascii() else cell_len(cell)

    def line(row: Sequence[str]) -> str:
        cells = []
        for number, (cell, most) in enumerate(zip(row, widths, strict=True)):
            pad = " " * (most - width(cell))
            cells.append(f" {pad}{cell} " if right and number else f" {cell}{pad} ")
        return "".join(cells).rstrip()

    table = [[one_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*table, strict=True)]
    screen = console()
    screen.print(Text(line(table[0]), style="cyan"))
    screen.file.write("".join(f"{line(row)}\n" for row in table[1:]))
