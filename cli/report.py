"""`--report`: a plan, and what a run measured, as one HTML page that needs nothing else.

The page's parts lie in `report_page/`. All data stands in it as JSON in which no `<` is left, and the page's policy allows only
its own script, by its hash: whatever names a config or a checkpoint holds, they stay text.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from .. import __version__
from ..errors import ConfigError, OutputError
from .terminal import printable

SCRIPTS = ("basics.js", "charts.js", "tasks.js", "page.js")


def render(data: Mapping[str, Any]) -> str:
    """The page that shows the data of `planner.report_data`."""
    script = '"use strict";\n(() => {\n' + "\n".join(_part(name) for name in SCRIPTS) + "\n})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_part("page.html")).substitute(
        version=__version__,
        title=html.escape(printable(f"{data['title']}: weft")),
        style=_part("style.css"),
        script_hash=f"sha256-{digest}",
        script=script,
        data=_json(dict(data) | {"weft": __version__}),
    )


@dataclass(frozen=True)
class Report:
    """A plan's report: its data, and the page that shows them."""

    data: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The data that the page shows, as `planner.report_data` makes them."""
        return dict(self.data)

    @property
    def html(self) -> str:
        """The whole page."""
        return render(self.data)

    def save(self, path: str | Path) -> None:
        """Write the page to an .html file. Raises ConfigError for another ending, OutputError where it cannot be written."""
        check_place(Path(path), None)
        write_report(self.data, Path(path))

    def __repr__(self) -> str:
        return f"<weft report: {self.data['title']}>"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, as notebooks show it."""
        page = html.escape(self.html)
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="width: 100%; height: 720px; border: 0"></iframe>'


def check_place(path: Path, out: Path | None) -> None:
    """Refuse a place for the report before any work is done. Raises ConfigError."""
    if path.suffix not in (".html", ".htm"):
        raise ConfigError(f"--report {path}: the report is an HTML page: name a file that ends in .html")
    if path.is_dir():
        raise ConfigError(f"--report {path} is a folder: name a file in it")
    if out is not None and out.resolve() in path.resolve().parents:
        raise ConfigError(f"--report {path} lies in the output folder, which holds the result alone: name a file outside of it")
    if not path.parent.is_dir():
        raise ConfigError(f"--report {path}: there is no folder {path.parent}")


def write_report(data: Mapping[str, Any], path: Path) -> None:
    """Write the page. Raises OutputError where it cannot be written."""
    try:
        path.write_text(render(data), encoding="utf-8", errors="replace")
    except OSError as error:
        raise OutputError(f"--report {path}: {error.strerror or error}") from None


def _part(name: str) -> str:
    return (files(__package__) / "report_page" / name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """The data with all text in it printable, but for the ends of lines."""
    if isinstance(value, str):
        return "\n".join(printable(line) for line in value.split("\n"))
    if isinstance(value, Mapping):
        return {_shown(key): _shown(item) for key, item in value.items()}
    return [_shown(item) for item in value] if isinstance(value, list | tuple) else value


def _json(value: Mapping[str, Any]) -> str:
    """JSON that no HTML parser can take for the end of its element, in ASCII."""
    text = json.dumps(_shown(value), separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
