"""Runs weft as its user does, and says what came of it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import typer.main

from weft.cli.main import main

# typer would build the parsers of all commands anew for every one that is run, which takes longer than most of these.
typer.main.get_command = cache(typer.main.get_command)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line on stderr, for a command that failed as it should."""
        assert self.code in (2, 3), self
        assert self.err.startswith("weft: ") and self.err.endswith("\n"), self.err
        assert self.err.count("\n") == 1 and "Traceback" not in self.err, self.err
        return self.err.removeprefix("weft: ").removesuffix("\n")


def weft(*arguments: str | Path) -> Outcome:
    """In this process."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with patch.object(sys, "argv", ["weft", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Outcome(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def weft_process(*arguments: str | Path, **environment: str) -> Outcome:
    """In a process of its own, with these variables and none of the caller's that could lead to the Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-m", "weft", *map(str, arguments)]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def finished_looking(out: Path) -> list[str]:
    """Files that would make somebody take a folder for a model."""
    if not out.is_dir():
        return [str(out)] if out.exists() else []
    patterns = ("config.json", "model*.safetensors", "*.index.json", "weft.json", "README.md", "tokenizer*")
    return sorted(path.name for pattern in patterns for path in out.glob(pattern))


STOPPED_AT_IMPORT = """
import os, signal, sys, time
name, number, swallow = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "swallow"
signal.signal(signal.SIGINT, signal.default_int_handler)

class Finder:
    def find_spec(self, module, path=None, target=None):
        if module == name:
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            except KeyboardInterrupt:
                if swallow:
                    raise ImportError(f"cannot import {name}", name=name) from None
                raise

sys.meta_path.insert(0, Finder())
sys.argv = ["weft", *sys.argv[4:]]
from weft.cli.main import main
main()
"""
"""The command, to which a signal comes while it imports a module; some libraries make an error of their own of that."""


def stopped_at(module: str, number: int, *command: str, swallow: bool = False) -> Outcome:
    arguments = [sys.executable, "-c", STOPPED_AT_IMPORT, module, str(number), "swallow" if swallow else "", *command]
    done = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=60
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
