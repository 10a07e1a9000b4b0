"""The tokenizer's files of a merged model, so that they, the embeddings and the ids in the settings say the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .chat_templates import TEMPLATE_FILE
from .side_files import TEMPLATES
from .tokenizer_config import Source
from .tokenizer_reader import ADDED, SETTINGS, TOKENIZER, Tokenizer, read_map, read_tokenizers, token_text
from .tokenizer_writer import added_tokens, merged_document, same_vocabulary
from .vocabulary import Vocabulary, template_of

SPECIAL_MAP, PROCESSOR_TEMPLATE = "special_tokens_map.json", "chat_template.json"
_VOCABULARY = re.compile(
    r"(vocab|merges|tokenizer|tekken|spiece|sentencepiece|source|target)\b.*|.*\.(model|tiktoken|spm|vocab)", re.I
)
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def is_tokenizer_file(name: str) -> bool:
    """Whether a side file belongs to the tokenizer, so that it is `tokenizer_files` that says whether it is written."""
    names = (TOKENIZER, SETTINGS, ADDED, SPECIAL_MAP, TEMPLATE_FILE, PROCESSOR_TEMPLATE)
    if "/" in name:
        return name.startswith(f"{TEMPLATES}/")
    return name in names or bool(_VOCABULARY.fullmatch(name))


def tokenizer_files(
    checkpoints: Sequence[Checkpoint], base: int | None, vocabulary: Vocabulary, source: Source, chat_template: str | None = None
) -> dict[str, bytes]:
    """All tokenizer files to write, by name; the base's own are not copied.

    `chat_template` is a Jinja text, or None for the template's own. Files that would be right as they are come byte for byte.
    """
    place = template_of(base, source)
    checkpoint = checkpoints[place]
    (template,), tokens = read_tokenizers([checkpoint], documents=True), vocabulary.tokens
    rest = [] if tokens.keys() <= template.tokens.keys() else [*checkpoints[:place], *checkpoints[place + 1 :]]
    others = read_tokenizers(rest, documents=True)
    kept = {name: checkpoint.store.read(name) for name in checkpoint.side_files if is_tokenizer_file(name)}
    files = kept if _unchanged(template, tokens) else _rewritten(template, others, tokens, kept)
    return with_chat_template(checkpoint.label, files, chat_template)


def with_chat_template(label: str, files: Mapping[str, bytes], chat_template: str | None) -> dict[str, bytes]:
    """Tokenizer files with this chat template instead of their own; None: as they are."""
    files = dict(files)
    if chat_template is None:
        return files
    settings = read_map(label, SETTINGS, files.get(SETTINGS, b'{"tokenizer_class": "PreTrainedTokenizerFast"}'))
    files[SETTINGS] = _pretty(settings | {"chat_template": chat_template})
    if TEMPLATE_FILE in files:
        files[TEMPLATE_FILE] = chat_template.encode()
    if PROCESSOR_TEMPLATE in files:
        files[PROCESSOR_TEMPLATE] = _pretty({"chat_template": chat_template})
    return files


def _unchanged(template: Tokenizer, tokens: Mapping[str, int]) -> bool:
    """Whether the template's files say just this already."""
    vocabulary = template.document["model"]["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    items = template.document.get("added_tokens") or []
    written = {item["content"]: item.get("id") for item in items if isinstance(item.get("content"), str)}
    return bool(vocabulary | written == tokens)


def _rewritten(
    template: Tokenizer, others: Sequence[Tokenizer], tokens: Mapping[str, int], kept: Mapping[str, bytes]
) -> dict[str, bytes]:
    try:
        document = merged_document(template, others, tokens)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        where = f"{template.label}/{TOKENIZER}"
        raise CheckpointError(f"{where}: not as the tokenizers library writes it; save it again with transformers") from None
    files = {name: data for name, data in kept.items() if name in (TEMPLATE_FILE, PROCESSOR_TEMPLATE) or "/" in name}
    if same_vocabulary(template, document):
        files |= {name: data for name, data in kept.items() if _VOCABULARY.fullmatch(name)}
    files[TOKENIZER] = _encoded(document, separators=(",", ":"))
    added = added_tokens(template, others, tokens)
    if SETTINGS in kept:
        files[SETTINGS] = _pretty(_settings(template.settings, tokens, added))
    if SPECIAL_MAP in kept:
        special = _present(read_map(template.label, SPECIAL_MAP, kept[SPECIAL_MAP]), tokens)
        files[SPECIAL_MAP] = _pretty({name: value for name, value in special.items() if value is not None})
    if ADDED in kept:
        outside = set(added) - set(document["model"]["vocab"]) if isinstance(document["model"]["vocab"], dict) else set(added)
        files[ADDED] = _pretty({token: tokens[token] for token in added if token in outside})
    return files


def _settings(settings: Mapping[str, Any], tokens: Mapping[str, int], added: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """tokenizer_config.json for the new tokens."""
    new = _present(settings, tokens)
    if "added_tokens_decoder" in new:
        new["added_tokens_decoder"] = {
            str(item["id"]): {key: value for key, value in item.items() if key != "id"} for item in added.values()
        }
    return new


def _present(settings: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Settings without special tokens that are gone: loading them would add them again, with ids that have no row."""
    new = dict(settings)
    for name, value in settings.items():
        if name in _LISTS and isinstance(value, list):
            new[name] = [item for item in value if token_text(item) in tokens]
        elif name in (*_LISTS, "model_specific_special_tokens") and isinstance(value, dict):
            new[name] = {key: item for key, item in value.items() if token_text(item) in tokens}
        elif name.endswith("_token") and (token := token_text(value)) is not None and token not in tokens:
            new[name] = None
    return new


def _pretty(value: object) -> bytes:
    return _encoded(value, indent=2) + b"\n"


def _encoded(value: object, **options: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, **options).encode("utf-8", "surrogatepass")
