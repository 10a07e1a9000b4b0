"""Names and values from checkpoints and configs hold whatever strangers put there: no terminal gets them as they are."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from cli.command import Outcome, weft
from weft.cli.terminal import literal, one_line

ROOT = Path(__file__).parents[2]
MARKUP = "[red]:heart:[bold]"
EVIL = f"\x1b[31m\x07\x9b2J\u202e\u2066\u200b\r\n\u2028\x7f{MARKUP}"
SHOWN = r"\x1b[31m\x07\x9b2J\u202e\u2066\u200b\r\n\u2028\x7f" + MARKUP


def odd(text: str) -> set[str]:
    """Characters that steer a terminal or the direction of writing, or that no one sees."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Cs") and c != "\n"}


def model(folder: Path, value: float, rows: int = 4) -> Path:
    tensors = {f"model.layers.{i}.{MARKUP}.weight": torch.full((rows, 4), value) for i in range(2)}
    tensors |= {
        "model.embed_tokens.weight": torch.full((rows, 4), value),
        MARKUP: torch.full((3,), value),
    }  # weft takes no odder names
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"architectures": [EVIL], "model_type": EVIL, "num_hidden_layers": 2, "auto_map": {EVIL: "evil.X"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / f"{EVIL}.json").write_text("{}")
    (folder / "[red].json").write_text("{}")
    (folder / f"{EVIL}.py").write_text("")
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": EVIL}}))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, a config of them, and a finished result, all of evil names."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("a", 1.0), ("b", 2.0)):
        model(tmp_path / f"{name}{EVIL}", value)
    write("c.yaml", {"merge_method": "linear", "models": [f"a{EVIL}", f"b{EVIL}"]})
    return tmp_path


def write(path: str, config: dict[str, object], weight: object = 0.5) -> None:
    config["models"] = [{"model": name, "parameters": {"weight": weight}} for name in config["models"]]  # type: ignore[attr-defined]
    Path(path).write_text(yaml.safe_dump(config, allow_unicode=False))


def harmless(done: Outcome, code: int, *, shows: bool = True) -> None:
    assert done.code == code, done
    assert not odd(done.out + done.err), (odd(done.out + done.err), done)
    assert (SHOWN in done.out + done.err) is shows, done


def test_no_command_prints_what_strangers_wrote_as_it_is(here: Path) -> None:
    a, b, out = (f"{name}{EVIL}" for name in ("a", "b", "out"))
    harmless(weft("plan", "c.yaml"), 0)
    harmless(weft("plan", "c.yaml", "-v"), 0)
    harmless(weft("run", "c.yaml", out, "-v", "--report", "page.html"), 0)
    harmless(weft("run", "c.yaml", out), 0)
    harmless(weft("status", out), 0)
    harmless(weft("verify", out), 0)
    write("d.yaml", {"merge_method": "linear", "models": [a, b]}, [{"filter": EVIL, "value": 0.3}, {"value": 0.5}])
    harmless(weft("plan", "d.yaml", out, "-v"), 0)
    harmless(weft("explain", "d.yaml", "layers.1", out), 0)
    harmless(weft("explain", "d.yaml", "nothing like it"), 2, shows=False)
    harmless(weft("inspect", a), 0)
    harmless(weft("inspect", a, "--tensors"), 0)
    harmless(weft("inspect", a, "--json"), 0, shows=False)
    harmless(weft("diff", a, b, "-v"), 0)
    (Path(out) / "[red].json").write_text("edited")
    shard = Path(out) / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    harmless(weft("verify", out), 2)
    harmless(weft("verify", out, "--repair"), 0)


def test_errors_and_notes(here: Path) -> None:
    a, out = f"a{EVIL}", f"out{EVIL}"
    for number, models in enumerate(([a, f"no{EVIL}"], [a, str(model(here / f"other{EVIL}", 1.0, rows=5))])):
        write(f"{number}.yaml", {"merge_method": "linear", "models": models})
        harmless(weft("plan", f"{number}.yaml"), 2)
    for key, value in (("merge_method", EVIL), ("dtype", EVIL), (EVIL, 1), ("name", EVIL), ("tokenizer_source", EVIL)):
        write("e.yaml", {"merge_method": "linear", "models": [a, a], key: value})
        done = weft("plan", "e.yaml")
        assert not odd(done.out + done.err), (key, done)
    model(here / f"nan{EVIL}", float("nan"))
    write("f.yaml", {"merge_method": "linear", "models": [f"nan{EVIL}", a]})
    harmless(weft("run", "f.yaml", out, "--strict"), 2)
    harmless(weft("run", "f.yaml", out), 0)
    Path(out, "weft.json").unlink()
    harmless(weft("run", "f.yaml", out), 2)
    for command in ("inspect", "verify", "status", "run"):
        done = weft(command, f"no{EVIL}", *([out] if command == "run" else []))
        harmless(done, 2)


def test_the_page_of_a_report(here: Path) -> None:
    assert weft("plan", "c.yaml", "--report", "page.html").code == 0
    page = Path("page.html").read_text(encoding="utf-8")
    assert not odd(page)
    data = re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", page, re.DOTALL)
    assert data is not None
    assert not odd(data[1]) and json.dumps(SHOWN).strip('"').replace(r"\\n", r"\n") in data[1]


def test_a_line_stays_one_and_markup_stays_text() -> None:
    assert one_line(EVIL) == SHOWN and one_line("é 模型 ×") == "é 模型 ×"
    assert literal(EVIL).replace("\\[", "[") == SHOWN
    assert one_line("\ud800") == r"\ud800"


def test_all_that_commands_print_goes_through_the_terminal_s_functions() -> None:
    """Rich's own escape and print itself are left to terminal.py; what print gets elsewhere is JSON."""
    for path in sorted((ROOT / "cli").glob("*.py")):
        if path.name == "terminal.py":
            continue
        text = path.read_text()
        assert "rich.markup" not in text, path
        assert not re.search(r"(?<![.\w])print\((?!(serializer|json)\.dumps)", text), path


def test_a_model_of_many_unrelated_tensors_is_listed_in_no_time(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"t{i * 7919 % 99991}.{i}x.w{i}": np.zeros(1, np.float32) for i in range(10_000)}
    save_arrays(tensors, tmp_path / "model.safetensors")
    began = time.process_time()
    done = weft("inspect", tmp_path)
    assert done.code == 0 and done.out.count("\n") > 10_000
    assert time.process_time() - began < 3
