"""What an output folder says made one of its tensors, read without touching the folder: another process may be writing to it."""

from __future__ import annotations

from pathlib import Path

from .folder import OutputFolder
from .journal import read_records
from .proof import digest_of


def recorded_digest(out: Path, name: str) -> str | None:
    """The digest with which tensor `name` is on the disk, in a finished folder or an unfinished one; None where it is not."""
    folder = OutputFolder(out)
    record = read_records(folder.journal).get(name)
    if record is not None:
        return digest_of(record.digest)
    manifest = folder.manifest()
    tensor = manifest.tensors.get(name) if manifest is not None else None
    return tensor.digest if tensor is not None else None
