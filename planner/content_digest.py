"""Whether bytes are those that the Hub has: it names the contents of large files by SHA-256, and of small ones as git does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import BinaryIO

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_PIECE = 4 << 20


def is_digest(text: str) -> bool:
    """Whether a text could name contents: a SHA-256, or a SHA-1."""
    return _DIGEST.fullmatch(text) is not None


def has_digest(file: BinaryIO, size: int, digest: str, seen: Callable[[int], None] = lambda nbytes: None) -> bool:
    """Whether a file of `size` bytes, read from its start, has these contents; `seen` is told the bytes as they are read.

    A SHA-1 is that of git's object, or, as some mirrors have it, of the bytes alone.
    """
    if len(digest) == 64:
        sums = [hashlib.sha256()]
    else:
        sums = [hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False), hashlib.sha1(usedforsecurity=False)]
    file.seek(0)
    while piece := file.read(_PIECE):
        for total in sums:
            total.update(piece)
        seen(len(piece))
    return any(total.hexdigest() == digest for total in sums)
