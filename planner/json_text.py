"""JSON from strangers: plain values, within bounds that no honest file comes near."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
"""Deeper values would make whatever walks through them run out of stack."""

MANY_VALUES = 6_000_000
"""Values in a file: a few hundred bytes of memory each. The largest tokenizers have two million."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")

Pairs = list[tuple[str, Any]]


def loads(
    data: bytes, *, values: int = MANY_VALUES, pairs: Callable[[Pairs], Any] | None = None, text: bool = True, file: bool = True
) -> Any:
    """The value of a JSON text in UTF-8 with at most so many `values` in it; `file`: it is all of a file.

    `pairs` makes a map of its entries, as json's object_pairs_hook. With `text` no string holds half of a surrogate pair, which
    could not be written again. Raises ValueError with what is wrong: "nested too deep", "not valid JSON", and what to do
    where that is because a file is cut short, or git fetched a pointer in its place.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > values:
        raise ValueError(f"far larger than such a file should be: more than {values:,} values")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs)
        if text and _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON{_why(data, error) if file else ''}") from None
    if _deeper(value, MAX_DEPTH):
        raise ValueError("nested too deep")
    return value


def _why(data: bytes, error: ValueError) -> str:
    """Where it stops to be JSON, and what to do if that is because something is missing."""
    if data.startswith(b"version https://git-lfs"):
        return ": a Git LFS pointer in its place: run `git lfs pull` in the model's folder"
    text = data.rstrip()
    whole = text.endswith((b"}", b"]")) and not (isinstance(error, json.JSONDecodeError) and error.pos >= len(error.doc.rstrip()))
    if not whole:
        return ": it is cut short; fetch it again"
    return f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""


def _deeper(value: Any, depth: int) -> bool:
    """Whether maps and lists stand in each other more than `depth` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(depth):
        if not level:
            return False
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for items in inside for child in items if isinstance(child, dict | list)]
    return bool(level)
