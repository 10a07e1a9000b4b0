"""Token ids in config.json, generation_config.json and processors' settings, after tokens have got new ids.

An id follows its token. Where the result has no such token, one that the model cannot do without is an error, and one that only
bans or helps (a suppress list, a table of languages) is left out of its list. An id that was nobody's stays as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .layout import MAIN_SETTINGS, main_settings
from .tokenizer_config import Source
from .tokenizer_reader import read_tokenizers, token_text
from .vocabulary import Vocabulary

_ELSEWHERE = r"(codec|codebook|tts_codec|t2u|vocoder|audio_stream)_"
"""What keys of ids begin with that are of no tokenizer: codes of sounds, and what makes them."""
_IDS = re.compile(
    rf"(?!{_ELSEWHERE})("
    r"(\w+_)?(token|tokens)_(id|ids|index|idx)"
    r"|(bos|eos|pad|unk|mask|cls|sep)_index"
    r"|(im|image|video|audio|vision|slice|frame)_(start|end|newline|patch)_id|newline_id|blank_id"
    r"|image_token|video_token|audio_token"
    r"|(begin_)?suppress_tokens|bad_words_ids|force_words_ids|forced_decoder_ids|sequence_bias"
    r"|vocabulary_map|(\w+_)?to(_code)?_id"
    r")"
)
_HABITS = re.compile(r"(begin_)?suppress_tokens|bad_words_ids|sequence_bias|(\w+_)?to(_code)?_id")
"""Keys of lists and tables that are right without an item."""
_FOLLOWING = ("bos", "eos", "pad")
_GENERIC = re.compile(r"(bos|eos|pad|unk|mask|cls|sep|decoder_start|forced_bos|forced_eos)_(token_id|index)")
"""Keys that every part of a config.json may have, whatever its ids are."""


class LostToken(CheckpointError):
    """A setting that names a token which the result does not have."""


@dataclass(frozen=True, slots=True)
class TokenIds:
    """`moved`: the base's ids to the new ones, for tokens that are still there; `lost`: the tokens of the others. `special`: what
    the result's tokenizer says of bos, eos and pad, where its files come from another model than the settings; else empty.
    `tokens` are the result's, by id; `size` and `old_size` vocab_size now and before. `label` is the base, `names` the model
    whose tokens are taken, if it is one.
    """

    moved: Mapping[int, int]
    lost: Mapping[int, str]
    special: Mapping[str, int]
    tokens: Mapping[int, str]
    size: int
    old_size: int
    label: str
    names: str

    def config(self, config: Mapping[str, Any], name: str = "config.json") -> tuple[dict[str, Any], tuple[str, ...]]:
        """config.json with the new vocab_size and ids, in every part that speaks of the tokenizer's tokens, and notes.

        Raises LostToken.
        """
        walk = _Walk(self, name)
        new = walk.part(config, "", language=True)
        inner = list(main_settings(config))[1:]
        if "vocab_size" in config or not (inner or self._sized(config)):
            new["vocab_size"] = self.size
        for key, part in config.items():
            if any(part is other and ("vocab_size" in other or not self._sized(other)) for other in inner):
                new[key]["vocab_size"] = self.size
        return new, tuple(walk.notes)

    def settings(self, settings: Mapping[str, Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Another file's settings with the new ids, and notes. Raises LostToken."""
        walk = _Walk(self, name)
        return walk.part(settings, "", language=True), tuple(walk.notes)

    def _sized(self, config: Mapping[str, Any]) -> bool:
        """Whether some part of a config.json says the vocabulary's size."""
        parts = [part for part in config.values() if isinstance(part, Mapping)]
        return any(part.get("vocab_size") == self.old_size or self._sized(part) for part in parts)


