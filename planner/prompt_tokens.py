"""The files with which the base model's tokenizer turns prompts into tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..errors import CheckpointError
from .catalog import Checkpoint
from .tokenizer_files import is_tokenizer_file


def tokenizer_of(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """The tokenizer's files by name, and as much of config.json as says whose it is. Raises CheckpointError without them."""
    names = [name for name in sorted(checkpoint.side_files) if is_tokenizer_file(name) and "/" not in name]
    files = {name: checkpoint.store.read(name) for name in names}
    if not any(name.endswith(("tokenizer.json", ".model", "vocab.json", "vocab.txt")) for name in files):
        raise CheckpointError(
            f"{checkpoint.label}: has no tokenizer, which prompts need: put its tokenizer.json and tokenizer_config.json "
            "beside the weights, or choose gate_mode: random"
        )
    kind = {"model_type": checkpoint.config.get("model_type")}
    return {**files, "config.json": json.dumps(kind).encode()}
