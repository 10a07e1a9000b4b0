"""Input models that are little more than a tokenizer, for tests of merged vocabularies."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from weft.planner.catalog import Checkpoint, InputTensor, WeightFile

FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


class Memory:
    """A store of files that are given as bytes."""

    commit: str | None = None

    def __init__(self, label: str, files: Mapping[str, bytes]) -> None:
        self.label, self.files = label, files

    def sizes(self) -> Mapping[str, int]:
        return {name: len(data) for name, data in self.files.items()}

    def read(self, name: str) -> bytes:
        return self.files[name]

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self.files[name])

    def identity(self, name: str) -> str:
        return name

    def path(self, name: str) -> Path | None:
        return None

    def download(self, names: Sequence[str], quiet: bool = False) -> None:
        raise AssertionError


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
