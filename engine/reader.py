"""Reads byte ranges of the input files into the pool."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..planner.catalog import WeightFile
from ..planner.graph import Load
from .system import read_into


class Reader:
    """The input files of a run, each opened once and checked to be what was planned with."""

    def __init__(self, paths: Mapping[tuple[str, str], Path]) -> None:
        self._paths = paths
        self._files: dict[tuple[str, str], int] = {}

    def open(self, file: WeightFile) -> None:
        """Open a file. Raises CheckpointError where it is gone or no longer as large."""
        key = (file.model, file.name)
        if key in self._files:
            return
        try:
            self._files[key] = os.open(self._paths[key], os.O_RDONLY)
            size = os.fstat(self._files[key]).st_size
        except OSError as error:
            raise CheckpointError(f"{file.model}/{file.name}: {error.strerror or error}") from None
        if size != file.size:
            raise CheckpointError(f"{file.model}/{file.name}: changed while weft was planning: give the command again")

    def read(self, task: Load, target: memoryview) -> None:
        """Fill `target` with a load's bytes. Raises CheckpointError naming the file."""
        file = task.tensor.file
        try:
            for segment in task.segments:
                place = target[segment.place : segment.place + segment.nbytes]
                read_into(self._files[(file.model, file.name)], segment.offset, place, drop=task.last)
        except EOFError as error:
            raise CheckpointError(
                f"{file.model}/{file.name}: {error} while tensor '{task.tensor.name}' was read: fetch it again"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{file.model}/{file.name}: tensor '{task.tensor.name}' could not be read: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """Close all files."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
