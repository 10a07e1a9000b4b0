"""`--report`: one page that needs nothing else and that no name can break out of; in a browser, if there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cli.command import Outcome, finished_looking, weft
from cli.models import tensors, write_model
from weft.cli.report import SCRIPTS, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><img src=x onerror=document.documentElement.dataset.error='broken-out'>"
ROOT = Path(__file__).parents[2]

CONFIG: dict[str, Any] = {
    "merge_method": "ties",
    "base_model": "a",
    "models": [
        {"model": "b", "parameters": {"weight": [0.2, 0.9], "density": [{"filter": "mlp", "value": [1, 0.5]}, {"value": 0.6}]}}
    ],
    "dtype": "float16",
}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(Path("b"), seed=1, shards=2)
    Path("merge.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))


class Page(HTMLParser):
    """A page's elements, and the text of its scripts by type."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.texts: list[str] = []
        self._script: str | None = ""
        self._within = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._within = tag
        if tag == "script":
            self._script = dict(attrs).get("type")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within == "script":
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.texts.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["application/json"])

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}


def report(*arguments: str | Path) -> tuple[Outcome, Page]:
    outcome = weft(*arguments, "--report", "report.html")
    assert outcome.code == 0, outcome
    return outcome, Page(Path("report.html").read_text(encoding="utf-8"))


def write_hostile_models() -> None:
    """Models, tensors and a config whose names would like to be a part of the page."""
    content = tensors() | {f"model.layers.1.{HOSTILE}.weight": torch.ones(4, dtype=torch.bfloat16)}
    for parent in ("evil<", "evil2<"):
        write_model(Path(parent) / HOSTILE.removeprefix("<").replace("/", "_"), content)
    models = [str(path) for path in sorted(Path().glob("evil*/*"))]
    config = CONFIG | {
        "name": HOSTILE + "${1}$title",
        "base_model": models[0],
        "models": [{"model": models[1], "parameters": {"weight": [0, 1]}}],
    }
    Path("hostile.yaml").write_text(f"# {HOSTILE} &amp; ]]> <!--\n" + yaml.safe_dump(config))


# The page as text.


def test_the_page_holds_the_plan() -> None:
    outcome, page = report("plan", "merge.yaml", "out", "--ram", "1GiB")
    assert "ties of" in outcome.out and outcome.out.endswith("drawn in report.html\n")
    described = json.loads(report("plan", "merge.yaml", "out", "--ram", "1GiB", "--json")[0].out)
    about = page.data["about"]
    assert about == {key: described[key] for key in about} and {"tensors", "ram", "models", "notes"} <= set(about)
    assert page.data["reuse"] == {"state": "new", "done": []} and page.data["measured"] is None
    assert page.data["config"] == Path("merge.yaml").read_text() and page.data["source"] == "merge.yaml"
    assert not finished_looking(Path("out")) and not Path("out").exists()


def test_the_page_needs_nothing_else() -> None:
    _, page = report("plan", "merge.yaml")
    for tag, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
    assert page.tags() <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "noscript",
        "p",
        "header",
        "main",
        "footer",
        "div",
        "script",
    }
    text = Path("report.html").read_text(encoding="utf-8")
    without_namespace = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(
        r"https?:|//cdn|@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacent|\beval\b", without_namespace
    )


def test_only_the_page_s_own_script_may_run() -> None:
    _, page = report("plan", "merge.yaml")
    policy = next(attributes["content"] for tag, attributes in page.elements if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(page.scripts[None].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "unsafe-eval" not in policy


def test_names_of_strangers_stay_text() -> None:
    write_hostile_models()
    _, page = report("plan", "hostile.yaml")
    assert "img" not in page.tags() and sum(tag == "script" for tag, _ in page.elements) == 2
    assert page.data["title"] == HOSTILE + "${1}$title" and HOSTILE in page.data["config"]
    assert any(HOSTILE in rest for rest in page.data["tensors"]["rest"])
    assert not set("<>&") & set(page.scripts["application/json"])
    assert any(HOSTILE in text for text in page.texts)  # the title, read back


def test_lone_surrogates_are_no_trouble() -> None:
    data = json.loads(json.dumps(report("plan", "merge.yaml")[1].data))
    text = render(data | {"title": "\ud800", "config": "\ud800 \u2028 \x00"})
    Path("odd.html").write_text(text, encoding="utf-8", errors="replace")
    assert Page(Path("odd.html").read_text(encoding="utf-8")).data["config"] == r"\ud800 \u2028 \x00"


def test_a_run_adds_what_it_measured() -> None:
    _, page = report("run", "merge.yaml", "out")
    measured = page.data["measured"]
    assert measured["finished"] and measured["durable"] == page.data["about"]["tensors"]
    assert measured["summary"]["measured_ram"] >= 0 and page.data["reuse"]["state"] == "new"
    outcome, page = report("run", "merge.yaml", "out")
    assert "nothing to do" in outcome.out and outcome.out.endswith("drawn in report.html\n") and page.data["measured"] is None
    assert page.data["reuse"] == {"state": "complete", "done": list(range(page.data["about"]["tensors"]))}


def test_a_run_that_stops_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    from weft.engine import recorder
    from weft.engine.events import Event, TensorDurable

    class Stopping(recorder.Recorder):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if isinstance(event, TensorDurable):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recorder, "Recorder", Stopping)
        outcome = weft("run", "merge.yaml", "out", "--report", "stopped.html")
    assert outcome.code == 130 and "the same command" in outcome.err
    stopped = Page(Path("stopped.html").read_text(encoding="utf-8")).data
    assert not stopped["measured"]["finished"] and stopped["measured"]["durable"] >= 1
    _, page = report("plan", "merge.yaml", "out")
    assert page.data["reuse"]["state"] == "unfinished" and page.data["reuse"]["done"]
    _, page = report("run", "merge.yaml", "out")
    assert page.data["measured"]["finished"] and page.data["measured"]["reused"] == len(page.data["reuse"]["done"])


# Where it may go.


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("merge.yaml", r"--report merge\.yaml: .* ends in \.html"),
        ("folder.html", "is a folder: name a file in it"),
        ("nowhere/report.html", "there is no folder nowhere"),
        ("out/report.html", "lies in the output folder"),
    ],
)
def test_a_bad_place_is_refused_before_any_work(command: str, place: str, said: str) -> None:
    Path("folder.html").mkdir()
    before = Path("merge.yaml").read_text()
    outcome = weft(command, "merge.yaml", "out", "--report", place)
    assert outcome.code == 2 and re.search(said, outcome.line)
    assert Path("merge.yaml").read_text() == before and not Path("out").exists()


