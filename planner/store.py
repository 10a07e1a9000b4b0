"""Where a model's files are: the seam between the planner and folders, the Hub, or anything else that can serve byte ranges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from ..errors import CheckpointError, InputChanged
from .file_state import FileState, settled
from .files import open_file

if TYPE_CHECKING:
    from .hub_check import CachedFile


class Store(Protocol):
    """One model's files. All methods may raise CheckpointError."""

    label: str
    """The model as the user named it."""

    commit: str | None
    """The pinned revision, for a store that has revisions."""

    def sizes(self) -> Mapping[str, int]:
        """Every file that stands directly in the model, by its name, with its bytes."""

    def below(self, folder: str) -> Mapping[str, int]:
        """Every file in a folder of the model and in folders of that, by its path from the model (`1_Pooling/config.json`).

        Hidden ones, and hidden folders, are left out.
        """

    def read(self, name: str) -> bytes:
        """A small file, whole."""

    def open(self, name: str) -> BinaryIO:
        """A seekable file of which only the parts asked for are fetched."""

    def identity(self, name: str) -> str:
        """Text that changes whenever the file's bytes do."""

    def path(self, name: str) -> Path | None:
        """The file on this machine, or None where it is not here yet."""

    def state(self, name: str) -> FileState:
        """Of the file on this machine, when this store first looked at it: what is read later must be in the same."""

    def used(self) -> Mapping[str, FileState]:
        """The files of this machine that were read through this store so far."""

    def cached(self, name: str) -> CachedFile | None:
        """A file of this machine that came from elsewhere, and what its contents must be; None where nobody can tell."""

    def notes(self) -> Sequence[str]:
        """What the user should know of where the files come from."""

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        """Bring files to this machine, so that `path` finds them."""


MAX_SMALL_FILE = 128 << 20
"""The largest tokenizers have a quarter of it."""

MOST_FILES = 1000
"""Files that may go along with a model's weights; the largest models have some dozens."""

_LONGEST_PATH = 180
"""Bytes of a path: short enough that it fits a single file name with its slashes written otherwise."""


def inner_path(name: str) -> bool:
    """Whether a name, a stranger's, leads to a file of a folder, or of a folder in it that is not hidden, and nowhere else."""
    odd = not name.isprintable() or set(name) & set("\\:") or len(name.encode("utf-8", "replace")) > _LONGEST_PATH
    parts = name.split("/")
    return not odd and all(parts) and not any(part in (".", "..") or (part[0] == "." and len(parts) > 1) for part in parts)


