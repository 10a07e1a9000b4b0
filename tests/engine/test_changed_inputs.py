"""Files that change between planning and reading, or while they are read: nothing of them is mixed with what was planned."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from merges import hashes, linear, merge, plan, small_tensors, write_sides, write_two
from weft.engine.difference import compare
from weft.engine.events import BytesRead, Event, Observer, TensorWritten
from weft.engine.run import run
from weft.errors import InputChanged
from weft.planner.catalog import open_checkpoint
from weft.planner.store import Folder


def overwrite(path: Path) -> None:
    """The last byte is another; header and size stay."""
    with path.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def replace(path: Path) -> None:
    """As a download does that puts a new version in the place of the old."""
    new = path.with_name("new")
    shutil.copyfile(path, new)
    overwrite(new)
    new.replace(path)


def with_the_time_of_before(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """As `cp -p` and `rsync -t` leave it."""

    def changed(path: Path) -> None:
        time = path.stat().st_mtime_ns
        change(path)
        os.utime(path, ns=(time, time))

    return changed


CHANGES = {
    "overwritten": overwrite,
    "replaced": replace,
    "overwritten, time set back": with_the_time_of_before(overwrite),
    "replaced, time set back": with_the_time_of_before(replace),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
}
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))


def at_the_first_read(act: Callable[[], object]) -> Observer:
    """Do it once bytes were read, and before any tensor is computed."""
    done: list[Event] = []

    def observe(event: Event) -> None:
        if isinstance(event, BytesRead) and not done:
            done.append(event)
            act()

    return observe


def pickled(folder: Path, seed: int) -> Path:
    folder.mkdir()
    torch.save(small_tensors(seed), folder / "pytorch_model.bin")
    write_sides(folder)
    return folder


def refused(path: Path, act: Callable[[], object]) -> None:
    with pytest.raises(InputChanged, match=r"changed since weft planned with it.*give the command again") as caught:
        act()
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value) and caught.value.exit_code == 2


@changes
def test_between_planning_and_reading(tmp_path: Path, change: Callable[[Path], None]) -> None:
    base, other = write_two(tmp_path)
    made, out = plan(linear(base, other)), tmp_path / "out"
    change(other / "model.safetensors")
    refused(other / "model.safetensors", lambda: run(made, out))
    refused(other / "model.safetensors", lambda: list(weft.merge(made)))
    assert not list(out.glob("*.safetensors")) and not (out / "weft.json").exists()


@changes
def test_while_it_is_read(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """What is recorded afterwards is of one file only: given again, the command makes the whole of the new one."""
    base, other = write_two(tmp_path)
    out, file = tmp_path / "out", other / "model.safetensors"
    refused(file, lambda: merge(linear(base, other), out, at_the_first_read(lambda: change(file))))
    assert not list(out.glob("*.safetensors")) and not (out / "weft.json").exists()

    merge(linear(base, other), out)
    merge(linear(base, other), tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh")


@changes
def test_while_tensors_are_handed_out(tmp_path: Path, change: Callable[[Path], None]) -> None:
    base, other = write_two(tmp_path)
    before = {name: (load_file(base / "model.safetensors")[name] + t) / 2 for name, t in small_tensors(2).items()}
    given = weft.merge(linear(base, other), ram="256MiB", workers=1)
    name, tensor = next(given)
    change(other / "model.safetensors")
    received = {name: tensor}
    refused(other / "model.safetensors", lambda: received.update(given))
    for name, tensor in received.items():
        assert torch.equal(tensor, before[name]), name


@changes
def test_between_two_runs_of_one_result(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Where size, header and the time of the last change are the same, an unfinished result does not go on with it either."""
    base, other = write_two(tmp_path)
    out = tmp_path / "out"

    def stop(event: Event) -> None:
        if isinstance(event, TensorWritten):
            raise KeyboardInterrupt

    with pytest.raises(weft.errors.Interrupted):
        merge(linear(base, other), out, stop)
    for file in (base / "model.safetensors", other / "model.safetensors"):
        change(file)
    with_the_time_of_before(lambda path: save_file(small_tensors(3), path))(
        other / "model.safetensors"
    )  # every tensor is another
    merge(linear(base, other), out)
    merge(linear(base, other), tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh")


def test_a_run_goes_on_where_nothing_changed(tmp_path: Path) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"

    def stop(event: Event) -> None:
        if isinstance(event, TensorWritten):
            raise KeyboardInterrupt

    with pytest.raises(weft.errors.Interrupted):
        merge(config, out, stop)
    assert merge(config, out).reused > 0


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"])
def test_files_beside_the_weights(tmp_path: Path, name: str) -> None:
    """What is read while planning is in the plan; what is copied at the end must still be what was planned with."""
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    file = base / name

    def again() -> None:
        with_the_time_of_before(overwrite)(file)

    try:
        merge(linear(base, other), out, at_the_first_read(again))
    except InputChanged as error:
        assert str(error).startswith(f"{file}: ") and not (out / "weft.json").exists()
    else:
        assert name == "config.json"
        assert json.loads((out / name).read_text())["model_type"] == "llama"


def test_a_finished_result_is_not_called_complete_by_files_that_changed(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out)
    made = plan(linear(base, other))
    overwrite(base / "tokenizer.json")
    refused(base / "tokenizer.json", lambda: run(made, out))


def test_a_bin_file(tmp_path: Path) -> None:
    base, other = pickled(tmp_path / "base", 1), pickled(tmp_path / "other", 2)
    made = plan(linear(base, other))
    with_the_time_of_before(replace)(other / "pytorch_model.bin")
    refused(other / "pytorch_model.bin", lambda: run(made, tmp_path / "out"))


def test_the_same_tick(tmp_path: Path) -> None:
    """A file that is changed as soon as it was planned with, itself as soon as it was written, has another state all the same."""
    path = tmp_path / "model" / "notes.json"
    path.parent.mkdir()
    for number in range(30):
        path.write_text(f'{{"number": {number:2}}}')
        store = Folder(path.parent, "model")
        store.sizes()
        path.write_text(f'{{"number": {number:2}}}')
        os.utime(path, ns=(store.state(path.name).modified, store.state(path.name).modified))
        with pytest.raises(InputChanged):
            store.read(path.name)


def test_a_comparison(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    first, second = (open_checkpoint(Folder(folder, str(folder))) for folder in (base, other))
    seen: list[int] = []

    def during(nbytes: int) -> None:
        if not seen:
            overwrite(other / "model.safetensors")
        seen.append(nbytes)

    refused(other / "model.safetensors", lambda: compare(first, second, 256 << 20, during))
