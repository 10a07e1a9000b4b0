"""What a report keeps of a run, and what it says of a folder before one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from merges import linear, merge, plan, recipe, write_two
from weft.engine.events import BytesRead, Event, MemoryHeld, RunStarted, TensorDurable, TensorWritten, both
from weft.engine.folder import OutputFolder
from weft.engine.journal import Journal
from weft.engine.prospect import prospect
from weft.engine.recorder import SAMPLES, Recorder
from weft.engine.run import run
from weft.errors import Interrupted


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return write_two(tmp_path)


def contents(out: Path) -> dict[str, bytes]:
    """All files but those in which SQLite notes who reads."""
    return {
        path.name: path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_a_run_is_measured(models: tuple[Path, Path], tmp_path: Path) -> None:
    recorder = Recorder()
    assert not recorder.started
    made = plan(recipe("ties", *models))
    summary = merge(recipe("ties", *models), tmp_path / "out", recorder)
    found = recorder.measured()
    assert recorder.started and found["finished"] and found["reused"] == 0
    assert found["durable"] == summary.tensors == len(made.recipes)
    assert found["summary"]["bytes_read"] == summary.bytes_read
    seconds, read, written, held, durable = found["samples"][-1]
    assert (read, durable) == (summary.bytes_read, summary.tensors)
    assert written == sum(place.nbytes for place in made.places) and 0 <= seconds <= found["seconds"] + 1e-3
    assert 0 < max(sample[3] for sample in found["samples"]) <= made.schedule.arena
    assert held <= made.schedule.arena


def test_long_runs_are_kept_in_a_bounded_space_and_no_peak_is_lost(models: tuple[Path, Path]) -> None:
    def clock() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 0.003

    recorder = Recorder(iter(clock()).__next__)
    recorder(RunStarted(plan(linear(*models)), 0, 0))
    for i in range(20_000):
        recorder(BytesRead(1))
        recorder(MemoryHeld(7_000 if i == 4_321 else i % 100))
        recorder(TensorWritten("x", 2))
        recorder(TensorDurable("x"))
    found = recorder.measured()
    samples = found["samples"]
    assert len(samples) <= SAMPLES + 1 and not found["finished"] and found["summary"] is None
    assert [s[0] for s in samples] == sorted(s[0] for s in samples)
    assert max(s[3] for s in samples) == 7_000
    assert samples[0][1] == 0 and samples[-1][1] >= 19_000 and found["durable"] == 20_000


def test_both_are_told() -> None:
    told: list[tuple[str, Event]] = []
    event = BytesRead(1)
    both(lambda e: told.append(("first", e)), lambda e: told.append(("second", e)))(event)
    assert told == [("first", event), ("second", event)]


def test_what_is_done_is_known_without_touching_it(models: tuple[Path, Path], tmp_path: Path) -> None:
    made, out = plan(recipe("slerp", *models)), tmp_path / "out"
    assert prospect(made, out).state == "new" and prospect(made, None).state is None

    def stop(event: Event) -> None:
        if isinstance(event, TensorDurable):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(made, out, stop)
    journal = Journal(OutputFolder(out).journal)
    recorded = set(journal.records())
    journal.close()
    before = contents(out)
    done = prospect(made, out).done
    assert {made.recipes[n].name for n in done} == recorded and len(done) > 0
    assert contents(out) == before
    assert prospect(plan(linear(*models)), out).done == frozenset()
    recorder = Recorder()
    run(made, out, recorder)
    assert recorder.measured()["reused"] == len(done)
    assert prospect(made, out).done == frozenset(range(len(made.recipes)))
    assert prospect(plan(linear(*models)), out).done == frozenset()


def test_a_damaged_journal_proves_nothing(models: tuple[Path, Path], tmp_path: Path) -> None:
    work = tmp_path / "out" / ".weft"
    work.mkdir(parents=True)
    (work / "journal.sqlite").write_bytes(b"no database at all")
    assert prospect(plan(linear(*models)), tmp_path / "out").done == frozenset()
    assert (work / "journal.sqlite").read_bytes() == b"no database at all"
