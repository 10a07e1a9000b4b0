"""What an output folder says made one of its tensors, read without touching the folder: another process may be writing to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from .folder import OutputFolder


def recorded_digest(out: Path, name: str) -> str | None:
    """The digest with which tensor `name` is on the disk, in a finished folder or an unfinished one; None where it is not."""
    folder = OutputFolder(out)
    if folder.journal.is_file():
        try:
            with closing(sqlite3.connect(f"{folder.journal.absolute().as_uri()}?mode=ro", uri=True)) as db:
                row = db.execute("SELECT digest FROM tensors WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None
    tensors = (folder.manifest() or {}).get("tensors")
    entry = tensors.get(name) if isinstance(tensors, dict) else None
    return str(entry.get("digest")) if isinstance(entry, dict) else None