class _Walk:
    """One file's settings, part by part."""

    def __init__(self, ids: TokenIds, name: str) -> None:
        self.ids, self.name = ids, name
        self.notes: list[str] = []

    def part(self, settings: Mapping[str, Any], path: str, *, language: bool) -> dict[str, Any]:
        """`language`: whether bos, eos and pad are the tokenizer's; a part for images or sounds may have others."""
        new = {}
        for key, value in settings.items():
            where = f"{path}{key}"
            if _TOKEN.fullmatch(key) and isinstance(value, str) and value in self.ids.lost.values():
                raise self._lost(value, where)
            if _IDS.fullmatch(key) and (language or not _GENERIC.fullmatch(key)):
                new[key] = self._key(key, where, value, language=language)
            elif isinstance(value, Mapping):
                new[key] = self._inner(key, value, f"{where}.")
            elif _SIZE.fullmatch(key) and value == self.ids.old_size and language:
                new[key] = self.ids.size
            else:
                new[key] = value
        return new

    def _inner(self, key: str, part: Mapping[str, Any], path: str) -> dict[str, Any]:
        size = part.get("vocab_size")
        main = path.count(".") == 1 and key in MAIN_SETTINGS
        if isinstance(size, int) and size != self.ids.old_size and not main:
            return dict(part)  # a vocabulary of its own, such as codes of sounds
        return self.part(part, path, language=main or size is not None or bool(_LANGUAGE.fullmatch(key)))

    def _key(self, key: str, where: str, value: Any, *, language: bool) -> Any:
        following = key.removesuffix("_token_id")
        if language and following in _FOLLOWING and following in self.ids.special:
            return self._following(following, where, value)
        return self._value(value, where, optional=isinstance(value, list | Mapping) and bool(_HABITS.fullmatch(key)))

    def _following(self, name: str, where: str, old: Any) -> Any:
        """The tokenizer's own token; whatever else ended a text still does."""
        special = self.ids.special[name]
        if name != "eos":
            return special
        rest = [self._value(item, where, optional=True) for item in (old if isinstance(old, list) else [old])]
        rest = [item for item in rest if item is not None and item != special]
        return [special, *rest] if rest else special

    def _value(self, value: Any, where: str, *, optional: bool) -> Any:
        if isinstance(value, Mapping):
            items = {key: self._value(item, where, optional=optional) for key, item in value.items()}
            return {key: item for key, item in items.items() if item is not None or value[key] is None}
        if isinstance(value, list):
            several = optional or (where.endswith("eos_token_id") and any(item in self.ids.moved for item in _numbers(value)))
            if where.endswith("forced_decoder_ids"):  # pairs of a position and an id
                return [[pair[0], self._value(pair[1], where, optional=False)] if _is_pair(pair) else pair for pair in value]
            new = [self._value(item, where, optional=several) for item in value]
            # A list of lists (a phrase of several tokens) is whole or not there.
            kept = [item for item, old in zip(new, value, strict=True) if item is not None and not _shortened(item, old)]
            return kept or (None if value else [])
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            return value
        return self._id(value, where, optional=optional)

    def _id(self, value: int, where: str, *, optional: bool) -> int | None:
        ids = self.ids
        if value in ids.moved:
            return ids.moved[value]
        if value in ids.lost:
            token = ids.lost[value]
            if optional:
                self._note(f"{self.name}: {where} no longer has {value}, the token '{token}', which the result does not have")
                return None
            raise self._lost(token, where)
        if optional:
            self._note(f"{self.name}: {where} no longer has {value}, which is not a token of {ids.label}'s tokenizer")
            return None
        if where.endswith("pad_token_id") and value >= ids.size:
            raise LostToken(
                f"{ids.label}/{self.name}: {where} is {value}, which is not a token of its tokenizer and past the end of the "
                f"result's {ids.size} rows: write the id of a token there, or null"
            )
        now = f"; it is '{ids.tokens[value]}' in the result" if value in ids.tokens else ""
        self._note(f"{self.name}: {where} stays {value}, which is not a token of {ids.label}'s tokenizer{now}")
        return value

    def _lost(self, token: str, where: str) -> LostToken:
        ids = self.ids
        source = ids.names or "union"
        keys = f"tokenizer: {{source: {source}, tokens: {{{json.dumps(token, ensure_ascii=False)}: {{source: {ids.label}}}}}}}"
        return LostToken(
            f"{ids.label}/{self.name} names '{token}' as {where}, and {ids.names or 'the result'} has no such token: "
            f"take its row along with '{keys}', or choose a tokenizer_source that has it"
        )

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


_LANGUAGE = re.compile(r"(text|llm|language|thinker)_config|decoder")
"""Parts that describe a language model, even if they do not say its vocab_size."""
_TOKEN = re.compile(r"\w+_token")
_SIZE = re.compile(r"(\w+_)?vocab_size(_per_layer_input)?")


def _numbers(value: Sequence[Any]) -> Iterator[int]:
    return (item for item in value if isinstance(item, int))


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


def _shortened(new: Any, old: Any) -> bool:
    return isinstance(new, list) and len(new) != len(old)


def token_ids(checkpoints: Sequence[Checkpoint], base: int | None, vocabulary: Vocabulary, source: Source) -> TokenIds:
    """How the base's ids change. Raises CheckpointError."""
    place = base or 0
    chosen = source if isinstance(source, int) else place
    own, template = read_tokenizers((checkpoints[place], checkpoints[chosen]))
    tokens = vocabulary.tokens
    moved: dict[int, int] = {}
    lost: dict[int, str] = {}
    for token, number in own.tokens.items():
        if token in tokens:
            moved.setdefault(number, tokens[token])
        else:
            lost.setdefault(number, token)
    special = {}
    if chosen != place:
        named = {name: token_text(template.settings.get(f"{name}_token")) for name in _FOLLOWING}
        special = {name: tokens[token] for name, token in named.items() if token is not None and token in tokens}
    return TokenIds(
        moved=moved,
        lost={number: token for number, token in lost.items() if number not in moved},
        special=special,
        tokens={number: token for token, number in tokens.items()},
        size=vocabulary.size,
        old_size=own.size,
        label=checkpoints[place].label,
        names=checkpoints[chosen].label if isinstance(source, int) else "",
    )
