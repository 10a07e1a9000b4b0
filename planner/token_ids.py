"""Token ids in config.json and generation_config.json, after tokens have got new ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .catalog import Checkpoint
from .layout import main_settings
from .tokenizer_config import Source
from .tokenizer_reader import read_tokenizers, token_text
from .vocabulary import Vocabulary

_IDS = re.compile(r".*_(token|tokens)_(id|ids|index|idx)|(begin_)?suppress_tokens|bad_words_ids")
_FOLLOWING = ("bos", "eos", "pad")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """`moved`: the base's ids to the new ones, for tokens that are still there. `special`: what the result's tokenizer says of
    bos, eos and pad, where its files come from another model than the settings; empty where they come from the base.
    """

    moved: Mapping[int, int]
    special: Mapping[str, int]
    real: int
    size: int

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json with the new vocab_size and ids, also in the part that describes a language model."""
        inner = list(main_settings(config))[1:]
        new = self.generation(config)
        if "vocab_size" in config or not inner:
            new["vocab_size"] = self.size
        for key, part in config.items():
            if any(part is other for other in inner):
                new[key] = self.generation(part) | {"vocab_size": self.size}
        return new

    def generation(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """generation_config.json with the new ids. An id whose token is gone becomes null, or leaves its list."""
        new = {key: self._value(value) if _IDS.fullmatch(key) else value for key, value in settings.items()}
        for name in _FOLLOWING:
            key = f"{name}_token_id"
            if name in self.special and key in settings:
                new[key] = self._following(name, new[key])
        return new

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            items = [new for item in value if (new := self._value(item)) is not None]
            return items or None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return value
        if value in self.moved:
            return self.moved[value]
        # No token had it. A row of padding stays one; below them, it would now be somebody else's.
        return value if self.real <= value < self.size else None

    def _following(self, name: str, old: Any) -> Any:
        """The tokenizer's own token; whatever else ended a text still does."""
        special = self.special[name]
        rest = [item for item in (old if isinstance(old, list) else [old]) if item is not None and item != special]
        return [special, *rest] if name == "eos" and rest else special


def token_ids(checkpoints: Sequence[Checkpoint], base: int | None, vocabulary: Vocabulary, source: Source) -> TokenIds:
    """How the base's ids change. Raises CheckpointError."""
    place = base or 0
    chosen = source if isinstance(source, int) else place
    own, template = read_tokenizers((checkpoints[place], checkpoints[chosen]))
    tokens = vocabulary.tokens
    moved: dict[int, int] = {}
    for token, number in own.tokens.items():
        if token in tokens:
            moved.setdefault(number, tokens[token])
    special = {}
    if chosen != place:
        named = {name: token_text(template.settings.get(f"{name}_token")) for name in _FOLLOWING}
        special = {name: tokens[token] for name, token in named.items() if token is not None and token in tokens}
    return TokenIds(moved, special, vocabulary.real, vocabulary.size)
