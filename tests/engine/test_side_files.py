"""Files in folders of the base model: they come into place, change and go with the result, and are verified and repaired."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import weft
from merges import MODULES, SIDE, linear, merge, plan, recipe, small_tensors, write_model
from weft.engine.folder import HeldFolder, hold
from weft.engine.run import run
from weft.engine.swap import finish_swap
from weft.engine.verify import verify
from weft.errors import OutputError
from weft.planner.describe import describe

NESTED = {name: data for name, data in MODULES.items() if "/" in name}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """The first is made of modules."""
    one = write_model(tmp_path / "one", small_tensors(1), side=SIDE | MODULES)
    return one, write_model(tmp_path / "two", small_tensors(2), side=SIDE)


def nested(out: Path) -> dict[str, bytes]:
    files = [path for path in sorted(out.rglob("*")) if path.parent != out and path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def test_they_are_copied_byte_for_byte_and_listed(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear(*models), out)
    assert nested(out) == NESTED and (out / "modules.json").read_bytes() == MODULES["modules.json"]
    manifest = json.loads((out / "weft.json").read_text())
    assert set(MODULES) < set(manifest["files"]) and any("2_Dense/" in note for note in manifest["notes"])
    about = describe(plan(linear(*models)))["side_files"]
    assert {name: about[name] for name in NESTED} == {name: len(data) for name, data in NESTED.items()}
    again = run(plan(linear(*models)), out)
    assert again is not None and again.already_complete


def test_an_update_changes_and_removes_them(models: tuple[Path, Path], tmp_path: Path) -> None:
    one, out = models[0], tmp_path / "out"
    merge(linear(*models), out)
    (one / "1_Pooling/config.json").write_bytes(b"{}")
    (one / "2_Dense/config.json").unlink()
    summary = merge(linear(*models), out)
    assert summary.computed == 0
    assert nested(out) == {"1_Pooling/config.json": b"{}", "2_Dense/model.safetensors": NESTED["2_Dense/model.safetensors"]}
    (out / "1_Pooling/mine.txt").write_bytes(b"of the user")
    (one / "modules.json").unlink()
    merge(linear(*models), out)
    assert nested(out) == {"1_Pooling/mine.txt": b"of the user"} and not (out / "2_Dense").exists()


def test_verify_and_repair(models: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear(*models), out)
    assert not verify(out).damage and not verify(out).edited
    (out / "1_Pooling/config.json").write_bytes(b"edited")
    (out / "2_Dense/config.json").unlink()
    (out / "2_Dense/model.safetensors").write_bytes(b"damaged")
    found = verify(out)
    assert found.edited == ("1_Pooling/config.json",)
    assert [(item.file, item.what) for item in found.damage] == [
        ("2_Dense/config.json", "missing"),
        ("2_Dense/model.safetensors", "its bytes changed"),
    ]
    assert weft("verify", out, "--repair").code == 0
    assert nested(out) == NESTED | {"1_Pooling/config.json": b"edited"} and not verify(out).damage
    (out / "1_Pooling/config.json").unlink()
    (out / "1_Pooling").rmdir()
    assert weft("verify", out, "--repair").code == 0
    assert nested(out) == NESTED


@pytest.mark.parametrize("what", ["a link", "a file", "a folder"])
def test_a_place_that_is_taken_is_known_before_the_work(models: tuple[Path, Path], tmp_path: Path, what: str) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (out / ".weft").mkdir(parents=True)
    if what == "a link":
        (out / "1_Pooling").symlink_to(elsewhere)
    elif what == "a file":
        (out / "1_Pooling").touch()
    else:
        (out / "1_Pooling/config.json").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"1_Pooling.*move what is there away"):
        merge(linear(*models), out)
    assert not list(elsewhere.iterdir()) and not list(out.glob("model*"))


def test_an_intent_does_not_lead_out_of_the_folder(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Neither over a link nor by a name: a prepared folder may hold anything."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.json").write_bytes(b"precious")
    (out / ".weft").mkdir(parents=True)
    (out / "link").symlink_to(elsewhere)
    inner, outer = "link/precious.json", "../elsewhere/precious.json"
    for key, name in (("remove", inner), ("files", inner), ("remove", outer)):
        swap: dict[str, list[str]] = {"shards": [], "files": [], "remove": []}
        swap[key] = [name]
        (out / ".weft/swap").write_text(json.dumps(swap))
        (out / ".weft/link:precious.json.new").write_bytes(b"bad")
        with pytest.raises(OutputError), hold(out) as folder:
            finish_swap(folder)
        assert (elsewhere / "precious.json").read_bytes() == b"precious"


def test_a_swap_that_was_stopped_anywhere_is_ended(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Whichever of the moves and removals it stopped at."""
    names, gone = ["a/b/one.json", "two.json"], ["a/old.json", "c/d/old.json", "e"]
    for stop in range(20):
        out = tmp_path / str(stop)
        for name in gone:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).touch()
        (out / ".weft").mkdir()
        with hold(out) as folder:
            for name in names:
                folder.write(name, name.encode())
            folder.intent.write_text(json.dumps({"shards": [], "files": names, "remove": gone}))
            if not _stopped(folder, stop):
                break
        with hold(out) as folder:
            if not finish_swap(folder):
                folder.close()
        found = {path.relative_to(out).as_posix() for path in out.rglob("*")}
        assert found - {".weft"} == {"a", "a/b", "a/b/one.json", "two.json"}
    assert stop > 10


class _Stop(BaseException):
    pass


def _stopped(folder: HeldFolder, stop: int) -> bool:
    """Begin a swap that ends at the so manieth change of names; whether it came to that."""
    calls = iter(range(100))

    def gated(real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **more: object) -> object:
            if next(calls) == stop:
                raise _Stop
            return real(*arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("unlink", "replace", "mkdir", "rmdir"):
            patch.setattr(os, name, gated(getattr(os, name)))
        try:
            finish_swap(folder)
        except _Stop:
            return True
    return False


def test_a_large_file_is_copied_in_pieces(models: tuple[Path, Path], tmp_path: Path) -> None:
    """Larger than what weft reads whole; it takes no place on the disk."""
    one, out = models[0], tmp_path / "out"
    size = 130 << 20
    with (one / "2_Dense/model.safetensors").open("wb") as file:
        file.truncate(size)
    made = plan(recipe("passthrough", *models) | {"base_model": str(one)})
    assert describe(made)["side_files"]["2_Dense/model.safetensors"] == size
    assert run(made, out) is not None
    assert (out / "2_Dense/model.safetensors").stat().st_size == size
