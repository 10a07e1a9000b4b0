"""The Python blocks of the pages, run as the cells of a notebook: one IPython shell a page, in a folder with small models.

A block of text that directly follows a block of Python is its output, with `…` for what differs from machine to machine.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import CapturingDisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

import weft

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
ELSEWHERE = {"CONTRIBUTING.md": "tests/test_plugins.py installs its methods"}
EXAMPLE = "examples/experts/configs/ties.yaml"
CELL = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n\n```text\n(?P<output>.*?)^```$)?", re.DOTALL | re.MULTILINE)


def cells(page: Path) -> list[tuple[str, str | None]]:
    """The page's blocks of Python, each with the output that the page quotes."""
    return [(match["code"], match["output"]) for match in CELL.finditer(page.read_text(encoding="utf-8"))]


WITH_CELLS = [page for page in PAGES if cells(page) and page.name not in ELSEWHERE]


# A notebook's shell.


class KeepingHook(DisplayHook):  # type: ignore[misc]
    """Keeps a cell's value in every form that a notebook may choose from, instead of printing it."""

    def start_displayhook(self) -> None: ...

    def write_output_prompt(self) -> None: ...

    def write_format_data(self, format_dict: dict[str, Any], md_dict: dict[str, Any] | None = None) -> None:
        self.shell.values.append(format_dict)

    def finish_displayhook(self) -> None: ...


class ZMQInteractiveShell(InteractiveShell):  # type: ignore[misc]
    """IPython's shell with a kernel's name, by which rich and others know a notebook."""

    displayhook_class = Type(KeepingHook)
    display_pub_class = Type(CapturingDisplayPublisher)
    values: list[dict[str, Any]]


@dataclass(frozen=True)
class Shown:
    """What a notebook shows under a cell."""

    printed: str
    displayed: list[dict[str, Any]]
    """While the cell ran, by MIME type."""
    value: dict[str, Any]
    """Of its last line, by MIME type."""

    @property
    def text(self) -> str:
        return self.printed + str(self.value.get("text/plain", ""))


class Notebook:
    def __init__(self, shell: ZMQInteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
        self.shell, self.capsys = shell, capsys

    def run(self, code: str) -> Shown:
        self.shell.values = []
        self.shell.display_pub.outputs = []
        self.capsys.readouterr()
        self.shell.run_cell(code, store_history=False).raise_error()
        displayed = [output["data"] for output in self.shell.display_pub.outputs]
        return Shown(self.capsys.readouterr().out, displayed, (self.shell.values or [{}])[-1])


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Notebook]:
    """A notebook in an empty folder beside the repository's examples."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path / "here")
    settings = Config(HistoryManager={"enabled": False}, InteractiveShell={"colors": "nocolor"})
    yield Notebook(ZMQInteractiveShell.instance(config=settings), capsys)
    ZMQInteractiveShell.clear_instance()


# The pages.


def agree(output: str, shown: str) -> bool:
    """Whether a cell shows what the page says; `…` is any text within a line."""
    return re.fullmatch(re.escape(output.strip()).replace("…", ".*"), shown.strip()) is not None


@pytest.mark.parametrize("page", WITH_CELLS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_cells_run_and_show_what_the_page_says(page: Path, notebook: Notebook) -> None:
    if "weft.run(" not in page.read_text(encoding="utf-8"):  # the page merges with the command
        weft.run(EXAMPLE, "merged", ram="256MiB", progress=False)
    for number, (code, output) in enumerate(cells(page), 1):
        shown = notebook.run(code)
        assert output is None or agree(output, shown.text), f"cell {number} shows:\n{shown.text}"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("weft")]


def test_pages_have_cells_and_outputs() -> None:
    assert {page.name for page in WITH_CELLS} >= {"README.md", "README.zh-CN.md", "guide.md", "guide.zh-CN.md", "python.md"}
    assert sum(output is not None for _, output in cells(ROOT / "docs" / "python.md")) >= 4


def test_other_outputs_are_found() -> None:
    assert agree("<a · … MiB>\n", "<a · 61.67 MiB>") and agree("a (b)\nc", "a (b)\nc\n")
    assert not agree("a", "a\nb") and not agree("a …", "a b\nc") and not agree("57", "58")


def test_plans_reports_and_progress_show_themselves(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weft.cli.progress.EVERY", 0)
    monkeypatch.setattr("weft.cli.progress.find_spec", lambda name: None)  # as without ipywidgets
    plan = notebook.run(f"import weft\nplan = weft.plan({EXAMPLE!r}, ram='256MiB')\nplan").value
    assert plan["text/html"].startswith("<table><caption>ties of ") and plan["text/plain"].startswith("<weft plan: ties of ")
    assert "<iframe srcdoc=" in notebook.run("weft.report(plan)").value["text/html"]
    run = notebook.run("summary = weft.run(plan, 'merged')")
    assert any("57/57 tensors" in display["text/html"] for display in run.displayed) and run.value == {}
    assert notebook.run("weft.run(plan, 'silent', progress=False).tensors") == Shown("", [], {"text/plain": "57"})
