"""What a run would find done in its output folder, without touching anything there."""

from __future__ import annotations

from pathlib import Path

from ..planner.plan import Plan
from ..planner.shards import Shard
from .folder import OutputFolder, durable, state_of
from .journal import read_records
from .shard_writer import PARTIAL


def tensors_done(plan: Plan, out: Path) -> frozenset[int]:
    """The recipes whose tensors a run into `out` would not compute again."""
    state = state_of(out, plan.digest)
    if state == "complete":
        return frozenset(range(len(plan.recipes)))
    if state != "unfinished":
        return frozenset()
    names = [(recipe.name, recipe.digest) for recipe in plan.recipes]
    fresh = [not _begun(out, shard) for shard in plan.shards]
    return frozenset(durable(read_records(OutputFolder(out).journal), names, plan.places, plan.shards, fresh))


def _begun(out: Path, shard: Shard) -> bool:
    """Whether a shard is there that a run would continue, also one that a stopped run had given its final name."""
    for path in (out / (shard.name + PARTIAL), out / shard.name):
        try:
            with path.open("rb") as file:
                return path.stat().st_size == shard.size and file.read(len(shard.header)) == shard.header
        except OSError:
            continue
    return False
