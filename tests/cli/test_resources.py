"""Too little memory or disk, and options that name what is not there: refused before any work, with what would do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.command import finished_looking, weft
from cli.models import SLERP, write_model


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and its models in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), seed=1)
    Path("merge.yaml").write_text(SLERP)


@pytest.mark.parametrize("workers", ["1", "2", "16"])
def test_a_budget_too_small_names_one_that_would_do(workers: str) -> None:
    outcome = weft("run", "merge.yaml", "out", "--ram", "1MiB", "--workers", workers)
    assert outcome.code == 3
    match = re.fullmatch(
        r"--ram 1\.00 MiB is too little for this merge: .+, plus .+ for \d+ workers; it needs at least --ram (\d+)MiB",
        outcome.line,
    )
    assert match, outcome.line
    assert not Path("out").exists()
    less = f"{int(match[1]) - 1}MiB"
    assert weft("plan", "merge.yaml", "--ram", less, "--workers", workers).code == 3
    assert weft("run", "merge.yaml", "out", "--quiet", "--ram", f"{match[1]}MiB", "--workers", workers).code == 0


def test_a_tensor_larger_than_the_budget() -> None:
    """64 MiB either do, or the plan says what would."""
    for seed, name in enumerate(("big_a", "big_b")):
        write_model(Path(name), layers=1, hidden=512, vocabulary=32768, seed=seed)
    Path("merge.yaml").write_text(SLERP.replace("model: ", "model: big_"))
    outcome = weft("run", "merge.yaml", "out", "--quiet", "--ram", "64MiB", "--workers", "4")
    if outcome.code != 0:
        match = re.search(r"it needs at least --ram (\d+)MiB", outcome.line)
        assert outcome.code == 3 and match, outcome
        assert not Path("out").exists()
        assert weft("run", "merge.yaml", "out", "--quiet", "--ram", f"{match[1]}MiB", "--workers", "4").code == 0


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.engine.system.free_disk", lambda path: 1000)
    outcome = weft("run", "merge.yaml", "out", "--quiet")
    assert outcome.code == 3
    assert "disk" in outcome.line
    assert finished_looking(Path("out")) == []


@pytest.mark.parametrize("device", ["gpu", "CUDA", "cuda:", "cuda:-1", "mps"])
def test_no_such_device(device: str) -> None:
    line = weft("run", "merge.yaml", "out", "--device", device).line
    assert line == f"--device {device}: choose auto, cpu, cuda or cuda:N"
    assert not Path("out").exists()


def test_a_device_that_is_not_in_this_machine() -> None:
    line = weft("run", "merge.yaml", "out", "--device", "cuda:99").line
    assert re.fullmatch(r"--device cuda:99: torch sees \d+ CUDA devices here; choose --device cpu", line)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_devices_that_are_everywhere(device: str) -> None:
    assert weft("plan", "merge.yaml", "--device", device).code == 0


@pytest.mark.parametrize("option", ["--ram", "--vram", "--out-shard-size"])
@pytest.mark.parametrize("size", ["lots", "-1", "1e9", "nan", "1 PB", "1GiBB", "GiB", "1,5GB"])
def test_no_such_size(option: str, size: str) -> None:
    line = weft("run", "merge.yaml", "out", option, size).line
    assert line == f"'{size}' is not a size: write a number and a unit, such as 2GiB, 500MB or 5GB"
    assert not Path("out").exists()


def test_nothing_is_no_size() -> None:
    assert weft("run", "merge.yaml", "out", "--ram", "0").line == "'0' is not a size: it must be more than 0"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--workers", "0"), "--workers"),
        (("--workers", "many"), "--workers"),
        (("--seed", "x"), "--seed"),
        (("--frobnicate",), "--frobnicate"),
        (("--ram",), "--ram"),
    ],
)
def test_options_that_are_misused(arguments: tuple[str, ...], says: str) -> None:
    outcome = weft("run", "merge.yaml", "out", *arguments)
    assert outcome.code == 2
    assert says in outcome.err and "Traceback" not in outcome.err
    assert not Path("out").exists()


def test_folders_that_are_not_for_results() -> None:
    Path("foreign").mkdir()
    Path("foreign/thesis.txt").write_text("mine")
    Path("file").write_text("mine")
    for out, message in (
        ("foreign", "foreign holds files that weft did not write: name a new or empty folder"),
        ("a", "a is itself one of the models that are merged: name another folder for the result"),
        ("file", "file is a file: name a folder for the result"),
        ("file/out", "file/out: Not a directory"),
    ):
        assert weft("run", "merge.yaml", out, "--quiet").line == message
    assert [path.name for path in Path("foreign").iterdir()] == ["thesis.txt"]
    assert Path("file").read_text() == "mine"


def test_a_result_that_lost_a_file_is_not_taken_for_whole() -> None:
    assert weft("run", "merge.yaml", "out", "--quiet").code == 0
    before = Path("out/model.safetensors").read_bytes()
    Path("out/model.safetensors").unlink()
    again = weft("run", "merge.yaml", "out")
    assert again.code == 0 and "nothing to do" not in again.out
    assert Path("out/model.safetensors").read_bytes() == before


def test_the_same_command_again_has_nothing_to_do() -> None:
    first = weft("run", "merge.yaml", "out")
    assert first.code == 0 and "done" in first.out
    again = weft("run", "merge.yaml", "out")
    assert again.code == 0 and "out holds the complete result of this merge already: nothing to do" in again.out
