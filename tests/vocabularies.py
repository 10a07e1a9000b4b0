"""Input models that are little more than a tokenizer, for tests of merged vocabularies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memory_store import Memory
from weft.planner.catalog import Checkpoint, InputTensor, WeightFile

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def model(label: str, files: Mapping[str, object], rows: int, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """A model with these side files (JSON values, or bytes) and `rows` embedding rows."""
    data = {name: value if isinstance(value, bytes) else json.dumps(value).encode() for name, value in files.items()}
    name = "model.embed_tokens.weight"
    tensor = InputTensor(name, "F32", (rows, 4), WeightFile(label, "model.safetensors", 0, ""), 0, rows * 16)
    sizes = {key: len(value) for key, value in data.items()}
    return Checkpoint(label, Memory(label, data), config or {"vocab_size": rows}, {name: tensor}, (), sizes)


def word_tokenizer(vocabulary: Mapping[str, int], added: Mapping[str, int] | None = None) -> dict[str, Any]:
    """tokenizer.json of whole words, with added tokens."""
    tokens = [{"id": number, "content": token, **FLAGS} for token, number in (added or {}).items()]
    return {
        "version": "1.0",
        "added_tokens": tokens,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": dict(vocabulary), "unk_token": "<unk>"},
    }
