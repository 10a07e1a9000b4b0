"""Ctrl-C, SIGTERM and SIGHUP end every command in the same way, from its first import on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli.command import STOPPED_AT_IMPORT, stopped_at, weft
from cli.models import SLERP, write_model
from merges import environment, nothing_looks_finished
from weft.engine.events import Event
from weft.engine.run import run
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, make_plan

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
AGAIN = "give the same command again to continue"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), seed=1)
    Path("merge.yaml").write_text(SLERP)


@pytest.mark.parametrize(
    ("module", "number", "swallow", "command"),
    [
        ("typer", signal.SIGINT, False, ("--help",)),
        ("rich.console", signal.SIGHUP, False, ("methods",)),
        ("pydantic", signal.SIGTERM, True, ("plan", "merge.yaml")),
        ("xxhash", signal.SIGTERM, False, ("run", "merge.yaml", "out")),
        ("torch", signal.SIGINT, True, ("diff", "a", "b")),
    ],
)
def test_while_libraries_are_imported(
    models: None, module: str, number: signal.Signals, swallow: bool, command: tuple[str, ...]
) -> None:
    outcome = stopped_at(module, number, *command, swallow=swallow)
    assert outcome.code == CODES[number], outcome
    assert re.fullmatch(f"weft: stopped; (what is done is kept in out: )?{AGAIN}\n", outcome.err)
    assert nothing_looks_finished(Path("out"))


@pytest.mark.parametrize("ignored", [True, False])
def test_what_is_ignored_stays_so_and_handlers_are_as_before(monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    """`nohup weft run …` is to outlive its terminal."""
    own = signal.SIG_IGN if ignored else signal.SIG_DFL
    seen = []
    before = {number: signal.signal(number, own) for number in CODES}
    try:
        monkeypatch.setattr("weft.cli.app.app", lambda **settings: seen.append({n: signal.getsignal(n) for n in CODES}))
        assert weft("methods").code == 0
        assert all((handler is own) is ignored for handler in seen[0].values())
        assert all(signal.getsignal(number) is own for number in CODES)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_from_python_the_handlers_are_the_programs_own(models: None) -> None:
    before, seen = {number: signal.getsignal(number) for number in CODES}, list[dict[int, object]]()

    def observe(event: Event) -> None:
        seen.append({number: signal.getsignal(number) for number in CODES})

    def execute() -> None:
        run(make_plan(load_config(SLERP), Options(Budget(64 << 20, 0, 1))), Path("out"), observe)

    thread = threading.Thread(target=execute)
    thread.start()
    thread.join()
    assert seen and all(handlers == before for handlers in seen)
    assert Path("out/weft.json").exists()


def test_a_terminal_that_is_gone(models: None) -> None:
    """What is said there goes nowhere, and nothing else changes."""
    reading, writing = os.pipe()
    os.close(reading)
    arguments = [sys.executable, "-c", STOPPED_AT_IMPORT, "networkx", str(int(signal.SIGHUP)), "", "plan", "merge.yaml"]
    done = subprocess.run(arguments, stdout=writing, stderr=writing, check=False, env=environment(), timeout=60)
    os.close(writing)
    assert done.returncode == 129
