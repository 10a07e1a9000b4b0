"""A prepared output folder leads nowhere else: whatever stands in the place of its files, nothing outside changes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.command import weft
from merges import SIDE, hashes, linear, plan, small_tensors, write_config, write_model, write_two
from weft.engine import directory
from weft.engine.directory import Directory
from weft.engine.events import Event, TensorDurable
from weft.engine.lock import OWNER
from weft.engine.run import run
from weft.engine.verify import verify


class Stop(Exception):
    """Raised by an observer."""


def written_names(root: Path) -> list[str]:
    """Every name, from the output folder, that a run makes or looks for to go on with."""
    seen: set[str] = set()

    def watch(method: str) -> Callable[..., object]:
        real = getattr(Directory, method)

        def called(self: Directory, name: str, *rest: object) -> object:
            seen.add(os.path.relpath(self.path / name, root / "out"))
            for target, new in zip(rest[::2], rest[1::2], strict=False):
                if isinstance(target, Directory):
                    seen.add(os.path.relpath(target.path / str(new), root / "out"))
            return real(self, name, *rest)

        return called

    def look(event: Event) -> None:
        if isinstance(event, TensorDurable):
            seen.update(os.path.relpath(path, root / "out") for path in (root / "out").rglob("*"))

    side = {"tokenizer.json": SIDE["tokenizer.json"]}
    base = write_model(root / "base", small_tensors(1), side=side)
    other = write_model(root / "other", small_tensors(2), side=side)
    with pytest.MonkeyPatch.context() as patch:
        for method in ("create", "replace", "own"):
            patch.setattr(directory.Directory, method, watch(method))
        run(plan(linear(base, other), shard_size=12_000), root / "out", look)
    seen.update(os.path.relpath(path, root / "out") for path in (root / "out").rglob("*"))
    shutil.rmtree(root / "out")
    return sorted(seen | {f".weft/{OWNER}", ".weft/journal.sqlite-journal"})


def interrupted(root: Path) -> Path:
    """An output folder with a work folder and partial shards."""

    def stop(event: Event) -> None:
        if isinstance(event, TensorDurable):
            raise Stop

    with pytest.raises(Stop):
        run(plan(linear(root / "base", root / "other"), shard_size=12_000), root / "out", stop)
    return root / "out"


def outside(root: Path) -> dict[str, bytes | None]:
    """Everything outside of the output folder but the models and the config: name and bytes."""
    there = sorted((root / "outside").rglob("*"))
    return {str(path): path.read_bytes() if path.is_file() else None for path in there}


def link_to(target: str) -> Callable[[Path, Path], None]:
    return lambda place, root: place.symlink_to(root / "outside" / target)


def hard_link(place: Path, root: Path) -> None:
    place.hardlink_to(root / "outside" / "thesis.tex")


def pipe(place: Path, root: Path) -> None:
    os.mkfifo(place)


def folder(place: Path, root: Path) -> None:
    place.mkdir()


PLANTS: dict[str, Callable[[Path, Path], None]] = {
    "a link to a file": link_to("thesis.tex"),
    "a link to nothing": link_to("new.txt"),
    "a link to a folder": link_to("folder"),
    "another name of a file": hard_link,
    "a pipe": pipe,
    "a folder": folder,
}


@pytest.fixture(scope="module")
def prepared() -> Iterator[tuple[Path, list[str], dict[str, str]]]:
    """Where models and an interrupted folder stand, the names, and the hashes of an undisturbed result."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a sync costs nothing
    with tempfile.TemporaryDirectory(dir=memory) as root:
        yield _prepare(Path(root))


def _prepare(root: Path) -> tuple[Path, list[str], dict[str, str]]:
    names = written_names(root)
    write_config(root / "config.yaml", linear(root / "base", root / "other"))
    run(plan(linear(root / "base", root / "other"), shard_size=12_000), root / "whole")
    interrupted(root).rename(root / "begun")
    return root, names, hashes(root / "whole")


def test_the_names_are_those_of_a_run(prepared: tuple[Path, list[str], dict[str, str]]) -> None:
    names = set(prepared[1])
    for known in (
        ".weft",
        ".weft/lock",
        ".weft/journal.sqlite",
        ".weft/journal.sqlite-wal",
        ".weft/journal.sqlite-shm",
        "weft.json",
    ):
        assert known in names
    assert {
        ".weft/swap",
        ".weft/swap.tmp",
        ".weft/weft.json.new",
        ".weft/config.json.new",
        "model-00001-of-00002.safetensors",
    } <= names
    assert "model-00001-of-00002.safetensors.partial" in names and "config.json" in names


@pytest.mark.parametrize("plant", PLANTS)
def test_nothing_outside_changes(prepared: tuple[Path, list[str], dict[str, str]], plant: str) -> None:
    root, names, whole = prepared
    out = root / "out"
    for name in names:
        if plant == "another name of a file" and name == ".weft":
            continue
        shutil.rmtree(root / "outside", ignore_errors=True)
        (root / "outside" / "folder").mkdir(parents=True)
        (root / "outside" / "folder" / "inside.txt").write_text("inside")
        (root / "outside" / "thesis.tex").write_text("years of work")
        shutil.copytree(root / "begun", out)
        place = out / name
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        PLANTS[plant](place, root)
        before = outside(root)
        for command in (("status", out), ("plan", root / "config.yaml", out, "--out-shard-size", "12000")):
            looked = weft(*command)
            assert looked.code == 0 or looked.line, (name, looked)
            assert outside(root) == before, name
        ended = weft("run", root / "config.yaml", out, "--out-shard-size", "12000", "-q")
        assert outside(root) == before, name
        if ended.code:
            assert str(place) in ended.line and ("delete it" in ended.line or "move it away" in ended.line), (name, ended.line)
        else:
            assert not verify(out).damage and hashes(out) == whole, name
        shutil.rmtree(out)


def test_the_output_folder_may_be_a_link(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    run(plan(linear(base, other)), tmp_path / "out")
    assert not verify(tmp_path / "out").damage and (tmp_path / "out").is_symlink() and hashes(tmp_path / "disk")
