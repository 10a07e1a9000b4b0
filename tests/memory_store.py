"""Checkpoints that are no files: a store in memory, and what torch would write."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch

from weft.planner.file_state import FileState
from weft.planner.hub_check import CachedFile


class Memory:
    """A store of files that are given as bytes; knows what was opened."""

    commit: str | None = None

    def __init__(self, label: str, files: Mapping[str, bytes]) -> None:
        self.label, self.files, self.opened = label, files, list[str]()

    def sizes(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.files.items() if "/" not in name}

    def below(self, folder: str) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.files.items() if name.startswith(f"{folder}/")}

    def read(self, name: str) -> bytes:
        self.opened.append(name)
        return self.files[name]

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.read(name))

    def identity(self, name: str) -> str:
        return name

    def path(self, name: str) -> Path | None:
        return None

    def state(self, name: str) -> FileState:
        raise AssertionError

    def used(self) -> Mapping[str, FileState]:
        return {}

    def cached(self, name: str) -> CachedFile | None:
        return None

    def notes(self) -> Sequence[str]:
        return ()

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        raise AssertionError


def torch_saved(value: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
