"""What a checkpoint is, from its headers and small files alone: for people who have just found one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .adapter import open_adapter
from .catalog import Checkpoint, InputTensor, open_checkpoint
from .layout import find_layout
from .locate import locate
from .quantized import quantization
from .reference import ModelReference
from .tokenizer_reader import TOKENIZER, read_tokenizers

INSPECTION_VERSION = 1

_NUMBER = re.compile(r"(?<![^.])\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors whose names differ in numbers only, which are `*` in `pattern`, of one shape and dtype."""

    pattern: str
    dtype: str
    shape: tuple[int, ...]
    tensors: tuple[InputTensor, ...]

    @property
    def parameters(self) -> int:
        """Elements of all of them."""
        return math.prod(self.shape) * len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter on the model: which of its tensors it changes by low-rank factors, and which it replaces."""

    label: str
    ranks: tuple[int, ...]
    patched: tuple[str, ...]
    replaced: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model's facts. `stacks` are runs of layers by prefix, the main one first; `tokenizer` says why where nothing is known."""

    checkpoint: Checkpoint
    architecture: str | None
    model_type: str | None
    stacks: Mapping[str, int]
    quantization: str | None
    tokens: int | None
    tokenizer: str | None
    groups: tuple[Group, ...]
    adapter: AdapterFacts | None

    @property
    def tensors(self) -> tuple[InputTensor, ...]:
        """All tensors in the order of the groups."""
        return tuple(tensor for group in self.groups for tensor in group.tensors)

    @property
    def parameters(self) -> int:
        """Elements of all tensors; of a quantised model, codes and scales as they are stored."""
        return sum(group.parameters for group in self.groups)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(group.nbytes for group in self.groups)

    def dtypes(self) -> dict[str, tuple[int, int]]:
        """By dtype, how many tensors have it and how many parameters those have; most parameters first."""
        found: dict[str, tuple[int, int]] = {}
        for group in self.groups:
            tensors, parameters = found.get(group.dtype, (0, 0))
            found[group.dtype] = tensors + len(group.tensors), parameters + group.parameters
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for programs. Keys are stable; new ones may be added."""
        checkpoint, adapter = self.checkpoint, self.adapter
        return {
            "version": INSPECTION_VERSION,
            "model": checkpoint.label,
            "commit": checkpoint.store.commit,
            "architecture": self.architecture,
            "model_type": self.model_type,
            "layers": next(iter(self.stacks.values()), 0),
            "stacks": dict(self.stacks),
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "quantization": self.quantization,
            "tokens": self.tokens,
            "dtypes": {dtype: {"tensors": n, "parameters": p} for dtype, (n, p) in self.dtypes().items()},
            "files": {file.name: file.size for file in checkpoint.files},
            "side_files": dict(checkpoint.side_files),
            "adapter": adapter
            and {
                "adapter": adapter.label,
                "ranks": list(adapter.ranks),
                "patched": list(adapter.patched),
                "replaced": list(adapter.replaced),
                "bytes": adapter.nbytes,
            },
            "groups": [
                {
                    "pattern": group.pattern,
                    "tensors": len(group.tensors),
                    "dtype": group.dtype,
                    "shape": list(group.shape),
                    "parameters": group.parameters,
                    "bytes": group.nbytes,
                }
                for group in self.groups
            ],
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "bytes": tensor.nbytes,
                    "file": tensor.file.name,
                    "offset": tensor.offset,
                }
                for tensor in self.tensors
            ],
        }


def inspect_model(reference: ModelReference) -> Inspection:
    """A folder's or a Hub model's facts, also of a quantised one. Raises CheckpointError for what is broken or missing."""
    checkpoint = open_checkpoint(locate(ModelReference(reference.model)), quantized=True)
    config, tensors = checkpoint.config, [tensor for tensor in checkpoint.tensors.values() if isinstance(tensor, InputTensor)]
    scheme = quantization(config, {tensor.name: tensor.dtype for tensor in tensors})
    layout = find_layout(checkpoint.label, config, checkpoint.tensors)
    adapter = None
    if reference.adapter is not None:
        found = open_adapter(locate(ModelReference(reference.adapter)), checkpoint)
        ranks = sorted({patch.a.shape[0] for patch in found.patches.values()})
        nbytes = sum(file.size for file in found.files)
        adapter = AdapterFacts(found.label, tuple(ranks), tuple(found.patches), tuple(found.replaced), nbytes)
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    kind = config.get("model_type")
    tokens, unknown = _tokens(checkpoint)
    return Inspection(
        checkpoint=checkpoint,
        architecture=first if isinstance(first, str) else None,
        model_type=kind if isinstance(kind, str) else None,
        stacks={stack.prefix: stack.count for stack in layout.stacks},
        quantization=scheme,
        tokens=tokens,
        tokenizer=unknown,
        groups=group(tensors),
        adapter=adapter,
    )


def pattern_of(name: str) -> str:
    """A tensor's name with `*` for the numbers of layers and experts."""
    return _NUMBER.sub("*", name)


def group(tensors: Iterable[InputTensor]) -> tuple[Group, ...]:
    """Tensors by pattern, shape and dtype, as the first of each comes; in a group by the numbers in their names."""
    found: dict[tuple[str, str, tuple[int, ...]], list[InputTensor]] = {}
    for tensor in sorted(tensors, key=lambda tensor: natural(tensor.name)):
        found.setdefault((pattern_of(tensor.name), tensor.dtype, tensor.shape), []).append(tensor)
    return tuple(Group(*key, tuple(members)) for key, members in found.items())


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts layer 2 before layer 10."""
    return tuple((int(part), "") if part.isdecimal() and len(part) < 18 else (-1, part) for part in name.split("."))


def _tokens(checkpoint: Checkpoint) -> tuple[int | None, str | None]:
    """How many tokens have an embedding row, or why nobody can tell."""
    if TOKENIZER not in checkpoint.side_files:
        return None, f"no {TOKENIZER}"
    try:
        (tokenizer,) = read_tokenizers((checkpoint,))
    except CheckpointError as error:
        return None, str(error)
    return len(tokenizer.tokens), None
