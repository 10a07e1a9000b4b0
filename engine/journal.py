"""The journal of an unfinished output folder: which tensors are on the disk, what made them, and their checksums.

Invariant: a record refers only to bytes that were synced before it was committed.
"""

from __future__ import annotations

import errno
import json
import re
import sqlite3
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from ..errors import OutputError
from ..planner.json_text import loads
from .lock import OWNER

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
    """The journal in one SQLite file. Use from one thread at a time.

    A file that is damaged, of another version or no file of its own (a link, say) is removed and begun anew: what it recorded is
    computed again. Raises OSError where the disk fails or is full, OutputError where a folder stands in its place.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _disk_errors():
            self._db, self._records = self._open()

    def _open(self) -> tuple[sqlite3.Connection, dict[str, Record]]:
        try:
            if all(_is_own(path) for path in _files(self._path)):
                return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if _code(error) in _OF_THE_DISK:
                raise
        for path in _files(self._path):
            _remove(path)
        return _connect(self._path)

    def records(self) -> dict[str, Record]:
        """All durable tensors by name. Rows that cannot be true are left out."""
        return dict(self._records)

    def begin(self, progress: Progress) -> None:
        """Note what a run that begins now has to do, for those who watch it."""
        with _disk_errors(), self._db:
            self._db.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", asdict(progress).items())

    def add(self, records: Iterable[Record]) -> None:
        """Record tensors whose bytes are synced; returns when the records are on the disk."""
        added = {record.name: record for record in records}
        with _disk_errors(), self._db:
            self._insert(added.values())
        self._records |= added

    def keep(self, names: Collection[str]) -> None:
        """Remove all rows but these, whatever else stands in the table, before what they refer to is overwritten."""
        kept = {name: record for name, record in self._records.items() if name in names}
        with _disk_errors(), self._db:
            self._db.execute("DELETE FROM tensors")
            self._insert(kept.values())
        self._records = kept

    def _insert(self, records: Iterable[Record]) -> None:
        rows = [(r.name, r.digest, r.shard, r.offset, r.nbytes, r.checksum, json.dumps(astuple(r.facts))) for r in records]
        self._db.executemany("INSERT OR REPLACE INTO tensors VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

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
        found = Progress(**dict(db.execute("SELECT key, value FROM run")))
        return found if all(_is_count(value) for value in asdict(found).values()) else None
    return None


def _read_only(path: Path) -> sqlite3.Connection:
    if not path.exists() or not all(_is_own(file) for file in _files(path)):
        raise FileNotFoundError
    options = "mode=ro&vfs=unix-none" if _without_locks(path) else "mode=ro"
    db = sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True)
    try:
        db.text_factory = _text
        if db.execute("PRAGMA user_version").fetchone()[0] != JOURNAL_VERSION:
            raise sqlite3.DatabaseError("another version")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _files(path: Path) -> list[Path]:
    """The journal and what SQLite writes beside it."""
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm", "-journal")]


def _is_own(path: Path) -> bool:
    """Whether a file has no second name by which another is written, or is not there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        if not path.is_symlink() and path.is_dir():
            raise OutputError(f"{path} is a folder: delete it and give the command again") from None
        raise


def _records(db: sqlite3.Connection) -> dict[str, Record]:
    found = (_record(row) for row in db.execute("SELECT name, digest, shard, offset, nbytes, checksum, facts FROM tensors"))
    return {record.name: record for record in found if record is not None}


def _record(row: tuple[object, ...]) -> Record | None:
    """What a row says; None where it cannot be what weft wrote, and so proves nothing."""
    name, digest, shard, offset, nbytes, checksum, facts = row
    try:
        counts = loads(facts.encode()) if isinstance(facts, str) else None
    except ValueError:
        return None
    texts = all(isinstance(text, str) and _is_text(text) for text in (name, digest, shard, checksum))
    if not texts or not (_is_count(offset) and _is_count(nbytes)) or not re.fullmatch("[0-9a-f]{32}", str(checksum)):
        return None
    if not isinstance(counts, list) or len(counts) != 4 or not all(_is_count(count) for count in counts):
        return None
    seen = Facts(*counts)
    # No element counts twice, nor is there one in less than no bytes.
    if seen.differing > seen.compared or max(seen.compared, seen.nan + seen.inf) > int(nbytes):  # type: ignore[call-overload]
        return None
    return Record(name, digest, shard, offset, nbytes, checksum, seen)  # type: ignore[arg-type]


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_text(text: str) -> bool:
    """Whether it is characters only: what is no UTF-8 is read as halves of characters."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _connect(path: Path) -> tuple[sqlite3.Connection, dict[str, Record]]:
    """The journal to write, and what it proves. Raises sqlite3.DatabaseError where it is damaged or another version's."""
    alone = _without_locks(path)
    options = "?vfs=unix-none" if alone else ""
    db = sqlite3.connect(f"{path.absolute().as_uri()}{options}", uri=True, check_same_thread=False)
    try:
        db.text_factory = _text
        if alone:  # without locks there is no memory that processes share either, which WAL needs
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute(f"PRAGMA journal_mode = {'TRUNCATE' if alone else 'WAL'}")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA fullfsync = ON")
        (health,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(health)
        if not _tables(db):
            for table in _TABLES:
                db.execute(table)
            db.execute(f"PRAGMA user_version = {JOURNAL_VERSION}")
            db.commit()
        if _tables(db) != set(_TABLES) or db.execute("PRAGMA user_version").fetchone()[0] != JOURNAL_VERSION:
            raise sqlite3.DatabaseError("another version")
        return db, _records(db)
    except sqlite3.Error:
        db.close()
        raise


_TABLES = (
    "CREATE TABLE tensors (name TEXT PRIMARY KEY, digest TEXT NOT NULL, shard TEXT NOT NULL, "
    "offset INTEGER NOT NULL, nbytes INTEGER NOT NULL, checksum TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE run (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
)


def _tables(db: sqlite3.Connection) -> set[str]:
    """How everything in a database was made: tables, and what a stranger may have added."""
    return {str(row[0]) for row in db.execute("SELECT sql FROM sqlite_schema")}


def _without_locks(path: Path) -> bool:
    """Whether the file system has no locks, as whoever holds the folder has found out (`engine.lock`)."""
    return path.with_name(OWNER).exists()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


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
