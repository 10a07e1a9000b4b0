"""A config.json for other layers than those it was written for: the counts, and everything that speaks of single layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .layer_counts import KeyPath, layer_counts, words
from .layer_defaults import ends_otherwise, unlisted
from .layer_keys import CYCLE, EACH, NUMBERS, TAPS, Form, form_of
from .layout import Stack, main_settings

_OVERRIDDEN = {
    "sliding_window_pattern": "layer_types",
    "_sliding_window_pattern": "layer_types",
    "global_attn_every_n_layers": "layer_types",
    "full_attention_interval": "layer_types",
    "layer_group_size": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
    "interleave_moe_layer_step": "moe_layers",
    "index_topk_freq": "indexer_types",
    "attn_layer_period": "layers_block_type",
}
"""Periods that are not read where the list that follows from them is there."""


class RestackError(ValueError):
    """No config.json of this form describes the layers that are wanted; the text names the key."""


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where an output layer comes from: a model's config.json, how many layers its stack has, and the layer's number there."""

    config: Mapping[str, Any]
    count: int
    layer: int


@dataclass(frozen=True, slots=True)
class Said:
    """What keys of config.json say of each of the model's own layers, and of each new one, as far as weft understands them."""

    before: tuple[tuple[Any, ...], ...]
    after: tuple[tuple[Any, ...], ...]


def restack(
    config: Mapping[str, Any], stacks: Sequence[Stack], layers: Mapping[str, Sequence[LayerSource]]
) -> tuple[dict[str, Any], dict[str, Said]]:
    """`config` with other `layers` in some of its model's `stacks`, by their prefixes, and what it says of them.

    The main one of the stacks is the first.

    Raises RestackError where a key cannot say of the new layers what it said of them before, or none counts them.
    """
    new = copy.deepcopy(dict(config))
    said = {}
    for stack in stacks:
        if stack.prefix in layers:
            said[stack.prefix] = _restack(config, new, stacks, stack, layers[stack.prefix])
    return new, said


def _restack(
    config: Mapping[str, Any], new: dict[str, Any], stacks: Sequence[Stack], stack: Stack, layers: Sequence[LayerSource]
) -> Said:
    before: list[list[Any]] = [[] for _ in range(stack.count)]
    after: list[list[Any]] = [[] for _ in layers]
    left: list[tuple[Form, KeyPath, Any, list[Any]]] = []
    for path in _count_keys(config, stacks, stack):
        _part(new, path[:-1])[path[-1]] = len(layers)
    by_turns = _unlisted(config, stacks, stack)
    for path, value in (*_layer_keys(config, stacks, stack), *by_turns.items()):
        if isinstance(_part(config, path[:-1]).get(_OVERRIDDEN.get(path[-1])), list):
            continue
        values = [_value(source, path) for source in layers]
        forms = (form_of(path[-1], own, source.count) for own, source in zip(values, layers, strict=True))
        form = CYCLE if path in by_turns else form_of(path[-1], value, stack.count) or next(filter(None, forms), None)
        if form is None:
            continue
        of_layers = [_says(form, path, own, value, source, stack.count) for own, source in zip(values, layers, strict=True)]
        written = form.write(value, of_layers, stack.count)
        if path in by_turns and all(item == value[layer % len(value)] for layer, item in enumerate(of_layers)):
            pass  # the class goes on to say so without a list
        elif written is not None and (written == value or not _shared(config, stacks, stack, path)):
            _part(new, path[:-1])[path[-1]] = written
        else:
            left.append((form, path, value, of_layers))
        if form is not TAPS:  # a tap says where a layer stands, not what it is
            own = LayerSource(config, stack.count, 0)
            of_own = [_says(form, path, value, value, replace(own, layer=i), stack.count) for i in range(stack.count)]
            for layer, item in zip((*before, *after), (*of_own, *of_layers), strict=True):
                layer.append(item)
    for form, path, value, of_layers in left:  # when the lists that may say it stand
        if _shared(config, stacks, stack, path):
            raise RestackError(
                f"config.json's '{'.'.join(path)}' describes single layers, of '{stack.prefix}' or of another stack that is "
                "counted beside it: merge whole models"
            )
        if not _written_otherwise(_part(new, path[:-1]), path[-1], of_layers):
            raise RestackError(_refusal(form, path, value))
    for home in {path[:-1] for path in layer_counts(config, stacks)[stack.prefix]}:
        if ends_otherwise(_part(new, home)) and not ends_otherwise(_part(config, home)):
            last = _part(new, home)["layer_types"][-1]
            raise RestackError(
                f"config.json's '{'.'.join((*home, 'layer_types'))}' would end with {last}, and this class takes its last "
                "layer for one of full_attention: let the result end with such a layer"
            )
    return Said(tuple(map(tuple, before)), tuple(map(tuple, after)))


def _shared(config: Mapping[str, Any], stacks: Sequence[Stack], stack: Stack, path: KeyPath) -> bool:
    """Whether a key stands where two stacks are counted, and does not say of which it speaks."""
    counts = layer_counts(config, stacks)
    beside = [other for other in stacks if other != stack and any(home[:-1] == path[:-1] for home in counts[other.prefix])]
    return bool(beside) and not words(path[-1]) & words(stack.prefix)


def _unlisted(config: Mapping[str, Any], stacks: Sequence[Stack], stack: Stack) -> dict[KeyPath, list[Any]]:
    """The kinds of layers that the class takes by turns, for lists that are not there."""
    homes = {path[:-1] for path in layer_counts(config, stacks)[stack.prefix]}
    return {(*home, key): cycle for home in sorted(homes) for key, cycle in unlisted(_part(config, home)).items()}


