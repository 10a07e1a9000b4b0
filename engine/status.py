"""How far a merge is, seen from another process: reads the journal, takes no lock, changes nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OutputError
from .folder import OutputFolder, looking_at
from .journal import read_progress, read_records


@dataclass(frozen=True, slots=True)
class Status:
    """`state`: "finished", "running", "interrupted", "publishing" (interrupted while files were put in place) or "starting".

    Tensors and bytes are of the whole result; None where the journal does not say. `rate` is bytes a second that became durable
    since the run began; None where nothing did, or nothing runs. `earlier`: a complete result stands there meanwhile.
    """

    state: str
    earlier: bool
    tensors: int | None
    tensors_done: int | None
    nbytes: int | None
    nbytes_done: int | None
    rate: float | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        return {
            "state": self.state,
            "earlier_result": self.earlier,
            "tensors": self.tensors,
            "tensors_done": self.tensors_done,
            "bytes": self.nbytes,
            "bytes_done": self.nbytes_done,
            "bytes_per_second": self.rate,
        }


def status(out: Path) -> Status:
    """Look at an output folder. Raises OutputError where weft wrote nothing there."""
    with looking_at(out):
        return _status(out)


def _status(out: Path) -> Status:
    folder = OutputFolder(out)
    manifest = folder.manifest() if out.is_dir() else None
    running = folder.locked
    if not (folder.recording or folder.swapping or running):
        if manifest is None and folder.unfinished:
            return Status("interrupted", False, None, None, None, None, None)
        if manifest is None:
            raise OutputError(f"{out}: no merge is running there, and there is no finished result")
        count, nbytes = len(manifest.tensors), sum(shard.nbytes for shard in manifest.shards.values())
        return Status("finished", False, count, count, nbytes, nbytes, None)
    progress, records = read_progress(folder.journal), read_records(folder.journal)
    state = "publishing" if folder.swapping else "interrupted"
    if running:
        state = "running" if progress is not None else "starting"
    if progress is None:
        return Status(state, manifest is not None, None, None, None, None, None)
    done = sum(record.nbytes for record in records.values()) + progress.kept_bytes
    seconds = time.time() - progress.began
    rate = (done - progress.found_bytes) / seconds if running and seconds > 0 and done > progress.found_bytes else None
    return Status(state, manifest is not None, progress.tensors, len(records) + progress.kept, progress.nbytes, done, rate)
