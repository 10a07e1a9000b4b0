"""tokenizer.json for a new vocabulary: one model's, with its ids put right, and tokens of others.

Tokens that the template lacks are taken as what they are to the model that has them. Added tokens stay added tokens. Ordinary
ones go into the model's own vocabulary, not among the added tokens, which would be cut out of the middle of words; a BPE
tokenizer also gets the merges that lead to them, behind its own. Text of which it knew all tokens before is thus split as before,
unless two of them now make a longer token.

The tokenizers library numbers added tokens that are not in the model's vocabulary itself, from the vocabulary's size on. So
all tokens up to the last ordinary one stand in the vocabulary, and behind it only added ones, in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .tokenizer_reader import Tokenizer, kind_of

_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
Pair = tuple[str, str]


def merged_document(template: Tokenizer, others: Sequence[Tokenizer], tokens: Mapping[str, int]) -> dict[str, Any]:
    """tokenizer.json with exactly `tokens`, of which `template` and `others` have most."""
    added = added_tokens(template, others, tokens)
    ordinary = [token for token in tokens if token in template.ordinary or (token not in template.tokens and token not in added)]
    end = max((tokens[token] for token in ordinary), default=-1) + 1
    inside = {token: number for token, number in tokens.items() if number < end}
    document = dict(template.document)
    document["added_tokens"] = list(added.values())
    document["model"] = _model(template, others, inside)
    document["post_processor"] = _post_processor(document.get("post_processor"), tokens)
    padding = document.get("padding")
    if isinstance(padding, dict):
        number = tokens.get(str(padding.get("pad_token")))
        document["padding"] = None if number is None else padding | {"pad_id": number}
    return document


def added_tokens(template: Tokenizer, others: Sequence[Tokenizer], tokens: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The added tokens' definitions in the order of their ids: the template's own, then the first among the others.

    A token that nobody has, or that the template has only beyond its rows, is one more added token.
    """
    added: dict[str, dict[str, Any]] = {}
    for token, number in tokens.items():
        definition = template.added.get(token)
        if definition is None and token not in template.tokens:
            definition = next((other.added[token] for other in others if token in other.added), None)
            if definition is None and not any(token in other.ordinary for other in others):
                definition = _PLAIN
        if definition is not None:
            added[token] = {"id": number, "content": token} | {flag: definition[flag] for flag in _PLAIN}
    return added


def same_vocabulary(template: Tokenizer, document: Mapping[str, Any]) -> bool:
    """Whether the model's own vocabulary is the template's, so that its other files (such as vocab.json) still describe it."""
    old, new = template.document["model"], document["model"]
    return bool(old["vocab"] == new["vocab"])


def _model(template: Tokenizer, others: Sequence[Tokenizer], inside: Mapping[str, int]) -> dict[str, Any]:
    model = dict(template.document["model"])
    kind = kind_of(model)
    if kind == "Unigram":
        model["vocab"], model["unk_id"] = _pieces(template, others, inside)
        return model
    model["vocab"] = dict(inside)
    if kind == "BPE":
        model["merges"] = _merges(template, others, inside)
        if model.get("unk_token") not in inside:
            model["unk_token"] = None
    return model


def _pieces(template: Tokenizer, others: Sequence[Tokenizer], inside: Mapping[str, int]) -> tuple[list[list[Any]], int | None]:
    """Unigram's pieces with their scores, and the unknown piece's place. A piece without a score is the least likely."""
    own = template.document["model"]
    scores: dict[str, Any] = {}
    for tokenizer in (template, *others):
        vocabulary = tokenizer.document["model"]["vocab"]
        if isinstance(vocabulary, list):
            for piece, score in vocabulary:
                if piece not in tokenizer.added or tokenizer is template:
                    scores.setdefault(piece, score)
    least = min((score for _, score in own["vocab"]), default=0.0)
    unknown = own.get("unk_id")
    place = inside.get(own["vocab"][unknown][0]) if isinstance(unknown, int) and unknown < len(own["vocab"]) else None
    return [[piece, scores.get(piece, least)] for piece in inside], place


def _merges(template: Tokenizer, others: Sequence[Tokenizer], inside: Mapping[str, int]) -> list[Any]:
    """The template's merges that still lead somewhere, then the others' that lead to tokens which the template lacks."""
    own = template.document["model"]
    prefix = own.get("continuing_subword_prefix") or ""
    kept = [pair for pair in _pairs(own) if _possible(pair, prefix, inside)]
    known = set(kept)
    for other in others:
        model = other.document["model"]
        if other is template or not _same_alphabet(template, other):
            continue
        for pair in _pairs(model):
            if pair not in known and _joined(pair, prefix) not in template.ordinary and _possible(pair, prefix, inside):
                known.add(pair)
                kept.append(pair)
    texts = all(isinstance(merge, str) for merge in own.get("merges") or [])
    if texts and not any(" " in piece for pair in kept for piece in pair):
        return [f"{left} {right}" for left, right in kept]
    return [list(pair) for pair in kept]


def _pairs(model: Mapping[str, Any]) -> Iterator[Pair]:
    for merge in model.get("merges") or []:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(pair, list) and len(pair) == 2:
            yield pair[0], pair[1]


def _joined(pair: Pair, prefix: str) -> str:
    return pair[0] + pair[1].removeprefix(prefix)


def _possible(pair: Pair, prefix: str, inside: Mapping[str, int]) -> bool:
    return pair[0] in inside and pair[1] in inside and _joined(pair, prefix) in inside


def _same_alphabet(template: Tokenizer, other: Tokenizer) -> bool:
    """Whether a character means the same in both, a byte or itself."""

    def alphabet(tokenizer: Tokenizer) -> tuple[object, ...]:
        model = tokenizer.document["model"]
        steps = json.dumps([tokenizer.document.get(step) for step in ("normalizer", "pre_tokenizer", "decoder")])
        marks = (model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")
        return kind_of(model), '"ByteLevel"' in steps, *marks

    return alphabet(template) == alphabet(other)


def _post_processor(step: Any, tokens: Mapping[str, int]) -> Any:
    """The step with the new ids; special tokens that are gone are left out."""
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence":
        processors = [_post_processor(item, tokens) for item in step.get("processors") or []]
        return step | {"processors": [item for item in processors if item is not None]}
    if step.get("type") == "TemplateProcessing":
        return _template(step, tokens)
    new = dict(step)
    for name in ("sep", "cls"):
        if isinstance(pair := new.get(name), list):
            if pair[0] not in tokens:
                return None
            new[name] = [pair[0], tokens[pair[0]]]
    return new


def _template(step: Mapping[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    special = {}
    for name, item in (step.get("special_tokens") or {}).items():
        texts = item.get("tokens") or [name]
        if all(text in tokens for text in texts):
            special[name] = item | {"ids": [tokens[text] for text in texts]}
    new = {**step, "special_tokens": special}
    for form in ("single", "pair"):
        items = new.get(form) or []
        new[form] = [item for item in items if "SpecialToken" not in item or item["SpecialToken"].get("id") in special]
    return new
