"""docs/session.md, done again: each of its commands as a process of its own, and its output line by line.

`python tests/test_session.py` writes what the commands print now into the page. In what is expected, `...` in a line stands
for any text, and a line of `...` for any lines; where that still fits, it stays. `[exit N]` is the code of a command that did
not end with 0; a line `^C` before the output means that Ctrl-C is pressed while the command merges.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "session.md"
BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
KEYS = "^C\n"


def fits(expected: str, printed: str) -> bool:
    """Whether this was printed; spaces at the ends of lines do not count."""
    lines = [
        "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n" for line in expected.splitlines()
    ]
    return re.fullmatch("".join(lines), bare(printed)) is not None


def bare(printed: str) -> str:
    """Without the spaces at the ends of lines, which tables have."""
    return re.sub(r" +$", "", printed, flags=re.MULTILINE)


def execute(command: str, folder: Path, *, interrupted: bool) -> str:
    """What a shell in this folder prints, at 80 columns, with nothing of the caller's that could lead to the Hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    kept |= {"COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    kept |= {"PYTHONPATH": str(ROOT / "tests" / "session")} if interrupted else {}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    return done.stdout + (f"[exit {done.returncode}]\n" if done.returncode else "")


def again(page: str) -> str:
    """The page with what its commands print now, where that is not what it says."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "examples").symlink_to(ROOT / "examples")

        def block(match: re.Match[str]) -> str:
            made = ""
            for step in re.split(r"^\$ ", match[1], flags=re.MULTILINE)[1:]:
                command, _, expected = step.partition("\n")
                keys = KEYS if expected.startswith(KEYS) else ""
                printed = execute(command, folder, interrupted=bool(keys))
                expected = expected.removeprefix(KEYS)
                made += f"$ {command}\n{keys}" + (expected if fits(expected, printed) else bare(printed))
            return made

        return BLOCK.sub(block, page)


def test_the_session_goes_as_the_page_says() -> None:
    page = PAGE.read_text()
    assert page.count("\n$ ") > 10
    assert again(page) == page


def test_what_fits() -> None:
    assert fits("a ... c\n...\nd\n", "a b c\n1\n2\nd  \n") and fits("...\nd\n", "d\n")
    assert not fits("a ... c\n", "a b\nc\n") and not fits("a.c\n", "abc\n") and not fits("", "a\n")


if __name__ == "__main__":
    PAGE.write_text(again(PAGE.read_text()))
