"""Files that are damaged in ways that no library notices: one line or a fresh start, no traceback, no waiting."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.command import weft
from merges import hashes, linear, merge, plan, write_config, write_two
from trials import trials
from weft.engine.directory import Directory
from weft.engine.events import Event, TensorDurable
from weft.engine.folder import OutputFolder, hold
from weft.engine.journal import Facts, Journal, Record
from weft.engine.lock import OWNER, _this_process
from weft.engine.run import run
from weft.engine.shard_writer import ShardWriter
from weft.engine.verify import verify
from weft.errors import Interrupted, OutputError

SHARD = 12_000


class Stop(Exception):
    """Raised by an observer."""


def stop(event: Event) -> None:
    if isinstance(event, TensorDurable):
        raise Stop


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """Two models, their config, a `begun` and a `whole` result."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        root = Path(folder)
        config = linear(*write_two(root))
        write_config(root / "config.yaml", config)
        with pytest.raises(Stop):
            run(plan(config, shard_size=SHARD), root / "begun", stop)
        merge(config, root / "whole", shard_size=SHARD)
        yield root


def copy(root: Path, which: str) -> Path:
    shutil.rmtree(root / "out", ignore_errors=True)
    return Path(shutil.copytree(root / which, root / "out"))


def survives(root: Path, out: Path) -> None:
    """Whatever is looked at or run ends in one line; a run that ends well leaves the right bytes."""
    size = ("--out-shard-size", str(SHARD))
    for command in (("status", out), ("plan", root / "config.yaml", out, *size), ("verify", out)):
        looked = weft(*command)
        assert looked.code == 0 or looked.line
    ended = weft("run", root / "config.yaml", out, *size, "-q")
    if ended.code == 0:
        assert not verify(out).damage and hashes(out) == hashes(root / "whole")
    else:
        assert ended.line


VALUES = st.one_of(
    st.none(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from(["[1,2,3]", "[1,2,3,4,5]", '["a",0,0,0]', "[-1,0,0,0]", "[" * 500, "[1e999,0,0,0]", "null", b"\xff\xfe"]),
)
COLUMNS = ("name", "digest", "shard", "offset", "nbytes", "checksum", "facts")


@trials(25)
@given(column=st.sampled_from(COLUMNS), value=VALUES, every=st.booleans())
def test_a_row_that_proves_nothing_is_deleted(root: Path, column: str, value: object, every: bool) -> None:
    out = copy(root, "begun")
    journal = out / ".weft" / "journal.sqlite"
    db = sqlite3.connect(journal)
    where = "" if every else " WHERE name = (SELECT min(name) FROM tensors)"
    try:
        with db:
            db.execute(f"UPDATE OR IGNORE tensors SET {column} = ?{where}", (value,))
    except sqlite3.IntegrityError:
        return  # a null
    finally:
        db.close()
    survives(root, out)


@trials(10)
@given(key=st.sampled_from(["tensors", "nbytes", "kept", "kept_bytes", "found_bytes", "began", "more"]), value=VALUES)
def test_a_damaged_progress(root: Path, key: str, value: object) -> None:
    out = copy(root, "begun")
    db = sqlite3.connect(out / ".weft" / "journal.sqlite")
    try:
        with db:
            db.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", (key, value))
    except sqlite3.IntegrityError:
        return
    finally:
        db.close()
    survives(root, out)


@pytest.mark.parametrize(
    "change", ["DROP TABLE tensors", "ALTER TABLE tensors RENAME COLUMN digest TO d", "CREATE VIEW v AS SELECT 1"]
)
def test_a_journal_of_other_tables_is_begun_anew(root: Path, change: str) -> None:
    out = copy(root, "begun")
    db = sqlite3.connect(out / ".weft" / "journal.sqlite")
    db.execute(change)
    db.commit()
    db.close()
    survives(root, out)


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*here, key))


ABSURD: st.SearchStrategy[object] = st.sampled_from(
    [None, True, -1, 1 << 70, 1e308, float("inf"), float("nan"), "x", "../../x", [], {}, [[]], {"a": []}, 10**400]
)


