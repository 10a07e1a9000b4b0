"""Layers of an architecture cut and repeated by weft's planner, and whether config.json describes the result's tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from architectures import Architecture
from memory_store import Memory
from weft.errors import WeftError
from weft.planner.catalog import Checkpoint, InputTensor, WeightFile
from weft.planner.compile import Merge, compile_merge
from weft.planner.config import load_config
from weft.planner.layout import Layout, Stack, find_layout
from weft.planner.models import Models
from weft.planner.reference import parse_reference
from weft.planner.sources import Model

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Outcome:
    """`refused`: weft's message; `wrong`: how the result's own model differs from the result's tensors and layers."""

    stack: str
    ranges: Ranges
    refused: str | None = None
    wrong: str | None = None


class _OneModel(Models):
    """Knows one model, by any name."""

    def __init__(self, model: Model) -> None:
        super().__init__({}, {}, lambda config: model.checkpoint)
        self._model = model

    def get(self, config: Any, reference: Any, path: Any) -> Model:
        return self._model


def cuts(layers: int) -> Iterator[Ranges]:
    """Ways to cut and repeat a stack of so many layers."""
    yield [(0, layers - 1)]
    yield [(1, layers)]
    yield [(0, layers - 1), (1, layers)]
    yield [(0, layers), (0, layers)]
    if layers > 2:
        yield [(0, layers - 2), (layers - 1, layers)]
        yield [(layers // 2, layers), (0, layers // 2)]


def as_model(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Model:
    """A model of which there are headers only."""
    file = WeightFile("m", "model.safetensors", 0, "")
    tensors: dict[str, Any] = {name: InputTensor(name, "F32", shape, file, 0, 0) for name, shape in shapes.items()}
    store = Memory("m", {"config.json": json.dumps(config).encode()})
    return Model(parse_reference("m"), Checkpoint("m", store, config, tensors, (file,), {}), find_layout("m", config, tensors))


def without_lists(architecture: Architecture) -> Iterator[dict[str, Any]]:
    """The config.json as it was before transformers wrote lists of layers into it, if the class makes the same of it."""
    if architecture.name.startswith(("beam", "flint", "gemma4", "muse", "neomme")):
        return  # newer than such lists: no config.json of theirs lacks them
    config = _without(architecture.config)
    if config == architecture.config:
        return
    try:
        made, shapes = architecture.rebuilt(config)
    except Exception:  # transformers raises whatever it likes
        return
    if shapes == architecture.shapes and dict(_lists(made)) == dict(_lists(architecture.rebuilt_config(architecture.config))):
        yield config


_DERIVED = {
    "layer_types", "mlp_layer_types", "no_rope_layers", "moe_layers", "layers_block_type", "indexer_types", "attention_layers"
}  # fmt: skip


def _without(part: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without(v) if isinstance(v, dict) else v for k, v in part.items() if k not in _DERIVED}


def outcomes(
    architecture: Architecture, config: Mapping[str, Any], ways: Callable[[int], Iterable[Ranges]] = cuts
) -> Iterator[Outcome]:
    """Of every stack of an architecture, cut in every one of the `ways`; `config`: its config.json, in another form perhaps."""
    model = as_model(config, architecture.shapes)
    for stack in model.layout.stacks:
        for ranges in ways(stack.count) if stack.count > 1 else ():
            yield _outcome(architecture, model, stack, ranges)


def _outcome(architecture: Architecture, model: Model, stack: Stack, ranges: Ranges) -> Outcome:
    text = _yaml(model.layout, stack, ranges)
    if text is None:
        return Outcome(stack.prefix, ranges, refused="no module names")
    try:
        merge = compile_merge(load_config(text), _OneModel(model), 0)
    except WeftError as error:
        return Outcome(stack.prefix, ranges, refused=str(error))
    return Outcome(stack.prefix, ranges, wrong=_wrong(architecture, model, stack, ranges, merge))


def _yaml(layout: Layout, stack: Stack, ranges: Ranges) -> str | None:
    slices = [{"sources": [{"model": "m", "layer_range": list(pair)}]} for pair in ranges]
    if stack == layout.main:
        return json.dumps({"merge_method": "passthrough", "slices": slices})
    names: dict[str, str] = {}
    for one in layout.stacks:
        others = {word for other in layout.stacks if other != one for word in other.prefix.split(".")}
        own = [word for word in one.prefix.split(".") if word not in others]
        if not own:
            return None
        names[one.prefix] = own[0]
    modules = {names[one.prefix]: {"slices": slices} if one == stack else {"models": [{"model": "m"}]} for one in layout.stacks}
    return json.dumps({"merge_method": "passthrough", "modules": modules})


def _wrong(architecture: Architecture, model: Model, stack: Stack, ranges: Ranges, merge: Merge) -> str | None:
    try:
        made, wanted = architecture.rebuilt(json.loads(json.dumps(merge.model_config)))
    except Exception as error:  # transformers raises whatever it likes
        return f"cannot be built: {type(error).__name__}: {error}"
    found = {recipe.name: recipe.shape for recipe in merge.recipes}
    if missing := sorted(wanted.keys() - found.keys()):
        return f"missing {missing[:3]}"
    if unexpected := sorted(found.keys() - wanted.keys()):
        return f"unexpected {unexpected[:3]}"
    if other := sorted(name for name in found if found[name] != wanted[name]):
        return f"other shape {other[0]}: {found[other[0]]}, not {wanted[other[0]]}"
    before = architecture.rebuilt_config(model.checkpoint.config)
    return _said_otherwise(before, made, stack, [layer for low, high in ranges for layer in range(low, high)])


def _said_otherwise(before: Any, after: Any, stack: Stack, layers: Sequence[int]) -> str | None:
    """The list of one entry a layer in the config objects that says other things of the new layers than of the old ones."""
    old, new = dict(_lists(before)), dict(_lists(after))
    for path, value in old.items():
        other = new.get(path)
        if other is None or len(value) != stack.count or len(other) != len(layers) or other == value:
            continue
        if len(set(map(str, value))) == len(value) and all(isinstance(item, int) for item in value):
            continue  # layer numbers, all of them
        if other != (moved := [value[layer] for layer in layers]):
            return f"{path} is {other}, not {moved}"
    return None


def _lists(config: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The lists in a config object, those that are computed too."""
    names = [
        *vars(config),
        *(name for name in ("layers_block_type", "layer_types") if isinstance(getattr(type(config), name, None), property)),
    ]
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:  # a setting that differs from layer to layer is not read here
            continue
        if isinstance(value, (list, tuple)):
            yield f"{path}{name}", list(value)
        elif hasattr(value, "to_dict"):
            yield from _lists(value, f"{path}{name}.")
