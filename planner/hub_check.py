"""Compares files in the Hub's cache with the digests of their contents, once a file: a note in the cache says that it was done.

Notes stand in `.weft` in the model's folder of the cache, one for each file, and go with that folder. Where none can be written,
as in a cache that others own, files are compared again each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .content_digest import has_digest
from .file_state import FileState
from .store import check_state, open_in_state


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file in the cache, the state it is in, and the digest that its contents must have."""

    label: str
    path: Path
    state: FileState
    digest: str

    @property
    def note(self) -> Path:
        """Where it is noted that this file was compared."""
        blob = self.path.resolve()
        inside = next((i for i, part in enumerate(reversed(blob.parts)) if part.startswith("models--")), 1)
        root = blob.parents[inside - 1] if inside else blob.parent
        key = hashlib.sha256(blob.relative_to(root).as_posix().encode()).hexdigest()[:32]
        return root / ".weft" / key

    def known(self) -> bool:
        """Whether this very file was compared before."""
        with suppress(OSError, UnicodeDecodeError):
            return self.note.read_text() == self._said()
        return False

    def check(self, seen: Callable[[int], None] = lambda nbytes: None) -> None:
        """Compare it, and take note. Raises CheckpointError where its bytes are others, InputChanged where they change."""
        with open_in_state(self.path, self.state, self.label) as file:
            try:
                same = has_digest(file, self.state.size, self.digest, seen)
            except OSError as error:
                raise CheckpointError(f"{self.label}: {error.strerror or error}") from None
            check_state(file, self.state, self.label)
        if not same:
            raise other_bytes(self.label, self.path)
        with suppress(OSError):
            self.note.parent.mkdir(exist_ok=True)
            self.note.write_text(self._said())

    def _said(self) -> str:
        state = self.state
        return f"{self.digest} {state.size} {state.modified} {state.changed}\n"


def other_bytes(label: str, path: Path) -> CheckpointError:
    """The error for a file whose contents are not what the Hub has."""
    return CheckpointError(
        f"{label}: its bytes are not those that the Hub has, by their checksum: a mirror, a proxy or a disk changed them; delete "
        f"{path.resolve()} and give the command again, which downloads it again"
    )
