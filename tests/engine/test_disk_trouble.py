"""Full disks, failing disks and inputs that change under a run: one line, nothing that looks finished, and a way to continue."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import weft.engine.journal
from merges import MIB, hashes, linear, merge, nothing_looks_finished, plan, recipe, write_config, write_model, write_two
from weft.cli import main as command_line
from weft.engine import reader
from weft.engine.events import BytesRead
from weft.engine.folder import HeldFolder
from weft.engine.journal import Record
from weft.engine.run import run
from weft.engine.system import read_into
from weft.errors import CheckpointError, DiskError, OutputError


def failing(function: Callable[..., Any], number: int, after: int = 0) -> Callable[..., Any]:
    """The function, which fails with an error number from its call number `after` on."""
    calls = [0]

    def call(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **named)

    return call


def continues(out: Path, config: dict[str, Any], tmp_path: Path) -> None:
    """Once the trouble is over, the same call gives what an undisturbed one gives."""
    merge(config, out)
    merge(config, tmp_path / "undisturbed")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "undisturbed" / "model.safetensors").read_bytes()
    assert hashes(out).keys() == hashes(tmp_path / "undisturbed").keys()


def test_too_little_disk_is_known_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("weft.engine.system.free_disk", lambda folder: 1000)
        with pytest.raises(DiskError, match="are missing") as caught:
            merge(config, out)
    assert caught.value.exit_code == 3 and caught.value.missing > 0
    assert nothing_looks_finished(out) and not list(out.glob("*.partial"))
    continues(out, config, tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_reserving_the_shards_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", failing(os.posix_fallocate, number))
        with pytest.raises(DiskError, match="disk is full"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_the_disk_fills_up_while_tensors_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, errno.ENOSPC, after))
        with pytest.raises(DiskError, match="disk is full"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)


@pytest.mark.parametrize("after", [1, 2])
def test_the_disk_turns_out_full_when_data_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing(os.fdatasync, errno.ENOSPC, after))
        with pytest.raises(DiskError, match="disk is full"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)


def test_the_journal_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its database may not grow, so SQLite says what it says on a full disk."""
    names = [f"models.{i}.{'x' * 900}.weight" for i in range(30)]
    wide = write_model(tmp_path / "wide", {name: torch.ones(8) for name in names})
    config, out = {"merge_method": "passthrough", "models": [{"model": str(wide)}]}, tmp_path / "out"
    connect = weft.engine.journal._connect

    def small(path: Path) -> tuple[sqlite3.Connection, dict[str, Record]]:
        db, found = connect(path)
        db.execute("PRAGMA max_page_count = 4")
        return db, found

    with monkeypatch.context() as patch:
        patch.setattr(weft.engine.journal, "_connect", small)
        with pytest.raises(DiskError, match="disk is full"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)


@pytest.mark.parametrize("after", range(6))
def test_the_disk_fills_up_while_small_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(HeldFolder, "write", failing(HeldFolder.write, errno.ENOSPC, after))
        with pytest.raises(DiskError, match="disk is full"):
            merge(config, out)
    assert not (out / "weft.json").exists() and (out / ".weft").is_dir()
    assert after or not (out / "config.json").exists()
    continues(out, config, tmp_path)


def test_a_failing_disk_is_no_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing(os.pwrite, errno.EIO, 3))
        with pytest.raises(OutputError, match="Input/output error"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)


def test_a_full_disk_ends_the_command_with_3_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", linear(*write_two(tmp_path)))
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, errno.ENOSPC, 2))
    monkeypatch.setattr("sys.argv", ["weft", "run", str(config), str(tmp_path / "out"), "--quiet"])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("weft: model.safetensors: the disk is full") and "again" in line


# Inputs.


@pytest.mark.parametrize("change", ["shorter", "gone", "longer"])
def test_an_input_that_changed_after_planning(tmp_path: Path, change: str) -> None:
    base, other = write_two(tmp_path)
    made, out, path = plan(linear(base, other)), tmp_path / "out", other / "model.safetensors"
    if change == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (-100 if change == "shorter" else 100))
    with pytest.raises(CheckpointError, match=r"other/model\.safetensors"):
        run(made, out)
    assert nothing_looks_finished(out)


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_input_that_is_cut_short_while_it_is_read(tmp_path: Path, big_models: tuple[Path, Path], method: str) -> None:
    base, other = big_models[0], tmp_path / "other"
    shutil.copytree(big_models[1], other)
    out, seen = tmp_path / "out", list[object]()

    def cut(event: object) -> None:
        if isinstance(event, BytesRead) and not seen:
            seen.append(event)
            os.truncate(other / "model.safetensors", MIB)

    with pytest.raises(CheckpointError, match=r"other/model\.safetensors: changed since weft planned with it"):
        run(plan(recipe(method, base, other), ram=64 * MIB), out, cut)
    assert seen and nothing_looks_finished(out)


def test_an_input_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = write_two(tmp_path)
    config, out = linear(base, other), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(reader, "read_into", failing(read_into, errno.EIO, 3))
        with pytest.raises(CheckpointError, match="could not be read: Input/output error"):
            merge(config, out)
    assert nothing_looks_finished(out)
    continues(out, config, tmp_path)
