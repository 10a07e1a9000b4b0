"""What may be written to, what is left alone, and what is told apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.command import weft
from merges import hashes, linear, merge, plan, write_config, write_two
from weft.engine.reuse import state_of
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
    assert run(made, tmp_path / "out").already_complete
    assert run(plan(linear(base, other), workers=1, ram=100 << 20), tmp_path / "out").already_complete
    assert picture(tmp_path / "out") == before
    assert state_of(made, tmp_path / "out") == "complete"
    config = write_config(tmp_path / "config.yaml", linear(base, other))
    again = weft("run", config, tmp_path / "out")
    assert again.code == 0 and "nothing to do" in again.out
    assert picture(tmp_path / "out") == before


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    config = write_config(tmp_path / "config.yaml", linear(base, other))
    result = weft("run", config, out)
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"weft: {out} holds files that weft did not write: name a new or empty folder"
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
    assert state_of(plan(linear(base, other)), out) == "foreign"


def test_an_input_model_is_no_place_for_the_result(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    before = picture(base)
    with pytest.raises(OutputError, match="is itself one of the models that are merged"):
        run(plan(linear(base, other)), base)
    assert picture(base) == before


def test_a_result_that_is_an_input_of_the_next_merge_is_no_place_for_it(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    merge(linear(base, other), tmp_path / "out")
    before = picture(tmp_path / "out")
    with pytest.raises(OutputError, match="is itself one of the models"):
        run(plan(linear(tmp_path / "out", other)), tmp_path / "out")
    assert picture(tmp_path / "out") == before


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


def test_a_manifest_that_is_no_manifest_is_a_foreign_file(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    hostile = {"format": 2, "plan": "", "config": "", "shards": {"../../etc": {"bytes": 1, "header": ""}}}
    for text in ("", "[]", "{", json.dumps({"plan": None}), json.dumps(hostile)):
        (out / "weft.json").write_text(text)
        with pytest.raises(OutputError):
            run(plan(linear(base, other)), out)
        assert (out / "weft.json").read_text() == text
