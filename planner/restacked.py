"""The config.json of a merge that chooses layers: as `restack` makes it, and checked against the tensors that are there."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from .config import LoadedConfig
from .layer_counts import SIDES, words
from .layer_kinds import difference, kinds, out_of_place
from .layout import Stack
from .recipe import Recipe
from .restack import LayerSource, RestackError, Said, restack
from .sources import Model, Part


def restacked(config: LoadedConfig, parts: Sequence[Part], base: Model, recipes: Sequence[Recipe]) -> Mapping[str, Any]:
    """The base model's settings for the layers of the result. Raises ConfigError at `slices` where none describe them."""
    settings = base.checkpoint.config
    sliced = {part.stack.prefix: part for part in parts if part.sliced and part.stack is not None}
    layers = {prefix: _layers(part) for prefix, part in sliced.items()}
    changed = {prefix: found for prefix, found in layers.items() if not _unchanged(found, settings)}
    if not changed:
        return settings
    first = next(iter(changed))
    stacks = next((m.layout.stacks for m in (base, _first(sliced[first])) if any(s.prefix == first for s in m.layout.stacks)), ())
    try:
        new, said = restack(settings, stacks, changed)
    except RestackError as error:
        raise _error(config, sliced[first], f"{base.reference}: {error}") from None
    after = {recipe.name: recipe.shape for recipe in recipes}
    before = {name: tensor.shape for name, tensor in base.checkpoint.tensors.items()}
    for prefix in changed:
        beside = _beside(next(stack for stack in stacks if stack.prefix == prefix), stacks, after)
        if beside is not None:
            raise _error(
                config,
                sliced[prefix],
                f"'{beside}' of {base.reference} may be one for each layer of '{prefix}', of which there are about as many, "
                "and it does not move with the layers: merge whole models",
            )
    spread = next((name for name in after if _OF_ALL_LAYERS.search(name)), None)
    if spread is not None:
        raise _error(
            config,
            sliced[first],
            f"'{spread}' of {base.reference} has elements for each layer, which do not move with the layers: merge whole models",
        )
    for stack in stacks:
        if stack.prefix in changed:
            _check(config, sliced[stack.prefix], stack, before, after, said[stack.prefix])
    return new


def _beside(stack: Stack, stacks: Sequence[Stack], names: Collection[str]) -> str | None:
    """A tensor of a numbered run that is no stack, but as long as one beside it, or as any in the same module."""
    runs: dict[str, set[int]] = {}
    first: dict[str, str] = {}
    own = words(stack.prefix)
    within = [name.removeprefix(f"{stack.prefix}.0.") for name in names if name.startswith(f"{stack.prefix}.0.")]
    if stack.count == 1 and all(re.match(r"(layers?|blocks?)\.\d+\.", rest) for rest in within):
        return f"{stack.prefix}.0.{within[0]}"
    for name in names:
        match = _RUN.fullmatch(name)
        if match and not any(match["prefix"] == other.prefix for other in stacks) and not (words(match["prefix"]) - own) & SIDES:
            runs.setdefault(match["prefix"], set()).add(int(match["index"]))
            first.setdefault(match["prefix"], name)
    for prefix, indices in runs.items():
        count = len(indices)
        near = abs(count - stack.count) < 2 and prefix.rpartition(".")[0] == stack.prefix.rpartition(".")[0] and "." in prefix
        if max(indices) == count - 1 and (count == stack.count > 1 or near):
            return first[prefix]
    return None


_RUN = re.compile(r"(?P<prefix>.*?)\.?(?<![^.])(?P<index>0|[1-9][0-9]{0,5})(\..+)?")
_OF_ALL_LAYERS = re.compile(r"^(?!.*\.\d+\.).*(per_layer|_layer_weights|(^|\.)layer_weights|scalar_mix|mid_position)")
"""Tensors outside the layers that have a part for each of them."""

Shapes = Mapping[str, tuple[int, ...]]


def _check(config: LoadedConfig, part: Part, stack: Stack, before: Shapes, after: Shapes, said: Said) -> None:
    old, new = kinds(stack, before), kinds(Stack(stack.prefix, len(said.after)), after)
    layer = out_of_place(old, new, said)
    if layer is None:
        return
    usual = old[min(layer, len(old) - 1)]
    other = usual if usual != new[layer] else next(kind for kind in (*old, *new) if kind != new[layer])
    raise _error(
        config,
        part,
        f"layer {layer} of '{stack.prefix}' would have other tensors than a layer at this place "
        f"('{difference(new[layer], other)}' is in one of them, or has another shape), and no key of config.json that weft "
        "knows says which layers have it: keep such layers in their places",
    )


def _error(config: LoadedConfig, part: Part, message: str) -> ConfigError:
    return config.error(part.runs[0].path[:-1], message)


def _first(part: Part) -> Model:
    return part.runs[0].sources[0].model


def _layers(part: Part) -> list[LayerSource]:
    """For each of its output layers, the model and layer whose config describes it."""
    layers: list[LayerSource] = []
    for run in part.runs:
        source = run.sources[run.base or 0]
        stacks = source.model.layout.stacks
        count = next(
            (stack.count for stack in stacks if part.stack and stack.prefix == part.stack.prefix), source.first + run.layers
        )
        layers.extend(LayerSource(source.model.checkpoint.config, count, source.first + j) for j in range(run.layers))
    return layers


def _unchanged(layers: Sequence[LayerSource], settings: Mapping[str, Any]) -> bool:
    """Whether the layers are all of a model's in their order, described by these settings."""
    return all(
        source.layer == place and source.count == len(layers) and (source.config is settings or source.config == settings)
        for place, source in enumerate(layers)
    )
