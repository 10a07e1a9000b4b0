"""The journal and the partial shards that it speaks of."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from merges import linear, plan, write_two
from weft.engine.directory import Directory
from weft.engine.events import Event, RunStarted, TensorDurable
from weft.engine.folder import drop_partials, durable
from weft.engine.journal import Facts, Journal, Record
from weft.engine.run import run
from weft.engine.shard_writer import PARTIAL, ShardWriter
from weft.planner.shards import OutputPlace, Shard

A = Record("a.weight", "d1", "model.safetensors", 96, 40, "ff00" * 8, Facts(10, 3, 1, 2))
B = Record("b.weight", "d2", "model.safetensors", 136, 8, "ee11" * 8, Facts())


def journal(path: Path, *records: Record) -> None:
    opened = Journal(path)
    opened.add(records)
    opened.close()


def records(path: Path) -> dict[str, Record]:
    opened = Journal(path)
    try:
        return opened.records()
    finally:
        opened.close()


def test_records_survive(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal(path, A, B)
    assert records(path) == {"a.weight": A, "b.weight": B}


def test_a_record_is_readable_before_the_journal_is_closed(tmp_path: Path) -> None:
    """A killed process closes nothing."""
    path = tmp_path / "journal.sqlite"
    opened = Journal(path)
    opened.add([A])
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        (tmp_path / f"copy-{name}").write_bytes((tmp_path / name).read_bytes())
    opened.close()
    (tmp_path / "copy-journal.sqlite-wal").rename(tmp_path / "copy.sqlite-wal")
    (tmp_path / "copy-journal.sqlite").rename(tmp_path / "copy.sqlite")
    assert records(tmp_path / "copy.sqlite") == {"a.weight": A}


def test_commits_reach_the_disk(tmp_path: Path) -> None:
    opened = Journal(tmp_path / "journal.sqlite")
    assert opened._db.execute("PRAGMA synchronous").fetchone() == (2,)
    opened.close()


def test_a_newer_record_replaces_an_older(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    newer = Record("a.weight", "d9", "model.safetensors", 0, 4, "aa" * 16, Facts(1, 1, 0, 0))
    journal(path, A, B)
    journal(path, newer)
    assert records(path) == {"a.weight": newer, "b.weight": B}


def test_what_is_not_kept_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal(path, A, B)
    opened = Journal(path)
    opened.keep(["b.weight", "never.there"])
    opened.close()
    assert records(path) == {"b.weight": B}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no database": lambda data: b"not a database at all" * 300,
    "an empty file": lambda data: b"",
    "its first page zeroed": lambda data: bytes(4096) + data[4096:],
    "cut short": lambda data: data[:1000],
    "its table overwritten": lambda data: data[:4096] + b"\xff" * (len(data) - 4096),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_journal_is_begun_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.sqlite"
    journal(path, A)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert records(path) == {}
    journal(path, B)
    assert records(path) == {"b.weight": B}


def test_the_journal_of_another_version_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal(path, A)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()
    assert records(path) == {}
    journal(path, A)
    assert records(path) == {"a.weight": A}


def shard(name: str = "model.safetensors", size: int = 64) -> Shard:
    header = (8).to_bytes(8, "little") + b"{}      "
    return Shard(name, header, size, (0,))


def test_a_partial_shard_is_continued(tmp_path: Path) -> None:
    first = ShardWriter(Directory.open(tmp_path), [shard()])
    assert first.fresh == [True]
    first.write(0, 20, memoryview(b"hello"))
    first.sync({0})
    first.close()
    again = ShardWriter(Directory.open(tmp_path), [shard()])
    assert again.fresh == [False]
    again.write(0, 16, memoryview(b"well"))
    again.close()
    data = (tmp_path / f"model.safetensors{PARTIAL}").read_bytes()
    assert data[:16] == shard().header and data[16:25] == b"wellhello" and len(data) == 64


@pytest.mark.parametrize("change", ["size", "header", "short"])
def test_a_partial_shard_of_another_layout_is_begun_anew(tmp_path: Path, change: str) -> None:
    path = tmp_path / f"model.safetensors{PARTIAL}"
    writer = ShardWriter(Directory.open(tmp_path), [shard()])
    writer.write(0, 16, memoryview(b"x" * 48))
    writer.close()
    if change == "header":
        path.write_bytes(b"y" * 16 + path.read_bytes()[16:])
    elif change == "short":
        os.truncate(path, 40)
    wanted = shard(size=72 if change == "size" else 64)
    again = ShardWriter(Directory.open(tmp_path), [wanted])
    again.close()
    assert again.fresh == [True]
    assert path.read_bytes() == wanted.header + bytes(wanted.size - 16)


def test_shards_of_another_layout_are_removed_and_others_left(tmp_path: Path) -> None:
    keep = ["notes.txt", "model.safetensors.partial", "weights.safetensors", "model-00001-of-00003.safetensors", "weft.json"]
    stale = ["model-00001-of-00003.safetensors.partial", "model-00002-of-00003.safetensors.partial"]
    for name in (*keep, *stale):
        (tmp_path / name).write_bytes(b"x")
    drop_partials(Directory.open(tmp_path), ["model.safetensors"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(keep)


@pytest.mark.parametrize("change", [None, "digest", "shard", "offset", "nbytes", "fresh", "missing"])
def test_only_what_is_proven_counts_as_done(change: str | None) -> None:
    place = OutputPlace(0, 96, 40)
    shards = [shard("other.safetensors" if change == "shard" else "model.safetensors")]
    if change == "offset":
        place = OutputPlace(0, 97, 40)
    if change == "nbytes":
        place = OutputPlace(0, 96, 41)
    digest = "d0" if change == "digest" else "d1"
    known = {} if change == "missing" else {"a.weight": A}
    found = durable(known, [("a.weight", digest)], [place], shards, [change == "fresh"])
    assert found == ({0: A} if change is None else {})


def test_what_a_changed_config_leaves_alone_is_reused(tmp_path: Path) -> None:
    """Of an unfinished folder, tensors are computed again only if what makes them changed."""
    base, other = write_two(tmp_path)
    filters = {"weight": [{"filter": "mlp", "value": 0.25}, {"value": 0.5}]}
    first = linear(base, other)
    changed = linear(base, other)
    changed["models"][1]["parameters"] = filters
    out = tmp_path / "out"

    class Stop(Exception):
        pass

    def stop_late(event: Event) -> None:
        seen.append(event)
        if sum(isinstance(one, TensorDurable) for one in seen) == 7:
            raise Stop

    seen: list[object] = []
    with pytest.raises(Stop):
        run(plan(first), out, stop_late)
    events: list[Event] = []
    summary = run(plan(changed), out, lambda event: events.append(event))
    assert summary is not None
    started = next(event for event in events if isinstance(event, RunStarted))
    assert 0 < started.reused == summary.reused <= 7
    assert summary.computed + summary.reused == summary.tensors == 9
    run(plan(changed), tmp_path / "fresh")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "fresh" / "model.safetensors").read_bytes()
