"""Where a model's files are: the seam between the planner and folders, the Hub, or anything else that can serve byte ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from ..errors import CheckpointError


class Store(Protocol):
    """One model's files. All methods may raise CheckpointError."""

    label: str
    """The model as the user named it."""

    commit: str | None
    """The pinned revision, for a store that has revisions."""

    def sizes(self) -> Mapping[str, int]:
        """Every file by its name relative to the model, with its bytes."""

    def read(self, name: str) -> bytes:
        """A small file, whole."""

    def open(self, name: str) -> BinaryIO:
        """A seekable file of which only the parts asked for are fetched."""

    def identity(self, name: str) -> str:
        """Text that changes whenever the file's bytes do."""

    def path(self, name: str) -> Path | None:
        """The file on this machine, or None where it is not here yet."""

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        """Bring files to this machine, so that `path` finds them."""


MAX_SMALL_FILE = 128 << 20
"""The largest tokenizers have a quarter of it."""


class Folder:
    """A model in a folder of this machine."""

    commit: str | None = None

    def __init__(self, root: Path, label: str) -> None:
        self.root, self.label = root, label

    def sizes(self) -> Mapping[str, int]:
        """Files that stand directly in the folder."""
        try:
            files = [entry for entry in sorted(self.root.iterdir()) if entry.is_file()]
            for entry in files:
                self._check_link(entry)
            return {entry.name: entry.stat().st_size for entry in files}
        except OSError as error:
            raise CheckpointError(f"{self.label}: {error.strerror or error}") from None

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
            raise CheckpointError(f"{self.label}/{name}: too large for what it is ({MAX_SMALL_FILE} bytes at most)")
        return data

    def open(self, name: str) -> BinaryIO:
        """The file itself."""
        try:
            return (self.root / name).open("rb")
        except OSError as error:
            raise CheckpointError(f"{self.label}/{name}: {error.strerror or error}") from None

    def identity(self, name: str) -> str:
        """Size and time of the last change."""
        try:
            status = (self.root / name).stat()
        except OSError as error:
            raise CheckpointError(f"{self.label}/{name}: {error.strerror or error}") from None
        return f"{status.st_size}:{status.st_mtime_ns}"

    def path(self, name: str) -> Path | None:
        """Always here."""
        return self.root / name

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        """A folder's files are here; one that is not is gone."""
        raise CheckpointError(f"{self.label}/{names[0]}: not there")
