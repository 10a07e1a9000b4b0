"""The sizes that config.json of a dense language model says, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError
from .document import short

_NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_COUNTS = (
    *_NEEDED, "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "sliding_window", "max_window_layers",
)  # fmt: skip


def check_sizes(label: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where a size is missing or none; `label` names the model."""
    for key in _COUNTS:
        value = config.get(key)
        if value is None and key in _NEEDED:
            raise CheckpointError(f"{label}/config.json: has no '{key}', so it is not a dense language model that weft knows")
        if value is not None and (type(value) is not int or value < (0 if key == "max_window_layers" else 1)):
            raise CheckpointError(f"{label}/config.json: '{key}' is {short(value)}, not a size")


def head_width(config: Mapping[str, Any]) -> int:
    """Elements of one attention head, of a config whose sizes are checked."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
