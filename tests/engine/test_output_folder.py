"""What may be written to, what is left alone, and what is told apart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from merges import hashes, linear, merge, plan, weft, write_config, write_two
from weft.engine.folder import state_of
from weft.engine.run import run
from weft.errors import OutputError


def picture(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and bytes."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_folder_needs_nothing(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    made = plan(linear(base, other))
    assert run(made, tmp_path / "out") is not None
    before = picture(tmp_path / "out")
    assert run(made, tmp_path / "out") is None
    assert run(plan(linear(base, other), workers=1, ram=100 << 20), tmp_path / "out") is None
    assert picture(tmp_path / "out") == before
    assert state_of(tmp_path / "out", made.digest) == "complete"
    config = write_config(tmp_path / "config.yaml", linear(base, other))
    again = weft(config, tmp_path / "out")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert picture(tmp_path / "out") == before


@pytest.mark.parametrize("what", ["config", "seed", "input"])
def test_the_result_of_another_merge_is_left_alone(tmp_path: Path, what: str) -> None:
    base, other = write_two(tmp_path)
    config: dict[str, Any] = {"merge_method": "dare_linear", "base_model": str(base), "models": [{"model": str(other)}]}
    config["parameters"] = {"weight": 0.5, "density": 0.5}
    out = tmp_path / "out"
    merge(config, out)
    before = picture(out)
    if what == "config":
        config["parameters"] = {"weight": 0.6, "density": 0.5}
    if what == "input":
        os.utime(other / "model.safetensors", ns=(1, 1))
    made = plan(config, seed=1 if what == "seed" else 0)
    assert state_of(out, made.digest) == "another"
    with pytest.raises(OutputError, match="complete result of another config, seed or input"):
        run(made, out)
    assert picture(out) == before


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    config = write_config(tmp_path / "config.yaml", linear(base, other))
    result = weft(config, out)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"weft: {out} holds files that weft did not write: name a new or empty folder"
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert state_of(out, "") == "foreign"


def test_an_input_model_is_no_place_for_the_result(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    before = picture(base)
    with pytest.raises(OutputError):
        run(plan(linear(base, other)), base)
    assert picture(base) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    out.write_text("a file")
    with pytest.raises(OutputError, match="is a file: name a folder"):
        run(plan(linear(base, other)), out)
    with pytest.raises(OutputError):
        run(plan(linear(base, other)), out / "inside")
    assert out.read_text() == "a file"


def test_an_empty_folder_and_new_parents_serve(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    (tmp_path / "empty").mkdir()
    merge(linear(base, other), tmp_path / "empty")
    merge(linear(base, other), tmp_path / "new" / "and" / "deeper")
    assert hashes(tmp_path / "empty").keys() == hashes(tmp_path / "new" / "and" / "deeper").keys()


def test_a_finished_folder_that_lost_a_shard_is_named(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out, shard_size=3000)
    lost = sorted(out.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(OutputError, match=f"{lost.name} is missing or has the wrong size"):
        run(plan(linear(base, other), shard_size=3000), out)


def test_a_manifest_that_is_no_manifest_is_a_foreign_file(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for text in ("", "[]", "{", json.dumps({"plan": None})):
        (out / "weft.json").write_text(text)
        with pytest.raises(OutputError):
            run(plan(linear(base, other)), out)
        assert (out / "weft.json").read_text() == text
