"""What is said while a run goes on: in its lines, and about the time that is left."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from weft.cli.progress import _live, remaining_seconds


def test_at_first_the_plan_says_how_long_it_takes_and_later_the_run_itself() -> None:
    assert remaining_seconds(100, 0, 0) == 100
    assert remaining_seconds(100, 30, 0) == 70
    assert remaining_seconds(100, 200, 0) == 0, "late, and nothing is known of how long"
    assert remaining_seconds(100, 1, 0.01) == pytest.approx(99, rel=0.01)
    assert remaining_seconds(100, 20, 0.5) == 20
    assert remaining_seconds(100, 40, 1) == 0


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
def test_an_estimate_is_a_time(expected: float, elapsed: float, done: float) -> None:
    left = remaining_seconds(expected, elapsed, done)
    assert left >= 0
    if done >= 0.1:
        assert left == pytest.approx(elapsed * (1 - done) / done), "its own speed is all that counts"


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_terminal_that_cannot_be_drawn_over_gets_lines(monkeypatch: pytest.MonkeyPatch, term: str, live: bool) -> None:
    monkeypatch.setenv("TERM", term)
    assert _live(Console(file=io.StringIO(), force_terminal=True)) is live
    assert not _live(Console(file=io.StringIO()))
