"""Which keys of a config.json count the layers of which stack, by the words that both have in their names.

`decoder_layers` counts `model.decoder.layers`, and `vision_config.num_hidden_layers` counts `vision_model.encoder.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .layout import Stack

KeyPath = tuple[str, ...]
"""A key of a config.json and the parts that it stands in: ("text_config", "num_hidden_layers")."""

_COUNT = re.compile(r"(\w+_)?(n|num)_(\w+_)?(layers?|blocks)|(\w+_)?(layers|depth)")
_NO_COUNT = re.compile(
    r"mtp|nextn|dense|sparse|first|last|hash|window|conv|adapter|feat|moe|cross|shared|attn|attention|kv|lstm|residual|norm"
    r"|random|timestamp|head|per_|postnet|prenet|predictor|rope|res_"
)
_GENERIC = {"num", "n", "hidden", "layers", "layer", "blocks", "block", "depth", "config", "cfg", "model"}
_SAME = {
    **dict.fromkeys(("language", "llm", "lm"), "text"),
    **dict.fromkeys(("visual", "image", "img", "vit", "vpm"), "vision"),
    **dict.fromkeys(("speech", "sound", "apm", "acoustic"), "audio"),
    "enc": "encoder",
    "dec": "decoder",
}
SIDES = {"encoder", "decoder", "vision", "audio", "qformer", "resampler", "perceiver"}
_OPPOSITES = ({"encoder", "decoder"}, {"text", "vision", "audio"})


def words(name: str) -> set[str]:
    """The words of a tensor's or key's name that tell stacks apart, each by one of the names that the field has for it."""
    return {_SAME.get(word, word) for word in re.split(r"[._]", name.lower())} - _GENERIC - {""}


def layer_counts(config: Mapping[str, Any], stacks: Sequence[Stack]) -> dict[str, tuple[KeyPath, ...]]:
    """The keys that count each stack's layers, by the stack's prefix; the main stack is the first. A stack may have none."""
    found: dict[str, tuple[KeyPath, ...]] = {stack.prefix: () for stack in stacks}
    counts = dict(_counts(config))
    for path in sorted(counts, key=lambda path: not words(".".join(path))):  # those that name a side first
        beside = any("decoder" in words(other[-1]) for other in counts if other[:-1] == path[:-1] and other != path)
        best = _best(path, [stack for stack in stacks if stack.count == counts[path]], stacks[0], beside_decoder=beside)
        known = [stack for stack in best if not words(".".join(path)) or words(".".join(path)) & words(stack.prefix)]
        free = [stack for stack in known if not found[stack.prefix]]
        for candidates in (best, free, [stack for stack in known if stack == stacks[0]]):
            if len(candidates) == 1:
                prefix = candidates[0].prefix
                found[prefix] = (*found[prefix], path)
                break
    return found


def _counts(config: Mapping[str, Any], within: KeyPath = ()) -> Iterator[tuple[KeyPath, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value, (*within, str(key)))
        elif isinstance(value, int) and not isinstance(value, bool) and _COUNT.fullmatch(key) and not _NO_COUNT.search(key):
            yield (*within, key), value


def _best(path: KeyPath, stacks: Sequence[Stack], main: Stack, *, beside_decoder: bool) -> list[Stack]:
    """The ones of `stacks` that a key may speak of. `beside_decoder`: another key at its level counts a decoder's layers."""
    hints = set().union(*map(words, path))
    plain = not words(path[-1])

    def fit(stack: Stack) -> tuple[int, int] | None:
        own = words(stack.prefix)
        if words(path[-1]) - own - SIDES - {"text"}:
            return None
        if any(hint not in own and own & (group - {hint}) for group in _OPPOSITES for hint in hints & group):
            return None
        if plain and beside_decoder and "decoder" in own and "encoder" not in own and "decoder" not in hints:
            return None
        if stack == main and (hints & SIDES - {"encoder", "decoder"}) - own:
            return None
        return 2 * len(hints & own) - len((own & SIDES) - hints) - len((hints & SIDES) - own), -len(own - hints) if hints else 0

    fits = {stack: score for stack in stacks if (score := fit(stack)) is not None}
    return [stack for stack in fits if fits[stack] == max(fits.values())]
