"""What a finished result and an interrupted run leave for a plan to do: shards to keep, tensors to copy, tensors to compute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..errors import CheckpointError
from ..planner.files import open_file
from ..planner.headers import TensorEntry, safetensors_header
from ..planner.ingredients import ingredients_of
from ..planner.plan import Plan
from ..planner.reasons import Reason, differences
from .directory import Directory
from .finish import is_complete
from .folder import OutputFolder, begun, durable, looking_at
from .journal import Record, read_records
from .manifest import FinishedTensor, Manifest, checksum
from .proof import proofs
from .shard_writer import holds
from .system import pread


@dataclass(frozen=True, slots=True)
class Copy:
    """A tensor whose bytes stand in a finished shard already; `record` is what they will be in the new one."""

    number: int
    source: Path
    offset: int
    record: Record


@dataclass(frozen=True, slots=True)
class Finished:
    """What the earlier result has for a plan.

    `kept` shards stay as they are, with the tensors of `records`; `copies` are tensors with another place, both by recipe number.
    `lost` are tensors whose bytes cannot be had although the manifest has them.
    """

    kept: frozenset[int]
    records: Mapping[int, Record]
    copies: Mapping[int, Copy]
    lost: frozenset[int]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a run would do: so many tensors are `done`, others `copied` from the earlier result, the rest computed, and why.

    `numbers` are the recipes of those that are not computed.
    """

    numbers: frozenset[int]
    done: int
    copied: int
    copied_bytes: int
    kept_shards: tuple[str, ...]
    reasons: Mapping[str, tuple[Reason, ...]]

    @property
    def reused(self) -> int:
        """Tensors that are not computed."""
        return self.done + self.copied


def finished(plan: Plan, root: Path, manifest: Manifest | None, distrust: Collection[str] = ()) -> Finished:
    """What can be reused of a complete result; `distrust` names tensors whose bytes are known to be damaged."""
    if manifest is None:
        return Finished(frozenset(), {}, {}, frozenset())
    places: dict[str, tuple[Path, TensorEntry]] = {}
    for name in manifest.shards:
        for entry in shard_entries(root, name, manifest):
            places[entry.name] = (root / name, entry)
    by_digest = {tensor.digest: name for name, tensor in manifest.tensors.items() if name in places and name not in distrust}
    found: dict[int, tuple[str, FinishedTensor]] = {}
    lost = set()
    for number, recipe in enumerate(plan.recipes):
        same = manifest.tensors.get(recipe.name)
        own = same is not None and same.digest == recipe.digest
        usable = own and recipe.name in places and recipe.name not in distrust
        name = recipe.name if usable else by_digest.get(recipe.digest, "")
        if name and places[name][1].nbytes == plan.places[number].nbytes:
            found[number] = name, manifest.tensors[name]
        elif own:
            lost.add(number)
    kept, records, copies = set(), {}, {}
    proven = proofs(plan)
    for index, shard in enumerate(plan.shards):
        stays = _stays(plan, index, root, manifest) and all(
            n in found and found[n][0] == plan.recipes[n].name and places[found[n][0]][0].name == shard.name
            for n in shard.recipes
        )
        if stays:
            kept.add(index)
        for number in shard.recipes:
            if number in found:
                origin, tensor = found[number]
                record = _record(plan, proven[number], number, tensor)
                path, entry = places[origin]
                if stays:
                    records[number] = record
                else:
                    copies[number] = Copy(number, path, entry.offset, record)
    return Finished(frozenset(kept), records, copies, frozenset(lost))


def outlook(plan: Plan, root: Path) -> Outlook | None:
    """What `weft run` would find in a folder; None where it would find nothing of ours. Changes nothing there."""
    with suppress(FileNotFoundError), looking_at(root):
        return _outlook(plan, root)
    return None


def _outlook(plan: Plan, root: Path) -> Outlook | None:
    folder = OutputFolder(root)
    manifest = folder.manifest()
    if manifest is None and not folder.unfinished:
        return None
    earlier = finished(plan, root, manifest)
    with closing(Directory.open(root)) as top:
        fresh = [not begun(top, shard) for shard in plan.shards]
    names = [(recipe.name, proof) for recipe, proof in zip(plan.recipes, proofs(plan), strict=True)]
    records = {**durable(read_records(folder.journal), names, plan.places, plan.shards, fresh), **earlier.records}
    copied = {n: copy for n, copy in earlier.copies.items() if n not in records}
    reasons = {
        plan.recipes[n].name: why(plan, n, manifest, lost=n in earlier.lost)
        for n in range(len(plan.recipes))
        if n not in records and n not in copied and manifest is not None
    }
    kept = tuple(plan.shards[index].name for index in sorted(earlier.kept))
    return Outlook(
        frozenset({*records, *copied}), len(records), len(copied), sum(plan.places[n].nbytes for n in copied), kept, reasons
    )


def state_of(plan: Plan, root: Path) -> str:
    """For a dry run: "new", "unfinished", "complete", "another" or "foreign"."""
    folder = OutputFolder(root)
    with suppress(FileNotFoundError), looking_at(root):
        if not root.is_dir():
            return "foreign" if root.exists() else "new"
        if not any(root.iterdir()):
            return "new"
        manifest = folder.manifest()
        if manifest is not None:
            return "complete" if is_complete(plan, root, manifest) else "another"
        return "unfinished" if folder.unfinished else "foreign"
    return "new"


def why(plan: Plan, number: int, manifest: Manifest, *, lost: bool = False) -> tuple[Reason, ...]:
    """Why a tensor must be computed although there is an earlier result."""
    recipe = plan.recipes[number]
    return (Reason("damaged"),) if lost else differences(manifest.ingredients(recipe.name), ingredients_of(recipe))


def shard_entries(root: Path, name: str, manifest: Manifest) -> tuple[TensorEntry, ...]:
    """The tensors of a finished shard by its header, which must be as it was written; none where it is not, or not there."""
    path = root / name
    try:
        with open_file(path) as file:
            read = partial(pread, file.fileno())
            length = 8 + int.from_bytes(read(0, 8), "little")
            size = manifest.shards[name].nbytes
            if length > size or checksum(read(0, length)) != manifest.shards[name].header:
                return ()
            return safetensors_header(read, size, str(path)).tensors
    except (OSError, CheckpointError):
        return ()


def _stays(plan: Plan, index: int, root: Path, manifest: Manifest) -> bool:
    """Whether the finished folder has a shard of the same name, size and header, by its manifest and on the disk."""
    shard = plan.shards[index]
    known = manifest.shards.get(shard.name)
    path = root / shard.name
    if known is None or (known.nbytes, known.header) != (shard.size, checksum(shard.header)):
        return False
    with suppress(OSError), open_file(path) as file:
        return holds(file.fileno(), shard)
    return False


def _record(plan: Plan, proof: str, number: int, tensor: FinishedTensor) -> Record:
    recipe, place = plan.recipes[number], plan.places[number]
    facts = tensor.facts
    if tensor.base != recipe.base_input:  # compared with another model than the base is now
        facts = replace(facts, compared=0, differing=0)
    return Record(recipe.name, proof, plan.shards[place.shard].name, place.offset, place.nbytes, tensor.checksum, facts)
