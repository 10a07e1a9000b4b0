"""Finds a model's layers from the numbers in its tensor names, for any architecture.

`model.layers.3.mlp.up_proj.weight` is tensor `mlp.up_proj.weight` of layer 3 of the stack `model.layers`. The layer counts in
config.json say which runs of numbers are layers; what stands outside them comes before (embeddings) or after (norm, head).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import CheckpointError

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Keys of config.json under which families keep the layer count of their main stack."""

MAIN_SETTINGS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys of config.json under which families keep the language model's own part."""

_NUMBERED = re.compile(r"(?P<prefix>.*?)\.?(?<![^.])(?P<index>0|[1-9][0-9]{0,5})\.(?P<rest>.+)")
_COUNT_KEY = re.compile(r"(layer|block|depth)", re.IGNORECASE)
_BEFORE = re.compile(
    r"(^|[._])(\w*embed\w*|wte|wpe|tok_emb\w*|word_emb\w*|shared|rotary_pos_emb|patch\w*|visual|vision\w*)([._]|$)"
)
_OUTPUT_EMBEDDINGS = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
_INPUT_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight$")


@dataclass(frozen=True, slots=True)
class Stack:
    """A run of layers: tensors `prefix.0.…` to `prefix.{count - 1}.…`."""

    prefix: str
    count: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands: in a layer of a stack, or outside all layers (`stack` None).

    `beyond`: in a layer numbered behind the main stack's last, as heads for multi-token prediction are kept.
    """

    name: str
    stack: Stack | None = None
    layer: int = 0
    rest: str = ""
    beyond: bool = False

    @property
    def before(self) -> bool:
        """Whether a tensor outside the layers is used before them."""
        return self.stack is None and not self.beyond and bool(_BEFORE.search(self.name)) and not is_output_embedding(self.name)

    def at(self, layer: int) -> str:
        """The same tensor's name in another layer."""
        assert self.stack is not None
        return f"{self.stack.prefix}.{layer}.{self.rest}" if self.stack.prefix else f"{layer}.{self.rest}"


@dataclass(frozen=True)
class Layout:
    """A model's stacks, the main one first, and the place of each tensor."""

    stacks: tuple[Stack, ...]
    places: Mapping[str, Place]

    @property
    def main(self) -> Stack | None:
        """The stack that `slices` speak of."""
        return self.stacks[0] if self.stacks else None

    @cached_property
    def embedding(self) -> str | None:
        """The name of the input embedding, if there is just one tensor that could be it."""
        return input_embedding(self.places)

    @cached_property
    def modules(self) -> frozenset[str]:
        """The names of all modules that hold a tensor, at any depth."""
        found: set[str] = set()
        for name in self.places:
            module = name.rpartition(".")[0]
            while module and module not in found:
                found.add(module)
                module = module.rpartition(".")[0]
        return frozenset(found)


def is_output_embedding(name: str) -> bool:
    """Whether the tensor is the language model's output projection, which may be tied to the input embedding."""
    return bool(_OUTPUT_EMBEDDINGS.search(name))


def is_input_embedding(name: str) -> bool:
    """Whether the tensor is an embedding of tokens."""
    return bool(_INPUT_EMBEDDINGS.search(name))


def input_embedding(names: Iterable[str]) -> str | None:
    """The name of the input embedding, if there is just one that could be it; what layers have of their own is none."""
    found = [name for name in names if is_input_embedding(name)]
    outside = [name for name in found if not _NUMBERED.fullmatch(name)] if len(found) > 1 else found
    return outside[0] if len(outside) == 1 else None


def stands_for(name: str, names: Collection[str]) -> str | None:
    """The tensor that holds `name`'s values: itself, or for a tied output projection without one the input embedding."""
    if name in names:
        return name
    return input_embedding(names) if is_output_embedding(name) else None


