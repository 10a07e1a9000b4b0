"""Checks finished shards, and makes what stands beside them: index, config, side files, model card."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, InputChanged, OutputError
from ..planner.dtypes import ITEM_SIZES
from ..planner.plan import Plan
from ..planner.store import Store, check_state
from .card import CARD, model_card
from .fetch import check_downloads
from .folder import OutputFolder, missing
from .manifest import Manifest, checksum_of
from .shard_writer import PARTIAL
from .swap import CONFIG
from .system import READ_CHUNK


def check_shards(plan: Plan, folder: OutputFolder, kept: Collection[int] = ()) -> None:
    """Read the new shards back with the safetensors library, which did not write them: names, shapes, dtypes, sizes.

    Raises OutputError for the first thing that is not as planned.
    """
    for shard in (shard for index, shard in enumerate(plan.shards) if index not in kept):
        path = folder.root / (shard.name + PARTIAL)
        if path.stat().st_size != shard.size:
            raise OutputError(f"{path}: {path.stat().st_size} bytes, planned {shard.size}: something else wrote to it")
        try:
            with safe_open(path, framework="numpy") as file:
                names = list(file.keys())
                found = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in names}
        except SafetensorError as error:
            raise OutputError(f"{path}: not readable as safetensors: {error}") from None
        wanted = {plan.recipes[n].name: (plan.recipes[n].dtype, plan.recipes[n].shape) for n in shard.recipes}
        if found != wanted:
            name = next(iter(sorted(set(found) ^ set(wanted)) or [n for n in wanted if found[n] != wanted[n]]))
            raise OutputError(f"{path}: tensor '{name}' is {found.get(name)}, planned {wanted.get(name)}")


def companions(plan: Plan) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Everything but the shards and the manifest, one file at a time, its bytes in pieces: a module's weights may be large."""
    if len(plan.shards) > 1:
        yield plan.index_name, iter([_json(_index(plan))])
    yield CONFIG, iter([_json(plan.model_config)])
    for name in plan.side_files:
        yield name, _pieces(plan.base.checkpoint.store, name)
    for name, data in plan.written_files.items():
        yield name, iter([data])
    yield CARD, iter([model_card(plan).encode()])


def _pieces(store: Store, name: str) -> Iterator[bytes]:
    """A model's file; one of a Hub model is downloaded first. Raises CheckpointError where it cannot be read or has changed."""
    if store.path(name) is None:
        store.download([name], quiet=True)
    check_downloads([(store, name)], quiet=True)
    with store.open(name) as file:
        yield from pieces(file, f"{store.label}/{name}")
        if name in store.used():
            check_state(file, store.used()[name], f"{store.label}/{name}")  # nobody wrote to it meanwhile


def pieces(file: BinaryIO, label: str) -> Iterator[bytes]:
    """A file's bytes. Raises CheckpointError, which begins with `label`, where they cannot be read."""
    try:
        while piece := file.read(READ_CHUNK):
            yield piece
    except OSError as error:
        raise CheckpointError(f"{label}: {error.strerror or error}") from None


def is_complete(plan: Plan, root: Path, manifest: Manifest) -> bool:
    """Whether a finished result is that of this very plan and none of its files is gone."""
    if not all(recipe.name in manifest.tensors for recipe in plan.recipes):
        return False
    return manifest.plan == plan.digest and missing(root, manifest) is None and same_companions(plan, manifest.files)


def same_companions(plan: Plan, files: Mapping[str, str]) -> bool:
    """Whether a finished result's small files, known by their checksums, are those that the plan would write.

    The model card is not looked at: it says what the result was made with. A file that cannot be had now counts as unchanged.
    """
    try:
        made = {name: checksum_of(data) for name, data in companions(plan) if name != CARD}
    except InputChanged:
        raise
    except CheckpointError:
        return True
    return made == {name: found for name, found in files.items() if name != CARD}


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _index(plan: Plan) -> dict[str, Any]:
    weight_map = {plan.recipes[n].name: shard.name for shard in plan.shards for n in shard.recipes}
    total = sum(ITEM_SIZES[recipe.dtype] * recipe.arguments.size for recipe in plan.recipes)
    return {
        "metadata": {"total_size": total, "total_parameters": plan.parameters},
        "weight_map": dict(sorted(weight_map.items())),
    }
