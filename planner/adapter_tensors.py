"""An adapter's tensors, told by their names: pairs of factors, tensors to take over whole, and copies of the base model's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import CheckpointError
from .adapter_config import REFUSED
from .catalog import InputTensor, WeightFile, read_header
from .dtypes import MERGED
from .store import Store

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_FACTOR = re.compile(r"(?P<module>.+?)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
_EMBEDDING_FACTOR = re.compile(r"(?P<module>.+?)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(\.[^.]+)?\.(?P<rest>weight|bias)")


@dataclass(slots=True)
class Pair:
    """The factors of one module, as far as they are found."""

    embedding: bool
    factors: dict[str, InputTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """An adapter's tensors by what they are for; `copies` are of the base model's weights, as they were in training."""

    pairs: dict[str, Pair]
    saved: dict[str, InputTensor]
    copies: dict[str, InputTensor]


def read_tensors(store: Store) -> tuple[WeightFile, list[InputTensor]]:
    """The file of weights and the tensors in its header."""
    sizes = store.sizes()
    name = next((name for name in WEIGHTS if name in sizes), None)
    if name is None:
        raise CheckpointError(f"{store.label}: missing weights: there is no {WEIGHTS[0]} or {WEIGHTS[1]}")
    header = read_header(store, name, sizes[name], f"{store.label}/{name}")
    file = WeightFile(store.label, name, sizes[name], f"{store.identity(name)}:{header.digest}")
    return file, [InputTensor(e.name, e.dtype, e.shape, file, e.offset, e.nbytes) for e in header.tensors]


def sort_tensors(label: str, tensors: Iterable[InputTensor]) -> AdapterTensors:
    """Raises CheckpointError for a tensor that is no part of plain LoRA, and for a factor without the other."""
    parts = AdapterTensors({}, {}, {})
    for tensor in tensors:
        name = tensor.name.removeprefix("base_model.model.")
        if ".original_module." in name:
            continue
        if "lora_magnitude_vector" in name:
            raise CheckpointError(f"{label}: '{tensor.name}': {REFUSED['use_dora']}; weft applies plain LoRA only")
        if embedding := _EMBEDDING_FACTOR.fullmatch(name):
            _add_factor(label, parts, embedding, tensor, True)
        elif match := _FACTOR.fullmatch(name):
            _add_factor(label, parts, match, tensor, False)
        elif "lora_" in name or "token_adapter" in name:
            raise CheckpointError(f"{label}: '{tensor.name}' is not part of plain LoRA, and weft applies nothing else")
        elif name.endswith(".base_layer.weight"):
            parts.copies[name.removesuffix(".base_layer.weight") + ".weight"] = tensor
        else:
            saved = _SAVED.fullmatch(name)
            parts.saved[f"{saved['module']}.{saved['rest']}" if saved else name.replace(".base_layer.", ".")] = tensor
    for module, pair in parts.pairs.items():
        for side, other in (("A", "B"), ("B", "A")):
            if side not in pair.factors:
                raise CheckpointError(f"{label}: '{pair.factors[other].name}' has no lora_{side} beside it: half of an update")
        for tensor in pair.factors.values():
            if tensor.dtype not in MERGED:
                raise CheckpointError(f"{label}: '{tensor.name}' has dtype {tensor.dtype}, which is not a floating-point type")
        if module.endswith(".base_layer"):
            raise CheckpointError(f"{label}: '{pair.factors['A'].name}': {REFUSED['target_parameters']}; weft cannot apply it")
    if not parts.pairs and not parts.saved:
        raise CheckpointError(f"{label}: there are no tensors of an adapter in it")
    return parts


def _add_factor(label: str, parts: AdapterTensors, match: re.Match[str], tensor: InputTensor, embedding: bool) -> None:
    pair = parts.pairs.setdefault(match["module"], Pair(embedding))
    if match["side"] in pair.factors or pair.embedding is not embedding:
        raise CheckpointError(f"{label}: '{tensor.name}' is one factor too many for '{match['module']}'")
    pair.factors[match["side"]] = tensor