def test_a_refused_folder_leaves_no_report() -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("mine")
    outcome = weft("run", "merge.yaml", "out", "--report", "report.html")
    assert outcome.code == 2 and not Path("report.html").exists()
    assert weft("plan", "merge.yaml", "out", "--report", "report.html").code == 0
    assert Page(Path("report.html").read_text(encoding="utf-8")).data["reuse"]["state"] == "foreign"


def test_the_parts_of_the_page_are_packaged() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["weft.cli"]
    parts = {path.name for path in (ROOT / "cli" / "report_page").iterdir()}
    assert parts == {*SCRIPTS, "page.html", "style.css"}
    assert {path.name for pattern in declared for path in (ROOT / "cli").glob(pattern)} == parts


# The page in a browser.


def opened(path: Path, fragment: str = "") -> Page:
    """What the browser made of a page: its document once all scripts have run."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"]
    command += [f"--user-data-dir={path.parent / 'browser'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, path.resolve().as_uri() + fragment], capture_output=True, text=True, timeout=120)
    return Page(done.stdout)


def root(page: Page) -> dict[str, str | None]:
    return next(attributes for tag, attributes in page.elements if tag == "html")


EXERCISE = """
<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
window.addEventListener("unhandledrejection", (event) => { document.documentElement.dataset.error = String(event.reason); });
(async () => {
  await wait(400);
  let pressed = 0;
  for (const what of ["svg [role=button]", "button", "svg [role=button]", ".list button"]) {
    for (const node of [...document.querySelectorAll(what)].slice(0, 60)) {
      node.dispatchEvent(new MouseEvent("click", { bubbles: true }));
      node.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
      node.dispatchEvent(new PointerEvent("pointerenter"));
      node.dispatchEvent(new PointerEvent("pointerleave"));
      pressed += 1;
      if (pressed % 10 === 0) await wait(20);
    }
  }
  for (const node of document.querySelectorAll("svg[tabindex]")) {
    for (const key of ["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End", "+", "-", "0"]) {
      node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    }
    for (const type of ["pointermove", "pointerdown", "pointermove", "pointerup", "pointerleave"]) {
      node.dispatchEvent(new PointerEvent(type, { clientX: 300, clientY: 300, bubbles: true }));
    }
    node.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, ctrlKey: true, cancelable: true }));
  }
  await wait(100);
  const search = document.querySelector("input[type=search]");
  search.value = "mlp";
  search.dispatchEvent(new Event("input"));
  await wait(100);
  document.documentElement.dataset.pressed = pressed;
  document.documentElement.dataset.found = document.querySelectorAll("#panel .list button").length;
})();
</script>
"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
class TestInABrowser:
    def test_a_plan_is_drawn(self) -> None:
        write_hostile_models()
        report("plan", "hostile.yaml", "out")
        page = opened(Path("report.html"), "#part=layer%201")
        assert root(page).get("data-ready") == "true" and "data-error" not in root(page), root(page)
        assert "img" not in page.tags() and sum(tag == "script" for tag, _ in page.elements) == 2
        titles = {attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"}
        assert any("Host memory" in (title or "") for title in titles) and any("Task graph" in (title or "") for title in titles)
        assert len(titles) >= 4
        assert any(HOSTILE in text for text in page.texts)

    def test_everything_can_be_pressed(self) -> None:
        report("run", "merge.yaml", "out")
        text = Path("report.html").read_text(encoding="utf-8")
        text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", EXERCISE + "</body>")
        Path("exercised.html").write_text(text, encoding="utf-8")
        page = opened(Path("exercised.html"), "#tensor=model.layers.1.mlp.up_proj.weight")
        assert "data-error" not in root(page), root(page)
        assert int(root(page).get("data-pressed") or 0) > 10 and root(page).get("data-found") == "4"
        assert any("What was measured" in text for text in page.texts)