class Folder:
    """A model in a folder of this machine, as it stood when it was first looked at: a file that changes later is an error."""

    commit: str | None = None

    def __init__(self, root: Path, label: str) -> None:
        self.root, self.label = root, label
        self._listed: dict[str, FileState] | None = None
        self._below: dict[str, dict[str, FileState]] = {}
        self._used: dict[str, FileState] = {}

    def sizes(self) -> Mapping[str, int]:
        """Files that stand directly in the folder."""
        return {name: state.size for name, state in self._states().items()}

    def _states(self) -> Mapping[str, FileState]:
        if self._listed is None:
            try:
                self._listed = settled(self._look)
            except OSError as error:
                raise CheckpointError(f"{self.label}: {error.strerror or error}") from None
        return self._listed

    def _look(self) -> dict[str, FileState]:
        files = [entry for entry in sorted(self.root.iterdir()) if entry.is_file()]
        for entry in files:
            self._check_link(entry)
        return {entry.name: FileState.of(entry.stat()) for entry in files}

    def below(self, folder: str) -> Mapping[str, int]:
        """Links to folders are not followed; a link to a file is, within the model."""
        if folder not in self._below:
            try:
                self._below[folder] = settled(lambda: dict(sorted(self._walk(self.root / folder))))
            except OSError as error:
                raise CheckpointError(f"{self.label}/{folder}: {error.strerror or error}") from None
        return {name: state.size for name, state in self._below[folder].items()}

    def _walk(self, root: Path) -> Iterator[tuple[str, FileState]]:
        if root.is_dir() and not root.resolve().is_relative_to(self.root.resolve()):
            raise CheckpointError(f"{self.label}/{root.name}: a link out of the model's folder: put a copy there instead")
        count = 0
        for folder, _, files in os.walk(root):
            for entry in (Path(folder, file) for file in files):
                name = entry.relative_to(self.root).as_posix()
                if not entry.is_file() or any(part.startswith(".") for part in name.split("/")):
                    continue
                self._check_link(entry)
                if not inner_path(name):
                    raise CheckpointError(f"{self.label}/{name}: the name is too long or odd to be copied: give it another")
                count += 1
                if count > MOST_FILES:
                    raise CheckpointError(f"{self.label}: {root.name} holds more than {MOST_FILES} files")
                yield name, FileState.of(entry.stat())

    def _check_link(self, entry: Path) -> None:
        """A link in a model from a stranger could bring any file of this machine into the result. The Hub's own are let be."""
        if not entry.is_symlink():
            return
        target = entry.resolve()
        in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
        if not in_cache and not target.is_relative_to(self.root.resolve()):
            raise CheckpointError(
                f"{self.label}/{entry.name}: a link to {target}, outside the model's folder: "
                "put a copy or a hard link there instead"
            )

    def read(self, name: str) -> bytes:
        """A small file, whole."""
        with self.open(name) as file:
            data = file.read(MAX_SMALL_FILE + 1)
            if len(data) > MAX_SMALL_FILE:
                raise CheckpointError(f"{self.label}/{name}: too large for such a file ({MAX_SMALL_FILE} bytes at most)")
            check_state(file, self.state(name), f"{self.label}/{name}")  # nobody wrote to it meanwhile
        return data

    def open(self, name: str) -> BinaryIO:
        """The file itself. Raises InputChanged where it is not what it was when the folder was first looked at."""
        state = self.state(name)
        self._used[name] = state
        return open_in_state(self.root / name, state, f"{self.label}/{name}")

    def identity(self, name: str) -> str:
        """Size and time of the last change of its bytes."""
        state = self.state(name)
        return f"{state.size}:{state.modified}"

    def path(self, name: str) -> Path | None:
        """Always here."""
        return self.root / name

    def state(self, name: str) -> FileState:
        """As when the folder was first looked at."""
        for states in (self._states(), *self._below.values()):
            if name in states:
                return states[name]
        raise CheckpointError(f"{self.label}/{name}: not there")

    def used(self) -> Mapping[str, FileState]:
        """What was opened."""
        return self._used

    def cached(self, name: str) -> CachedFile | None:
        """A folder's files are what they are."""
        return None

    def notes(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        """A folder's files are here; one that is not is gone."""
        raise CheckpointError(f"{self.label}/{names[0]}: not there")


def open_in_state(path: Path, state: FileState, label: str) -> BinaryIO:
    """Open a file that must still be in this state. Raises CheckpointError, or InputChanged, with `label` for its name."""
    try:
        file = open_file(path)
    except OSError as error:
        raise CheckpointError(f"{label}: {error.strerror or error}") from None
    try:
        check_state(file, state, label)
    except BaseException:
        file.close()
        raise
    return file


def check_state(file: BinaryIO | int, state: FileState, label: str) -> None:
    """Raise InputChanged, which names the file by `label`, where an open file is not in the state that it must be in."""
    try:
        found = FileState.of(os.fstat(file if isinstance(file, int) else file.fileno()))
    except OSError as error:
        raise CheckpointError(f"{label}: {error.strerror or error}") from None
    if found != state:
        raise changed(label)


def changed(label: str) -> InputChanged:
    """The error for a file that is no longer what it was."""
    return InputChanged(
        f"{label}: changed since weft planned with it: let nothing write to the models meanwhile, and give the command again"
    )