def find_layout(label: str, config: Mapping[str, Any], names: Iterable[str]) -> Layout:
    """Group tensor names into stacks. Raises CheckpointError where a layer that config.json promises has no tensors."""
    split = {name: match for name in names if (match := _NUMBERED.fullmatch(name))}
    layers: dict[str, dict[int, int]] = {}
    for match in split.values():
        indices = layers.setdefault(match["prefix"], {})
        index = int(match["index"])
        indices[index] = indices.get(index, 0) + 1
    wanted = main_layer_count(config)
    counts = set(_counts(config))
    main = _main_prefix(layers, wanted, counts)
    whole = {prefix: max(indices) + 1 for prefix, indices in layers.items() if len(indices) == max(indices) + 1}
    if wanted is None and main not in whole:
        main = None  # numbers with gaps are modules in a row, of which some have no weights
    stacks = {prefix: Stack(prefix, count) for prefix, count in whole.items() if count in counts}
    others = [stack.count for stack in stacks.values() if stack.prefix != main]
    if main is not None and not (main in stacks and wanted in others):
        fewer = main in whole and wanted is not None and whole[main] < wanted
        counted = None if fewer and _counts_something_else(main, whole, config) else wanted
        stacks[main] = Stack(main, _checked(label, main, layers[main], counted))
    places = {name: _place(name, split.get(name), stacks) for name in names}
    ordered = sorted(stacks.values(), key=lambda stack: (stack.prefix != main, stack.prefix))
    return Layout(tuple(ordered), places)


def main_layer_count(config: Mapping[str, Any]) -> int | None:
    """The layer count of a model's main stack, by its config.json."""
    for settings in main_settings(config):
        for key in LAYER_COUNTS:
            value = settings.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def main_settings(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a config.json that may describe the main stack: the top, then a language model's own part."""
    yield config
    for key in MAIN_SETTINGS:
        nested = config.get(key)
        if isinstance(nested, Mapping):
            yield nested


def _counts(config: Mapping[str, Any]) -> Iterator[int]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif isinstance(value, int) and _COUNT_KEY.search(str(key)):
            yield value


def _main_prefix(layers: Mapping[str, Mapping[int, int]], wanted: int | None, counts: Collection[int]) -> str | None:
    """The decoder of a language model: of the stacks with as many layers as config.json counts, one of no other side."""

    def fit(prefix: str) -> tuple[bool, bool, bool, bool, int, str]:
        indices = layers[prefix]
        count = max(indices) + 1
        counted = len(indices) == count and (count in counts or (wanted is not None and count > wanted))
        tower, encoder = bool(_TOWER.search(prefix)), bool(_ENCODER.search(prefix))
        return counted or count == wanted, not tower, not encoder, count == wanted, sum(indices.values()), prefix

    candidates = [prefix for prefix, indices in layers.items() if max(indices) + 1 > 1 or wanted == 1]
    return max(candidates, key=fit) if candidates else None


_TOWER = re.compile(r"vision|visual|audio")
_ENCODER = re.compile(r"encoder\b")
"""What stacks of a model are called that are not its language model, or not the part of it that decodes."""


def _counts_something_else(main: str, whole: Mapping[str, int], config: Mapping[str, Any]) -> bool:
    """Whether what config.json counts may be no layers of this stack, which has no gap: stages of an image model, say, or two
    stacks together. In a language model with one stack it counts these, and those that are missing are lost.
    """
    twins = any(count == whole[main] for prefix, count in whole.items() if prefix != main and not prefix.startswith(f"{main}."))
    of_images = "num_channels" in config or "image_size" in config
    return bool(_TOWER.search(main) or _ENCODER.search(main)) or twins or of_images


def _checked(label: str, prefix: str, indices: Mapping[int, int], wanted: int | None) -> int:
    """How many layers a main stack has; further numbers (prediction heads kept as extra layers) stand outside the layers."""
    count = wanted if wanted is not None else max(indices) + 1
    missing = next((layer for layer in range(count) if layer not in indices), None)
    if missing is not None:
        raise CheckpointError(
            f"{label}: missing weights: there is no tensor of layer {missing} ({prefix}.{missing}.…), "
            f"and the model has {count} layers"
        )
    return count


def _place(name: str, match: re.Match[str] | None, stacks: Mapping[str, Stack]) -> Place:
    if match is None:
        return Place(name)
    stack = stacks.get(match["prefix"])
    layer = int(match["index"])
    if stack is None or layer >= stack.count:
        return Place(name, beyond=stack is not None)
    return Place(name, stack, layer, match["rest"])
