"""What a model is made of, from its headers alone: config, tensors with dtype, shape, file and byte range, and side files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .headers import FileHeader, safetensors_header
from .json_text import loads
from .pickle_header import pickle_header
from .quantized import refuse_quantized
from .side_files import is_weights, known_side_files
from .store import Store

_WEIGHT_FILES = (
    ("model", ".safetensors"),
    ("diffusion_pytorch_model", ".safetensors"),
    ("pytorch_model", ".bin"),
    ("diffusion_pytorch_model", ".bin"),
)
"""What the names of weight files begin with and end in, those that are preferred first."""


_LFS = b"version https://git-lfs"
_LFS_SIZE = 1024
"""What stands in place of a file that git alone has fetched, and the bytes it has at most."""


if TYPE_CHECKING:
    from .recipe import Recipe


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of tensor data. `identity` changes whenever its bytes do."""

    model: str
    name: str
    size: int
    identity: str


@dataclass(frozen=True, slots=True)
class InputTensor:
    """A tensor of an input model, and where its bytes are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: WeightFile
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's headers. `side_files` are what goes along with its weights, as far as names tell, with their sizes."""

    label: str
    store: Store
    config: Mapping[str, Any]
    tensors: Mapping[str, InputTensor | Recipe]
    files: tuple[WeightFile, ...]
    side_files: Mapping[str, int]


def open_checkpoint(store: Store, *, quantized: bool = False) -> Checkpoint:
    """Read a model's config and headers. Raises CheckpointError for what is broken, missing or (unless wanted) quantised."""
    sizes = store.sizes()
    if "config.json" not in sizes and (other := _other_kind(store.label, sizes)):
        raise CheckpointError(other)
    config = _json_map(store, "config.json", sizes)
    names, index = _weight_files(store, sizes)
    tensors: dict[str, InputTensor] = {}
    files: list[WeightFile] = []
    for name in names:
        label = f"{store.label}/{name}"
        header = read_header(store, name, sizes[name], label, any_dtype=quantized)
        file = WeightFile(store.label, name, sizes[name], f"{store.identity(name)}:{header.digest}")
        files.append(file)
        for entry in header.tensors:
            if entry.name in tensors:
                raise CheckpointError(f"{label}: tensor '{entry.name}' is in {tensors[entry.name].file.name} too")
            tensors[entry.name] = InputTensor(entry.name, entry.dtype, entry.shape, file, entry.offset, entry.nbytes)
    for name, shard in index.items():
        if name not in tensors:
            raise CheckpointError(f"{store.label}: missing weights: the index puts '{name}' into {shard}, which does not have it")
    if not tensors:
        raise CheckpointError(f"{store.label}: there are no tensors in {', '.join(names)}")
    if not quantized:
        refuse_quantized(store.label, config, {name: tensor.dtype for name, tensor in tensors.items()})
    return Checkpoint(store.label, store, config, tensors, tuple(files), known_side_files(store, sizes))


def read_header(store: Store, name: str, size: int, label: str, *, any_dtype: bool = False) -> FileHeader:
    """The header of a weight file of `size` bytes; `label` names it in messages; `any_dtype` as for safetensors_header."""
    with store.open(name) as file:
        if size < _LFS_SIZE and file.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{label}: a Git LFS pointer instead of the weights: run `git lfs pull` in the model's folder")
        file.seek(0)
        if name.endswith(".bin"):
            return pickle_header(file, label)

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        return safetensors_header(read, size, label, any_dtype=any_dtype)


def _weight_files(store: Store, sizes: Mapping[str, int]) -> tuple[list[str], Mapping[str, str]]:
    """The files that hold the weights, and the index's map from tensor to file (empty without an index)."""
    for stem, ending in _WEIGHT_FILES:
        index = f"{stem}{ending}.index.json"
        if index in sizes:
            weight_map = _weight_map(store, index, sizes)
            for shard in weight_map.values():
                if shard not in sizes:
                    raise CheckpointError(
                        f"{store.label}: missing weights: {index} names {shard}, which is not there; fetch it again"
                    )
            return sorted(set(weight_map.values())), weight_map
        found = sorted(name for name in sizes if name.startswith(stem) and name.endswith(ending))
        plain = f"{stem}{ending}"
        if plain in found:  # beside which there may be variants, such as model.fp16.safetensors
            found = [name for name in found if name == plain or not name.startswith(f"{stem}.")]
        if found:
            _complete(store.label, found)
            return found, {}
    other = [name for name in sizes if name.endswith(".safetensors") and not name.startswith(("adapter", "consolidated"))]
    if len(other) == 1:
        return other, {}
    raise CheckpointError(_nothing_found(store.label, sizes))


def _complete(label: str, names: list[str]) -> None:
    """Shards say how many there are; without an index their names are all there is to check."""
    numbered = [re.fullmatch(r".*-(\d+)-of-(\d+)\.\w+", name) for name in names]
    if len(names) == 1 and numbered[0] is None:
        return
    if None in numbered:
        raise CheckpointError(f"{label}: {names[0]} and {names[-1]} are both there, without an index that says which to use")
    totals = {int(match[2]) for match in numbered if match}
    present = {int(match[1]) for match in numbered if match}
    if len(totals) > 1:
        raise CheckpointError(
            f"{label}: {names[0]} and {names[-1]} are shards of different models: remove what does not belong here"
        )
    missing = next((number for number in range(1, max(totals) + 1) if number not in present), None)
    if missing is not None:
        raise CheckpointError(f"{label}: missing weights: shard {missing} of {max(totals)} is not there; fetch it again")


def _other_kind(label: str, sizes: Mapping[str, int]) -> str | None:
    """What a folder holds instead of a model's weights, if it is known."""
    gguf = next((name for name in sizes if name.lower().endswith(".gguf")), None)
    if gguf:
        return f"{label}: {gguf} is GGUF, a quantised format: use the model's safetensors release"
    if "model_index.json" in sizes:
        return f"{label}: a pipeline of several models: name the folder of one, such as {label}/transformer or {label}/unet"
    if any(name.startswith("adapter_") for name in sizes):
        return f"{label}: this is an adapter, not a model: name it after its base model, as in base+{label}"
    return None


def _nothing_found(label: str, sizes: Mapping[str, int]) -> str:
    if other := _other_kind(label, sizes):
        return other
    others = [name for name in sizes if is_weights(name)]
    have = f"; it has {others[0]}, which weft does not read" if others else ""
    return f"{label}: missing weights: no model.safetensors, pytorch_model.bin or index of shards{have}"


def _weight_map(store: Store, index: str, sizes: Mapping[str, int]) -> dict[str, str]:
    weight_map = _json_map(store, index, sizes).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{store.label}/{index}: has no 'weight_map' from tensors to files")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or "\\" in shard or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(
                f"{store.label}/{index}: '{name}' is put into {shard!r}, which is not a weight file of this model"
            )
    return weight_map


def _json_map(store: Store, name: str, sizes: Mapping[str, int]) -> dict[str, Any]:
    label = f"{store.label}/{name}"
    if name not in sizes:
        raise CheckpointError(f"{label}: not there: {store.label} is not a model, or not a complete one")
    try:
        value = loads(store.read(name))
    except ValueError as error:
        raise CheckpointError(f"{label}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}: not a map")
    return value
