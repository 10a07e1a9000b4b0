"""The merged model's config.json: the base model's, with its element type put right."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def merged_config(base: Mapping[str, Any], dtype: str | None) -> dict[str, Any]:
    """`base` with this element type (a config name such as bfloat16; None: as it was)."""
    config = copy.deepcopy(dict(base))
    if dtype is not None:
        _set_dtype(config, dtype, top=True)
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
