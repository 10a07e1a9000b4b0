"""The log of a run's events."""

from __future__ import annotations

import json
from pathlib import Path

from weft.engine.events import TaskEnded, TaskStarted
from weft.engine.log import json_log


def test_a_load_that_is_read_twice_at_once(tmp_path: Path) -> None:
    """A load whose next use is far is read again: the second reading may begin before the first has ended."""
    with json_log(tmp_path / "log") as log:
        for event in (TaskStarted(3, "load", "a", 8), TaskStarted(3, "load", "a", 8), TaskEnded(3, "load"), TaskEnded(3, "load")):
            log(event)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["task_start", "task_start", "task_end", "task_end"]
    assert all(line["task"] == 3 and line["bytes"] == 8 and line.get("seconds", 0) >= 0 for line in lines)