@trials(25)
@given(data=st.data(), value=ABSURD)
def test_an_absurd_manifest(root: Path, data: st.DataObject, value: object) -> None:
    out = copy(root, "whole")
    manifest = json.loads((out / "weft.json").read_text())
    *where, last = data.draw(st.sampled_from([path for path in paths(manifest) if path]))
    inner = manifest
    for key in where:
        inner = inner[key]
    inner[last] = value
    (out / "weft.json").write_text(json.dumps(manifest))
    for command in (("verify", out), ("verify", out, "--repair"), ("status", out), ("plan", root / "config.yaml", out)):
        done = weft(*command)
        assert done.code == 0 or done.out or done.line, done


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{}", "7", '{"shards": 7, "files": [], "remove": []}', '{"shards": "ab", "files": [], "remove": []}', "\xff"],
)
def test_a_damaged_intent(root: Path, text: str) -> None:
    out = copy(root, "begun")
    (out / ".weft" / "swap").write_text(text, encoding="latin-1")
    ended = weft("run", root / "config.yaml", out, "-q")
    assert ended.line.endswith(f"swap is damaged: delete {out} and give the command again")
    assert weft("verify", out, "--repair").line and weft("status", out).code == 0


SAVED: dict[str, tuple[object, ...]] = {
    "ram": (0, -1, 1 << 80, True, "1"),
    "vram": (-1, 1 << 80),
    "workers": (0, -1, 10**9, 10**30),
    "device": ("", "x" * 999, "cuda:9999"),
    "shard_size": (0, -1, 1 << 80),
    "seed": (1 << 200, 0.5),
    "copy_tokenizer": (0, "no"),
}


