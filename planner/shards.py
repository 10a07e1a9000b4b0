"""Where each output tensor will stand: shards of a bounded size, with headers known before the first byte is computed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dtypes import ITEM_SIZES
from .graph import PAGE
from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its header bytes (length prefix included), its total size, and the recipes it holds in order."""

    name: str
    header: bytes
    size: int
    recipes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """Where an output tensor's bytes go: which shard, and the offset from the shard's first byte."""

    shard: int
    offset: int
    nbytes: int


STEMS = ("model", "diffusion_pytorch_model")
"""What the names of weight files begin with: as transformers looks for them, and as diffusers does."""

_SHARD = re.compile(rf"({'|'.join(STEMS)})(-\d+-of-\d+)?\.safetensors")


def weights_stem(config: Mapping[str, Any]) -> str:
    """What the names of a model's weight files begin with, by its config.json: diffusers names a class there in its own way."""
    return STEMS["_class_name" in config and "model_type" not in config]


def is_shard_name(name: str) -> bool:
    """Whether `lay_out` may give a file this name."""
    return bool(_SHARD.fullmatch(name))


def lay_out(recipes: Sequence[Recipe], limit: int, stem: str = STEMS[0]) -> tuple[tuple[Shard, ...], tuple[OutputPlace, ...]]:
    """Fill shards of at most `limit` bytes of tensors, in order; a larger tensor has its own. Names begin with `stem`."""
    sizes = [ITEM_SIZES[recipe.dtype] * recipe.arguments.size for recipe in recipes]
    groups: list[list[int]] = [[]]
    filled = 0
    for number, nbytes in enumerate(sizes):
        if groups[-1] and filled + nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(number)
        filled += nbytes
    shards, places = [], [OutputPlace(0, 0, 0)] * len(recipes)
    for index, group in enumerate(groups):
        # Wider elements first, so that every tensor begins at a multiple of its element's size.
        group.sort(key=lambda number: -ITEM_SIZES[recipes[number].dtype])
        header = _header(recipes, sizes, group)
        offset = len(header)
        for number in group:
            places[number] = OutputPlace(index, offset, sizes[number])
            offset += sizes[number]
        name = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{index + 1:05d}-of-{len(groups):05d}.safetensors"
        shards.append(Shard(name, header, offset, tuple(group)))
    return tuple(shards), tuple(places)


def _header(recipes: Sequence[Recipe], sizes: Sequence[int], group: Sequence[int]) -> bytes:
    """The safetensors header: 8 bytes of length, then JSON padded with spaces so that tensors begin at a page."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for number in group:
        recipe, nbytes = recipes[number], sizes[number]
        entries[recipe.name] = {"dtype": recipe.dtype, "shape": list(recipe.shape), "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text
