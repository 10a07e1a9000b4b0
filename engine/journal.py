"""The journal of an unfinished output folder: which tensors are on the disk, what made them, and their checksums.

Invariant: a record refers only to bytes that were synced before it was committed.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

JOURNAL_VERSION = 2


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen while a tensor was computed: elements that differ from the base model's, and values that are no numbers.

    `compared` is 0 where the base model has no such tensor.
    """

    compared: int = 0
    differing: int = 0
    nan: int = 0
    inf: int = 0

    def __add__(self, other: Facts) -> Facts:
        return Facts(self.compared + other.compared, self.differing + other.differing, self.nan + other.nan, self.inf + other.inf)


@dataclass(frozen=True, slots=True)
class Record:
    """One durable tensor: where it stands, what made it, and the xxh3-128 checksum of its bytes.

    `digest` is the recipe's; in the journal of an unfinished folder it is the proof that `engine/proof` makes of it.
    """

    name: str
    digest: str
    shard: str
    offset: int
    nbytes: int
    checksum: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run had to do when it began: tensors and bytes of the whole result, how many tensors are not in the journal because
    their shards stay as they are, with their bytes, and how many bytes were done; `began` is in seconds of Unix time.
    """

    tensors: int
    nbytes: int
    kept: int
    kept_bytes: int
    found_bytes: int
    began: int


class Journal:
    """The journal in one SQLite file. Use from one thread at a time. Raises OSError where the disk fails or is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _disk_errors():
            self._db = self._open()
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, JOURNAL_VERSION):
                self.close()
                self._remove()
                self._db = self._open()
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS tensors (name TEXT PRIMARY KEY, digest TEXT NOT NULL, shard TEXT NOT NULL, "
                "offset INTEGER NOT NULL, nbytes INTEGER NOT NULL, checksum TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID")
            self._db.execute(f"PRAGMA user_version = {JOURNAL_VERSION}")
            self._db.commit()

    def _open(self) -> sqlite3.Connection:
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if _code(error) in _OF_THE_DISK:
                raise
            # Damaged beyond reading: what it recorded is computed again.
            self._remove()
            return _connect(self._path)

    def _remove(self) -> None:
        for name in (self._path, *(self._path.with_name(self._path.name + end) for end in ("-wal", "-shm"))):
            name.unlink(missing_ok=True)

    def records(self) -> dict[str, Record]:
        """All durable tensors by name."""
        with _disk_errors():
            return _records(self._db)

    def begin(self, progress: Progress) -> None:
        """Note what a run that begins now has to do, for those who watch it."""
        with _disk_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", asdict(progress).items())

    def add(self, records: Iterable[Record]) -> None:
        """Record tensors whose bytes are synced; returns when the records are on the disk."""
        with _disk_errors(), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO tensors VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        r.name,
                        r.digest,
                        r.shard,
                        r.offset,
                        r.nbytes,
                        r.checksum,
                        json.dumps([r.facts.compared, r.facts.differing, r.facts.nan, r.facts.inf]),
                    )
                    for r in records
                ],
            )

    def forget(self, names: Iterable[str]) -> None:
        """Remove records, before what they refer to is overwritten."""
        with _disk_errors(), self._db:
            self._db.executemany("DELETE FROM tensors WHERE name = ?", [(name,) for name in names])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def read_records(path: Path) -> dict[str, Record]:
    """The records of a journal that another process may be writing; none where there is none to be read."""
    with suppress(sqlite3.Error, OSError), closing(_read_only(path)) as db:
        return _records(db)
    return {}


def read_progress(path: Path) -> Progress | None:
    """What a journal says of the run that writes it, or wrote it last; None where there is none to be read."""
    with suppress(sqlite3.Error, OSError, TypeError), closing(_read_only(path)) as db:
        return Progress(**dict(db.execute("SELECT key, value FROM run")))
    return None


def _read_only(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    if db.execute("PRAGMA user_version").fetchone()[0] != JOURNAL_VERSION:
        db.close()
        raise sqlite3.DatabaseError("another version")
    return db


def _records(db: sqlite3.Connection) -> dict[str, Record]:
    rows = db.execute("SELECT name, digest, shard, offset, nbytes, checksum, facts FROM tensors")
    return {row[0]: Record(row[0], row[1], row[2], row[3], row[4], row[5], Facts(*json.loads(row[6]))) for row in rows}


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


_OF_THE_DISK = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
}
"""SQLite's errors that say nothing about the file's contents."""


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 where Python's own module raised it."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if _code(error) == sqlite3.SQLITE_FULL else errno.EIO
        raise OSError(number, f"the journal: {error}") from None
