"""Reads byte ranges of the input files into the pool."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..planner.catalog import WeightFile
from ..planner.file_state import FileState
from ..planner.graph import Load
from ..planner.store import changed, check_state
from .handles import Handles
from .system import read_into


@dataclass(frozen=True, slots=True)
class InputFile:
    """Where an input file is on this machine, and the state in which it was planned with."""

    path: Path
    state: FileState


Inputs = Mapping[tuple[str, str], InputFile]
"""Input files by model and name."""


class Reader:
    """The input files of a run, each checked to be what was planned with; few of them are open at once.

    What is read counts only if `check` finds the file unchanged afterwards.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._planned: dict[tuple[str, str], WeightFile] = {}
        self._files: Handles[tuple[str, str]] = Handles(self._open)

    def open(self, file: WeightFile) -> None:
        """Open a file. Raises CheckpointError where it is gone, InputChanged where it is not what was planned with."""
        key = (file.model, file.name)
        if key not in self._planned:
            self._planned[key] = file
            with self._files.use(key):
                pass

    def _open(self, key: tuple[str, str]) -> int:
        """The descriptor of a file that may have been open before: it must still be what was planned with."""
        wanted, label = self._inputs[key], "/".join(key)
        try:
            handle = os.open(wanted.path, os.O_RDONLY)
        except OSError as error:
            raise CheckpointError(f"{label}: {error.strerror or error}") from None
        try:
            check_state(handle, wanted.state, label)
            if wanted.state.size != self._planned[key].size:
                raise changed(label)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def check(self, files: Iterable[WeightFile]) -> None:
        """Raise InputChanged unless files, and what stands at their paths, are still what was planned with; from any thread.

        Call it after the last read of what is to be kept. A file that was replaced changes as its last name goes.
        """
        for file in files:
            key = (file.model, file.name)
            label, wanted = f"{file.model}/{file.name}", self._inputs[key]
            with self._files.use(key) as handle:
                check_state(handle, wanted.state, label)
            try:
                found = FileState.of(wanted.path.stat())
            except OSError:
                raise changed(label) from None
            if found != wanted.state:
                raise changed(label)

    def read(self, task: Load, target: memoryview) -> None:
        """Fill `target` with a load's bytes. Raises CheckpointError naming the file."""
        file = task.tensor.file
        try:
            with self._files.use((file.model, file.name)) as handle:
                for segment in task.segments:
                    place = target[segment.place : segment.place + segment.nbytes]
                    read_into(handle, segment.offset, place, drop=task.last)
        except EOFError as error:
            self.check((file,))
            raise CheckpointError(
                f"{file.model}/{file.name}: {error} while tensor '{task.tensor.name}' was read: fetch it again"
            ) from None
        except OSError as error:
            raise CheckpointError(
                f"{file.model}/{file.name}: tensor '{task.tensor.name}' could not be read: {error.strerror or error}"
            ) from None

    def close(self) -> None:
        """Close all files."""
        self._files.close()
