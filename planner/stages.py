"""The result of one stage as a model of the next: tensors that are computed in memory and never touch the disk."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from .catalog import Checkpoint, InputTensor, WeightFile
from .compile import Merge
from .dtypes import ITEM_SIZES
from .file_state import FileState
from .graph import copies_bytes
from .hub_check import CachedFile
from .kernels import kernel_of
from .recipe import Recipe, Source
from .store import Store


@dataclass
class _StageFiles:
    """The base model's files, some of them made anew."""

    label: str
    base: Store
    written: Mapping[str, bytes]
    commit: str | None = None

    def sizes(self) -> Mapping[str, int]:
        return {**self.base.sizes(), **{name: len(data) for name, data in self.written.items() if "/" not in name}}

    def below(self, folder: str) -> Mapping[str, int]:
        return {
            **self.base.below(folder),
            **{name: len(data) for name, data in self.written.items() if name.startswith(f"{folder}/")},
        }

    def read(self, name: str) -> bytes:
        return self.written[name] if name in self.written else self.base.read(name)

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.written[name]) if name in self.written else self.base.open(name)

    def identity(self, name: str) -> str:
        return self.base.identity(name)

    def path(self, name: str) -> Path | None:
        return self.base.path(name)

    def state(self, name: str) -> FileState:
        return self.base.state(name)

    def used(self) -> Mapping[str, FileState]:
        return self.base.used()

    def cached(self, name: str) -> CachedFile | None:
        return None if name in self.written else self.base.cached(name)

    def notes(self) -> Sequence[str]:
        return self.base.notes()

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        missing = [name for name in names if name not in self.written and self.base.path(name) is None]
        if missing:
            self.base.download(missing, quiet)


def as_checkpoint(name: str, merge: Merge) -> Checkpoint:
    """A stage's result under its name. A tensor that is only moved stays a tensor of the file it comes from."""
    base = merge.base.checkpoint
    tensors: dict[str, InputTensor | Recipe] = {}
    for recipe in merge.recipes:
        source = recipe.inputs[0]
        moved = isinstance(source, InputTensor) and copies_bytes(recipe, kernel_of(recipe))
        tensors[recipe.name] = replace(source, name=recipe.name) if moved and isinstance(source, InputTensor) else recipe
    side = {**merge.side_files, **{n: len(data) for n, data in merge.written_files.items()}}
    return Checkpoint(
        name,
        _StageFiles(base.store.label, base.store, merge.written_files, base.store.commit),
        merge.model_config,
        tensors,
        (),
        side,
    )


def alone(stage: Sequence[Recipe], results: Collection[str]) -> tuple[Recipe, ...]:
    """A stage's recipes as if the other stages' results, known by their digests, were tensors of files."""

    def source(wanted: Source) -> Source:
        if not isinstance(wanted, Recipe):
            return wanted
        if wanted.digest not in results:  # computed within the stage: an adapter, moved rows
            return apart(wanted)
        file = WeightFile("", wanted.digest, 0, "")
        nbytes = ITEM_SIZES[wanted.dtype] * wanted.arguments.size
        return InputTensor(wanted.name, wanted.dtype, wanted.shape, file, 0, nbytes)

    def apart(recipe: Recipe) -> Recipe:
        return replace(recipe, inputs=tuple(source(wanted) for wanted in recipe.inputs))

    return tuple(apart(recipe) for recipe in stage)