def test_a_saved_plan_of_absurd_options(root: Path) -> None:
    saved = root / "saved.json"
    assert weft("plan", root / "config.yaml", "--save", saved).code == 0
    good = json.loads(saved.read_text())
    for key, values in SAVED.items():
        for value in values:
            saved.write_text(json.dumps({**good, "settings": {**good["settings"], key: value}}))
            for command in (("plan", saved), ("run", saved, root / "never")):
                done = weft(*command)
                assert done.line, (key, value, done)
    assert not (root / "never").exists()


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_configs_and_plans_that_never_end(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    assert "a pipe or a device" in weft("plan", path).line


# Folders that may not be read, and folders that go away.


def test_a_folder_that_may_not_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as a user who may read everything, so the system's answer is given here."""
    out = copy(root, "begun")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.parent.name == ".weft":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    for command in (("status", out), ("verify", out), ("plan", root / "config.yaml", out), ("run", root / "config.yaml", out)):
        assert "Permission denied" in weft(*command).line


def test_a_lock_that_may_not_be_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = copy(root, "whole")
    (out / ".weft").mkdir()
    real = os.open

    def refuse(path: Any, *more: Any, **named: Any) -> int:
        if path == "lock":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert f"{out}/.weft/lock: Permission denied" in weft("verify", out, "--repair").line
    assert "Permission denied" in weft("run", root / "config.yaml", out).line


def test_repair_beside_a_run_that_just_ends(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its work folder is there when it is looked at and gone when the lock is taken."""
    out = copy(root, "whole")
    (out / ".weft").mkdir()
    real = Directory.folder

    def ended(self: Directory, name: str, **more: Any) -> Directory:
        found = real(self, name, **more)
        if name == ".weft" and not seen:
            seen.append(name)
            (out / ".weft").rmdir()
        return found

    seen: list[str] = []
    monkeypatch.setattr(Directory, "folder", ended)
    assert "as written" in weft("verify", out, "--repair").out and seen
    assert not (out / ".weft").exists()


def test_a_result_that_is_replaced_while_it_is_verified(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = copy(root, "whole")
    shard = next(out.glob("model-*.safetensors"))

    def replaced(*arguments: object) -> tuple[list[Any], tuple[str, ...]]:
        merge(linear(root / "base", root / "other"), out, shard_size=10**9)
        return [], ()

    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    monkeypatch.setattr("weft.engine.verify._small_files", replaced)
    with pytest.raises(OutputError, match="was written to while it was verified"):
        verify(out)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_work_folder_that_is_removed_while_a_run_goes_on(root: Path, error: type[BaseException] | None, earlier: bool) -> None:
    out = root / "removed"
    shutil.rmtree(out, ignore_errors=True)
    config = linear(root / "base", root / "other")
    if earlier:
        merge(linear(root / "other", root / "base", dtype="float16"), out)

    def remove(event: Event) -> None:
        if isinstance(event, TensorDurable) and (out / ".weft").exists():
            shutil.rmtree(out / ".weft")
            if error is not None:
                raise error

    with pytest.raises(Interrupted if error else OutputError, match=r"was removed while weft wrote there.* start over"):
        run(plan(config, shard_size=SHARD), out, remove)
    merge(config, out, shard_size=SHARD)
    assert hashes(out) == hashes(root / "whole")


def test_rows_go_before_the_shards_that_they_speak_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of another layout may hold a tensor at the same place: its row must not outlive the old shard."""
    out = copy(root, "begun")
    config = linear(root / "base", root / "other")

    class Killed(ShardWriter):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            raise Stop

    for index, shard in enumerate(out.glob("*.partial")):
        data = bytearray(shard.read_bytes())
        data[100] ^= 1 + index  # in its header
        shard.write_bytes(data)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr("weft.engine.run.ShardWriter", Killed)
        run(plan(config, shard_size=SHARD), out)
    merge(config, out, shard_size=SHARD)
    assert hashes(out) == hashes(root / "whole")


# File systems without locks.


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_without_locks_a_file_says_who_writes(root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    seen: list[int] = []
    owner = out / ".weft" / OWNER

    def look(event: Event) -> None:
        if isinstance(event, TensorDurable) and not seen:
            seen.append(json.loads(owner.read_text())["pid"])
            assert OutputFolder(out).locked and weft("status", out).out.split(": ")[1].startswith("running")
            with pytest.raises(OutputError, match=rf"another weft is writing .*{OWNER} \(process {os.getpid()} on .*delete it"):
                run(plan(linear(root / "base", root / "other")), out)

    merge(linear(root / "base", root / "other"), out, look, shard_size=SHARD)
    assert seen == [os.getpid()] and hashes(out) == hashes(root / "whole")


GONE: dict[str, object] = {"pid": 2**22 + 1}  # larger than any process's number
OTHERS: dict[str, tuple[dict[str, object], bool]] = {
    "a process that is gone": (GONE, True),
    "a later process of its number": ({"started": "1"}, True),
    "this process": ({}, False),
    "another machine": ({**GONE, "host": "elsewhere"}, False),
    "a machine of the same name": ({**GONE, "machine": "another boot"}, False),
    "nobody": ({"pid": "x"}, False),
}


@pytest.mark.parametrize("who", OTHERS)
@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_that_was_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, locks: bool) -> None:
    change, goes = OTHERS[who]
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda handle, how: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    (tmp_path / ".weft").mkdir()
    (tmp_path / ".weft" / OWNER).write_text(json.dumps({**_this_process(), **change}))
    assert OutputFolder(tmp_path).locked is not goes
    if goes:
        with hold(tmp_path):
            assert (tmp_path / ".weft" / OWNER).exists() is not locks
    else:
        with pytest.raises(OutputError, match=OWNER), hold(tmp_path):
            pass
    assert (tmp_path / ".weft" / OWNER).exists() is not goes


def test_a_journal_without_locks_goes_on_with_one_that_had_them(tmp_path: Path) -> None:
    path, record = tmp_path / "journal.sqlite", Record("a", "d", "model.safetensors", 96, 40, "ff00" * 8, Facts())
    for owner in (False, True, True, False):
        (tmp_path / OWNER).touch() if owner else (tmp_path / OWNER).unlink(missing_ok=True)
        opened = Journal(path)
        assert opened.records() in ({}, {"a": record})
        opened.add([record])
        opened.close()
    opened = Journal(path)
    assert opened.records() == {"a": record}
    opened.close()
