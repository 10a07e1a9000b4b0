"""Makes damaged tensors of a finished result again, from what its manifest says it was made of."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointError
from ..planner.config import load_config
from ..planner.ingredients import ingredients_of
from ..planner.plan import Options, Plan, make_plan
from ..planner.reasons import differences, summarise
from .events import Observer, Summary, ignore
from .folder import OutputFolder, hold, looking_at
from .manifest import MANIFEST, Manifest
from .run import run
from .swap import finish_swap


def end_swap(out: Path) -> None:
    """Put the files of a result in place where that was interrupted. Raises OutputError where another process does."""
    folder = OutputFolder(out)
    with looking_at(out):
        if not (folder.swapping or (folder.unfinished and not folder.recording and folder.manifest() is not None)):
            return
    with suppress(FileNotFoundError), looking_at(out), hold(out) as held:
        if not finish_swap(held) and not held.recording:
            held.close()


def plan_again(out: Path, manifest: Manifest, options: Options) -> Plan:
    """The plan that made a finished result.

    Raises CheckpointError where its inputs are not what they were: then nothing of it can be made again.
    """
    # What made a result was no error, whether or not it took --lenient.
    plan = make_plan(load_config(manifest.config, str(out / MANIFEST), lenient=True), options)
    changed = {
        recipe.name: differences(manifest.ingredients(recipe.name), ingredients_of(recipe))
        for recipe in plan.recipes
        if recipe.name not in manifest.tensors or manifest.tensors[recipe.name].digest != recipe.digest
    }
    if changed:
        first = summarise(changed)[0].text(len(plan.recipes))
        raise CheckpointError(f"{out} cannot be repaired: {first}; `weft run` with the config computes what that changes")
    return plan


def repair(plan: Plan, out: Path, damaged: Collection[str], observer: Observer = ignore, *, quiet: bool = True) -> Summary:
    """Make these tensors, and missing files, again. Raises what a run raises; until it is done nothing in the folder changes."""
    return run(plan, out, observer, quiet=quiet, distrust=damaged)
