"""What a run would find done in its output folder, without changing anything there that a run relies on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..planner.plan import Plan
from ..planner.shards import Shard
from .folder import OutputFolder, durable, state_of
from .journal import read_records
from .shard_writer import PARTIAL


@dataclass(frozen=True, slots=True)
class Prospect:
    """What an output folder is to a plan (None: none is named), and the recipes whose tensors it has already."""

    state: str | None = None
    done: frozenset[int] = frozenset()


def prospect(plan: Plan, out: Path | None) -> Prospect:
    """Look at an output folder as a run would."""
    if out is None:
        return Prospect()
    state = state_of(out, plan.digest)
    if state == "complete":
        return Prospect(state, frozenset(range(len(plan.recipes))))
    if state != "unfinished":
        return Prospect(state)
    names = [(recipe.name, recipe.digest) for recipe in plan.recipes]
    fresh = [not _begun(out, shard) for shard in plan.shards]
    records = read_records(OutputFolder(out).journal)
    return Prospect(state, frozenset(durable(records, names, plan.places, plan.shards, fresh)))


def _begun(out: Path, shard: Shard) -> bool:
    """Whether a shard is there that a run would continue, also one that a stopped run had given its final name."""
    for path in (out / (shard.name + PARTIAL), out / shard.name):
        try:
            with path.open("rb") as file:
                return path.stat().st_size == shard.size and file.read(len(shard.header)) == shard.header
        except OSError:
            continue
    return False
