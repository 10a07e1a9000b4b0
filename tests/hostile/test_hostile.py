"""Hostile models, adapters and configs: one line and exit code 2 in bounded time and memory; nothing runs, nothing leaks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.command import weft
from hostile.attacks import ATTACKS, LINEAR, good

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
TESTS = Path(__file__).parents[1]


def reports(root: Path) -> dict[str, dict[str, Any]]:
    """What each attack came to, in one process that may take little memory."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "HF_HUB_OFFLINE": "1", "HF_HOME": str(root / "hub")}
    command = [sys.executable, "-m", "hostile.attempt", str(root)]
    done = subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True, timeout=600)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died at {list(ATTACKS)[len(found)]}: {done.stderr[-2000:]}"
    return {report["name"]: report for report in found}


def test_every_attack_ends_in_one_line(tmp_path: Path) -> None:
    found = reports(tmp_path)
    assert found.keys() == ATTACKS.keys() and len(found) > 200
    failed = {name: what for name, report in found.items() if (what := _wrong(name, report))}
    assert not failed, json.dumps(failed, indent=1)


def _wrong(name: str, report: dict[str, Any]) -> str | None:
    """What weft did that it must not."""
    if "traceback" in report:
        return str(report["traceback"])
    if report["seen"] or report["owned"] or report["secret"]:
        return f"it did more than reading the model: {report}"
    if report["code"] not in ((0, 2) if ATTACKS[name].harmless else (2,)):
        return f"exit code {report['code']}: {report['err']}"
    for code, err in ((report["code"], report["err"]), report["inspected"]):
        line = err.startswith("weft: ") and err.count("\n") == 1 and len(err) < 3000 and err[:-1].isprintable()
        if code not in (0, 2) or (code and not line):
            return f"exit code {code}: {err}"
    return None


def test_the_audit_sees_what_it_looks_for(tmp_path: Path) -> None:
    """A watch that saw nothing whatever happened would prove nothing."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key.json").write_text("{}")
    code = (
        "import os, sys; from hostile import attempt; sys.addaudithook(attempt._watch); "
        "open(sys.argv[1]).close(); os.system('true'); print(len(attempt._seen))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "secret/key.json")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS)}, cwd=TESTS, capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def test_the_hub_cache_s_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots are links into ../../blobs; older versions also linked from a local folder into the cache."""
    monkeypatch.chdir(tmp_path)
    good()
    for name in ("models--org--a/snapshots/0123", "local"):
        Path(name).mkdir(parents=True)
    blobs = Path("models--org--a/blobs")
    blobs.mkdir()
    for path in list(Path("a").iterdir()):
        shutil.move(path, blobs / f"{path.name}00ff")
        Path("models--org--a/snapshots/0123", path.name).symlink_to(f"../../blobs/{path.name}00ff")
        Path("local", path.name).symlink_to((blobs / f"{path.name}00ff").resolve())
    Path("a").rmdir()
    for folder in ("models--org--a/snapshots/0123", "local"):
        Path("merge.yaml").write_text(LINEAR.replace("model: a", f"model: {folder}"))
        assert weft("run", "merge.yaml", f"out-{len(folder)}", "--quiet").code == 0


def test_links_within_a_model_and_to_a_model_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good()
    Path("a/model.safetensors").rename("a/weights.bytes")
    Path("a/model.safetensors").symlink_to("weights.bytes")
    Path("elsewhere").mkdir()
    shutil.move("b", "elsewhere/b")
    Path("b").symlink_to("elsewhere/b")
    assert weft("plan", "merge.yaml").code == 0
