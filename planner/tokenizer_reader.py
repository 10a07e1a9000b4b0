"""A model's tokenizer as it is on disk: every token that has an embedding row, with its id.

The ids are those that the tokenizers library gives when it loads the files, which are not always those written there: a token
outside the model's vocabulary gets the next free id, whatever the file says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .json_text import loads
from .token_axes import TokenAxes, token_axes

TOKENIZER, SETTINGS, ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")
_LONG = 18
"""Digits of a number that is no token's id."""

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`tokens`: token to id, in the order of ids, without those at or past the embedding's `rows`.

    `size` is vocab_size, from which `rows` differ in a few families (`token_axes`).

    `ordinary` is the part that stands in the model's own vocabulary (special tokens may, too); `added` the definitions of the
    tokens that are matched before any splitting. `document` is tokenizer.json, empty where it was not asked for; `settings` is
    tokenizer_config.json.
    """

    label: str
    rows: int
    size: int
    tokens: Mapping[str, int]
    ordinary: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]
    settings: Mapping[str, Any]


def read_tokenizers(checkpoints: Sequence[Checkpoint], *, documents: bool = False) -> tuple[Tokenizer, ...]:
    """Each model's tokenizer; equal ones are read once. Raises CheckpointError.

    Without `documents`, tokenizer.json is let go of once its tokens are read: its merges are most of what it takes.
    """
    known: dict[tuple[object, ...], Tokenizer] = {}
    found = []
    for checkpoint in checkpoints:
        axes = token_axes(checkpoint)
        files = {name: checkpoint.store.read(name) for name in (TOKENIZER, SETTINGS, ADDED) if name in checkpoint.side_files}
        key = (axes.rows, axes.size, *((name, hashlib.blake2b(data).digest()) for name, data in files.items()))
        if key not in known:
            read = _tokenizer(checkpoint, axes, files)
            known[key] = read if documents else replace(read, document={})
        found.append(known[key])
    return tuple(found)


def _tokenizer(checkpoint: Checkpoint, axes: TokenAxes, files: Mapping[str, bytes]) -> Tokenizer:
    label = checkpoint.label
    if TOKENIZER not in files:
        has = "tokenizer.model" in checkpoint.side_files or any(name.endswith(".model") for name in checkpoint.side_files)
        kind = "only a sentencepiece tokenizer" if has else "no tokenizer"
        raise CheckpointError(
            f"{label}: has {kind}, and merging vocabularies needs its tokenizer.json: convert with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    document, settings, more = (read_map(label, name, files.get(name, b"{}")) for name in (TOKENIZER, SETTINGS, ADDED))
    ordinary = _vocabulary(f"{label}/{TOKENIZER}", document)
    ids = dict(ordinary)
    added: dict[str, Mapping[str, Any]] = {}
    free = len(ordinary)
    for definition in _definitions(label, document, settings, more):
        token = definition["content"]
        if token in added:
            continue
        if token not in ids:
            ids[token] = free
            free += 1
        free = max(free, ids[token] + 1)
        added[token] = definition
    present = {token: number for token, number in sorted(ids.items(), key=lambda item: item[1]) if number < axes.rows}
    return Tokenizer(
        label,
        axes.rows,
        axes.size,
        present,
        {token: number for token, number in ordinary.items() if token in present},
        {token: definition for token, definition in added.items() if token in present},
        document,
        settings,
    )


def read_map(label: str, name: str, data: bytes) -> dict[str, Any]:
    """A JSON file that holds a map. Raises CheckpointError."""
    try:
        value = loads(data, text=False)
    except ValueError as error:
        raise CheckpointError(f"{label}/{name}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{label}/{name}: not a map")
    return value


def _vocabulary(where: str, document: Mapping[str, Any]) -> dict[str, int]:
    """The model's own vocabulary."""
    model = document.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{where}: has no 'model'")
    if kind_of(model) not in _KINDS:
        raise CheckpointError(f"{where}: a tokenizer of type {model.get('type')!r} cannot be merged; known: {', '.join(_KINDS)}")
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):
        if not all(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) for item in vocabulary):
            raise CheckpointError(f"{where}: its vocabulary is not a list of pieces with scores")
        vocabulary = {item[0]: number for number, item in enumerate(vocabulary)}
    if not isinstance(vocabulary, dict) or not all(type(number) is int and number >= 0 for number in vocabulary.values()):
        raise CheckpointError(f"{where}: its vocabulary is not a map from tokens to ids")
    return vocabulary


def kind_of(model: Mapping[str, Any]) -> str | None:
    """BPE, WordPiece, WordLevel or Unigram. Old files do not say it."""
    if "type" in model:
        kind = model["type"]
        return kind if isinstance(kind, str) else None
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _definitions(
    label: str, document: Mapping[str, Any], settings: Mapping[str, Any], more: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Added tokens in the order in which loading the tokenizer adds them."""
    own = document.get("added_tokens") or []
    if not isinstance(own, list) or not all(isinstance(item, dict) for item in own):
        raise CheckpointError(f"{label}/{TOKENIZER}: 'added_tokens' is not a list of maps")
    decoder = settings.get("added_tokens_decoder")
    listed: list[tuple[int, dict[str, Any]]] = []
    if isinstance(decoder, dict):
        listed += [(int(i), item) for i, item in decoder.items() if isinstance(item, dict) and i.isdecimal() and len(i) < _LONG]
    listed += [(number, {"content": token}) for token, number in more.items() if isinstance(number, int)]
    listed.sort(key=lambda pair: pair[0])
    special = [token_text(settings.get(name)) for name in SPECIAL]
    items = [*own, *(item for _, item in listed), *({"content": token, "special": True} for token in special)]
    for item in items:
        content = item.get("content")
        if isinstance(content, str) and content:
            yield {"content": content} | {flag: bool(item.get(flag, default)) for flag, default in _FLAGS.items()}


def token_text(value: object) -> str | None:
    """A token that is written as text, or as a map with flags."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
