"""The merged model's config.json: the base model's, with layer count, per-layer lists and dtype put right."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .layout import LAYER_COUNTS, main_settings

_PER_LAYER = re.compile(r"layer|pattern|window|block")

LayerSource = tuple[Mapping[str, Any], int]
"""The config.json of the model that an output layer comes from, and the layer's number there."""


def merged_config(base: Mapping[str, Any], dtype: str | None, layers: Sequence[LayerSource] | None) -> dict[str, Any]:
    """`base` with this element type (a config name such as bfloat16; None: as it was) and these layers (None: as they were)."""
    config = copy.deepcopy(dict(base))
    if dtype is not None:
        _set_dtype(config, dtype, top=True)
    if layers is not None:
        counted = [part for part in main_settings(config) if any(key in part for key in LAYER_COUNTS)]
        for part in counted or [config]:
            assert isinstance(part, dict)
            _set_layers(part, layers)
    return config


def _set_dtype(config: dict[str, Any], dtype: str, *, top: bool = False) -> None:
    keys = [key for key in ("torch_dtype", "dtype") if key in config]
    if not keys and top and "_class_name" not in config:  # of diffusers, which takes no such key
        keys = ["torch_dtype"]
    for key in keys:
        config[key] = dtype
    for value in config.values():
        if isinstance(value, dict):
            _set_dtype(value, dtype)


def _set_layers(part: dict[str, Any], layers: Sequence[LayerSource]) -> None:
    keys = [key for key in LAYER_COUNTS if key in part] or [LAYER_COUNTS[0]]
    old = part.get(keys[0])
    for key in keys:
        part[key] = len(layers)
    for name, value in list(part.items()):
        # A list as long as there were layers, such as layer_types, says something about each of them.
        if isinstance(value, list) and len(value) == old and _PER_LAYER.search(name):
            part[name] = [_of_layer(name, value, source, layer) for source, layer in layers]


def _of_layer(name: str, fallback: list[Any], source: Mapping[str, Any], layer: int) -> Any:
    """The item for `layer` from the model it comes from, where that model has such a list."""
    for settings in main_settings(source):
        own = settings.get(name)
        if isinstance(own, list) and layer < len(own):
            return own[layer]
    return fallback[min(layer, len(fallback) - 1)]