def _refusal(form: Form, path: KeyPath, value: Any) -> str:
    text = str(value)
    shown = text if len(text) <= 40 else f"{text[:40]}…"
    return (
        f"config.json's '{'.'.join(path)}' ({shown}) would be wrong for the new layers, and no other value is right: "
        f"it can only describe {form.advice}"
    )


def _count_keys(config: Mapping[str, Any], stacks: Sequence[Stack], stack: Stack) -> Sequence[KeyPath]:
    counts = layer_counts(config, stacks)
    found = counts[stack.prefix]
    same = [other for other in stacks if other != stack and other.count == stack.count and not counts[other.prefix]]
    if same:
        key = f"'{'.'.join(found[0])}'" if found else "what it says of layers"
        raise RestackError(
            f"config.json's {key} counts the layers of '{stack.prefix}', and it may count those of '{same[0].prefix}' too, "
            "which are as many: neither can be chosen alone"
        )
    if found:
        return found
    if any(
        form_of(path[-1], value, stack.count) is EACH and "layer" in path[-1]
        for path, value in _layer_keys(config, stacks, stack)
    ):
        return ()  # a list of all layers counts them
    if len(stacks) == 1:
        raise RestackError(
            f"no key of config.json counts the layers of '{stack.prefix}' ({stack.count}): add the one that its class reads"
        )
    names = ", ".join(f"'{other.prefix}' ({other.count} layers)" for other in stacks)
    raise RestackError(
        f"no key of config.json can be told to count the layers of '{stack.prefix}'. The model's stacks are {names}: "
        "name those that have a count under 'modules', or merge whole models"
    )


def _layer_keys(config: Mapping[str, Any], stacks: Sequence[Stack], stack: Stack) -> Iterator[tuple[KeyPath, Any]]:
    """The keys that may speak of a stack's layers: beside its count and below, and in the parts that this stands in."""
    counts = layer_counts(config, stacks)
    homes = {path[:-1] for path in counts[stack.prefix]} or {()}
    counted = {path for paths in counts.values() for path in paths}
    others = {path[:-1] for prefix, paths in counts.items() if prefix != stack.prefix for path in paths} - homes
    own = words(stack.prefix)
    elsewhere = set().union(*(words(other.prefix) for other in stacks if other != stack), {"vision", "audio"}) - own

    def walk(part: Mapping[str, Any], within: KeyPath, *, inside: bool) -> Iterator[tuple[KeyPath, Any]]:
        inside = inside or within in homes
        for key, value in part.items():
            path = (*within, str(key))
            leads = any(home[: len(path)] == path for home in homes)
            if leads and isinstance(value, Mapping):
                yield from walk(value, path, inside=inside)
            elif words(key) & elsewhere or path in counted or path in others:
                continue
            elif isinstance(value, Mapping) and form_of(key, value, stack.count) is None:
                if inside and "model_type" not in value and not key.startswith("rope") and key not in _NOT_SETTINGS:
                    yield from walk(value, path, inside=inside)
                elif own & {"vision", "audio"}:  # e.g. which of a tower's layers a connector takes
                    yield from (((*path, inner), item) for inner, item in value.items() if words(inner) & own)
            else:
                yield path, value

    return walk(config, (), inside=False)


_NOT_SETTINGS = {"id2label", "label2id", "task_specific_params", "auto_map", "quantization_config"}


def _part(config: Any, path: KeyPath) -> Any:
    for key in path:
        config = config[key]
    return config


def _value(source: LayerSource, path: KeyPath) -> Any:
    """What a source's own config.json has at the path, or under the same key in its main part."""
    found: Any = source.config
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    if found is not None:
        return found
    return next((part[path[-1]] for part in main_settings(source.config) if part.get(path[-1]) is not None), None)


def _says(form: Form, path: KeyPath, own: Any, value: Any, source: LayerSource, count: int) -> Any:
    count, layer = (count if own is None else source.count), source.layer
    if own is None:  # the model does not say it: what the base model says of a layer of this number
        own, layer = value, min(layer, count - 1) if form is EACH else layer
    try:
        return form.says(own, count, layer)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError):
        if form is EACH:  # one value for all of that model's layers
            return own
        raise RestackError(f"config.json's '{'.'.join(path)}' has another form in a model whose layers are taken") from None


def _written_otherwise(part: dict[str, Any], key: str, said: Sequence[Any]) -> bool:
    """Whether another key says what a period cannot say any longer: one that is there already, or that is written here."""
    if isinstance(part.get(_OVERRIDDEN.get(key, "")), list):
        return True
    listed = part.get("mlp_only_layers")
    if key == "decoder_sparse_step" and (listed == [] or form_of("mlp_only_layers", listed, len(said)) is NUMBERS):
        dense = {layer for layer, (step, phase) in enumerate(said) if step < 1 or phase != step - 1}
        part.update({key: 1, "mlp_only_layers": sorted(dense.union(listed or ()))})
        return True
    offset = key.replace("period", "offset")
    if offset == key or not isinstance(part.get(offset), int):
        return False
    period = part[key]
    moved = {(layer - phase) % period for layer, (_, phase) in enumerate(said)}
    if len(moved) != 1 or any(own != period for own, _ in said):
        return False
    part[offset] = (part[offset] + moved.pop()) % period
    return True
