"""`weft verify` and `weft status`, as their users see them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command import Outcome, weft
from merges import hashes, linear, recipe, write_config, write_two


@pytest.fixture
def out(tmp_path: Path) -> Path:
    config = write_config(tmp_path / "config.yaml", recipe("dare_ties", *write_two(tmp_path)))
    assert weft("run", config, tmp_path / "out", "-q", "--out-shard-size", "3K", "--seed", "4").code == 0
    return tmp_path / "out"


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("*.safetensors"))


def change(path: Path, at: int) -> int:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    return path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda out: change(shards(out)[1], -1), "tensor 'model.layers.0.mlp.down_proj.weight': its bytes changed"),
    "two bits": (lambda out: list(map(change, shards(out)[1:3], (-1, -1))), "damage in 2 places"),
    "the header": (lambda out: change(shards(out)[1], 20), "model-00002-of-00006.safetensors: its header changed"),
    "the header's length": (lambda out: change(shards(out)[1], 7), "its header changed"),
    "the end": (lambda out: os.truncate(shards(out)[1], 5000), "cut off: the file ends inside it"),
    "all but the start": (lambda out: os.truncate(shards(out)[1], 5), "has 5 bytes"),
    "more than there was": (lambda out: shards(out)[1].write_bytes(shards(out)[1].read_bytes() + b"x"), "bytes, "),
    "a shard": (lambda out: shards(out)[1].unlink(), "model-00002-of-00006.safetensors: missing"),
    "the index": (lambda out: change(out / "model.safetensors.index.json", 30), "index.json: its bytes changed"),
    "a side file": (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json: missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_repaired(out: Path, name: str) -> None:
    before = hashes(out)
    do, message = DAMAGE[name]
    do(out)
    found = weft("verify", out)
    assert found.code == 2 and message in found.out and "--repair" in found.out, found
    assert json.loads(weft("verify", out, "--json").out)["whole"] is False
    repaired = weft("verify", out, "--repair")
    assert repaired.code == 0 and f"repaired {out}: " in repaired.out, repaired
    assert hashes(out) == before
    assert weft("verify", out).code == 0


def test_only_what_is_damaged_is_computed(out: Path) -> None:
    change(shards(out)[1], -1)
    assert "1 tensors made again, 8 as they were" in weft("verify", out, "--repair").out


def test_a_whole_result(out: Path) -> None:
    found = weft("verify", out)
    assert (found.code, found.err) == (0, "") and "9 tensors, " in found.out and "as written" in found.out
    value = json.loads(weft("verify", out, "--json").out)
    assert (value["whole"], value["tensors"], value["damage"], value["differing_files"]) == (True, 9, [], [])
    assert weft("verify", out, "--repair").code == 0


def test_an_edited_file_is_no_damage_and_is_kept(out: Path) -> None:
    (out / "README.md").write_text("my own words")
    found = weft("verify", out)
    assert found.code == 0 and "differs  README.md: edited" in found.out
    change(shards(out)[1], -1)
    assert weft("verify", out, "--repair").code == 0
    assert (out / "README.md").read_text() == "my own words"


def test_nothing_can_be_repaired_from_inputs_that_changed(out: Path) -> None:
    change(shards(out)[1], -1)
    damaged = shards(out)[1].read_bytes()
    other = out.parent / "other" / "model.safetensors"
    os.utime(other, ns=(1, 1))
    outcome = weft("verify", out, "--repair", "-q")
    assert f"{out} cannot be repaired: {other} changed for all 9 tensors" in outcome.line
    assert shards(out)[1].read_bytes() == damaged
    other.unlink()
    assert "other" in weft("verify", out, "--repair", "-q").line


def test_a_repair_that_was_interrupted_while_files_moved(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(out)
    change(shards(out)[1], -1)
    with monkeypatch.context() as patch:
        patch.setattr("weft.engine.swap._go", interrupt)
        assert weft("verify", out, "--repair", "-q").code == 130
    assert "its files were being put in place" in weft("verify", out).line
    assert status(out)[1]["state"] == "publishing"
    assert "as written" in weft("verify", out, "--repair").out
    assert hashes(out) == before


def test_what_cannot_be_verified(tmp_path: Path) -> None:
    assert "there is no such folder" in weft("verify", tmp_path / "nowhere").line
    (tmp_path / "empty").mkdir()
    assert "weft did not write this folder" in weft("verify", tmp_path / "empty").line
    (tmp_path / "empty" / "weft.json").write_text("{}")
    assert "damaged or of another version" in weft("verify", tmp_path / "empty").line
    (tmp_path / "begun" / ".weft").mkdir(parents=True)
    assert "is not finished" in weft("verify", tmp_path / "begun").line
    assert "no merge is running there" in weft("status", tmp_path / "empty" / "nowhere").line


def test_a_hostile_manifest_leads_nowhere(out: Path) -> None:
    text = (out / "weft.json").read_text().replace("model-00001-of-00006.safetensors", "../../etc/passwd")
    (out / "weft.json").write_text(text)
    assert "damaged or of another version" in weft("verify", out).line


def status(out: Path) -> tuple[Outcome, dict[str, object]]:
    return weft("status", out), json.loads(weft("status", out, "--json").out)


def test_the_status_of_a_finished_result(out: Path) -> None:
    shown, value = status(out)
    assert shown.code == 0 and "finished: 9 of 9 tensors" in shown.out
    assert (value["state"], value["tensors"], value["tensors_done"]) == ("finished", 9, 9)


def test_the_status_of_an_interrupted_update(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(out.parent / "config.yaml", linear(out.parent / "base", out.parent / "other"))
    with monkeypatch.context() as patch:
        patch.setattr("weft.engine.run.check_shards", interrupt)
        assert weft("run", out.parent / "config.yaml", out, "-q").code == 130
    shown, value = status(out)
    assert "interrupted: the same `weft run` continues: 9 of 9 tensors" in shown.out and "stays valid" in shown.out
    assert (value["state"], value["earlier_result"], value["tensors_done"]) == ("interrupted", True, 9)
    assert value["bytes"] == value["bytes_done"] and value["bytes_per_second"] is None
    (out / ".weft" / "journal.sqlite").write_bytes(b"no database")
    assert status(out)[1]["tensors_done"] is None


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt
