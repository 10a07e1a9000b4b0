"""What a record in the journal must say of a tensor to prove it done: its digest, and which files it was made from.

A digest has a file's size and the time of its last change, so a finished result may move to another machine with its models. But
that time can be set back (`cp -p` and `rsync -t` do), and an unfinished result must not mix two files: its journal has the time
that nobody can set, too.
"""

from __future__ import annotations

import hashlib

from ..planner.catalog import WeightFile
from ..planner.plan import Plan
from ..planner.recipe import files_of
from ..planner.router import ROUTER


def proofs(plan: Plan) -> tuple[str, ...]:
    """For each of a plan's output tensors, what its record's `digest` must be."""
    times: dict[WeightFile, str] = {}
    for file in plan.files():
        store = None if file.model == ROUTER else plan.stores[file.model]
        if store is not None and store.commit is None:  # a commit pins the bytes
            times[file] = str(store.state(file.name).changed)
    found = []
    for recipe in plan.recipes:
        read = " ".join(times[file] for file in files_of([recipe]) if file in times)
        found.append(f"{recipe.digest}:{hashlib.sha256(read.encode()).hexdigest()[:16]}" if read else recipe.digest)
    return tuple(found)


def digest_of(proof: str) -> str:
    """The recipe's digest in a proof."""
    return proof.partition(":")[0]
