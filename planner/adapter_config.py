"""An adapter's config, and the scale that it gives each module. What makes an adapter more than plain LoRA is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .json_text import loads
from .store import Store

CONFIG = "adapter_config.json"

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that take the adapter's start out of the base model's weights."""

_PLAIN = re.compile(r"[\w.]+")
"""A pattern without repetition, which is what adapters have nearly always: the name of a module, or its end."""

_LONG_PATTERN = 500
_MANY_PATTERNS = 10_000
_LARGEST = 1e30
"""Numbers beyond this are no alpha; NaN is not below it, either."""

_PATTERN_SECONDS = 0.1
"""Far more than a match takes, far less than one made to take for ever: an adapter is a download from a stranger."""

REFUSED = {
    "use_dora": "DoRA, which also scales columns",
    "lora_bias": "LoRA with biases of its own (lora_bias)",
    "target_parameters": "LoRA on bare parameters (target_parameters), such as the experts of a mixture",
    "megatron_config": "LoRA on Megatron's layers (megatron_config)",
    "layer_replication": "LoRA on repeated layers (layer_replication)",
    "trainable_token_indices": "an adapter with single tokens' embeddings (trainable_token_indices)",
    "alora_invocation_tokens": "activated LoRA, which depends on the prompt (alora_invocation_tokens)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "Arrow, which routes between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
"""Settings that, if they are given, make an adapter more than W + scale·B·A."""


def read_config(store: Store) -> Mapping[str, Any]:
    """Raises CheckpointError for what is no LoRA adapter, and for a kind of LoRA that weft cannot apply."""
    where = f"{store.label}/{CONFIG}"
    if CONFIG not in store.sizes():
        raise CheckpointError(f"{store.label}: not an adapter: it has no {CONFIG}")
    try:
        config = loads(store.read(CONFIG))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CheckpointError(f"{where}: not the config of an adapter: it has no peft_type")
    if config["peft_type"] != "LORA":
        raise CheckpointError(f"{store.label}: an adapter of type {config['peft_type']}; weft applies LoRA adapters only")
    for key, what in REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{store.label}: {what}; weft applies plain LoRA only: merge it with peft first")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{store.label}: trained on a base model whose weights its initialisation changed (init_lora_weights: {start}); "
            "save it with path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
    return config


@dataclass(frozen=True, slots=True)
class Scale:
    """The scale of each module, from its rank and alpha."""

    label: str
    settings: Mapping[str, Any]

    def of(self, module: str, rank: int) -> float:
        """Alpha over r, or over √r for rank-stabilised LoRA; `rank` is the factors' own."""
        wanted = self._number("r", "rank_pattern", module)
        if wanted != rank:
            raise CheckpointError(f"{self.label}: '{module}' has rank {rank}, but {CONFIG} says {wanted:g}")
        alpha = self._number("lora_alpha", "alpha_pattern", module)
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank

    def _number(self, key: str, pattern_key: str, module: str) -> float:
        patterns = self.settings.get(pattern_key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{self.label}/{CONFIG}: {pattern_key} is not a map")
        if len(patterns) > _MANY_PATTERNS:
            raise CheckpointError(f"{self.label}/{CONFIG}: {pattern_key} has {len(patterns)} patterns, more than any adapter")
        pattern = next((pattern for pattern in patterns if self._matches(pattern, module)), None)
        value = self.settings.get(key, 8) if pattern is None else patterns[pattern]
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            where = key if pattern is None else f"{pattern_key} for '{pattern}'"
            raise CheckpointError(f"{self.label}/{CONFIG}: {where} is {value!r}, not a number")
        return value

    def _matches(self, pattern: str, module: str) -> bool:
        """A pattern is a regular expression for the whole path, or for its end from a dot on; the first that matches counts."""
        if _PLAIN.fullmatch(pattern):
            return _looks_like(pattern, module)
        import regex

        if len(pattern) > _LONG_PATTERN:
            raise CheckpointError(f"{self.label}/{CONFIG}: '{pattern[:60]}…' is too long for a pattern")
        try:
            return regex.fullmatch(rf"(.*\.)?({pattern})", module, timeout=_PATTERN_SECONDS) is not None
        except TimeoutError:
            raise CheckpointError(
                f"{self.label}/{CONFIG}: the pattern '{pattern}' takes too long to match: write it plainer"
            ) from None
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{self.label}/{CONFIG}: '{pattern}' is not a regular expression: {error}") from None


def _looks_like(pattern: str, module: str) -> bool:
    """Whether a plain pattern, whose dots stand for any character, matches a module's whole path or its end from a dot on."""
    start = len(module) - len(pattern)
    at_border = start == 0 or (start > 0 and module[start - 1] == ".")
    return at_border and all(a in (".", b) for a, b in zip(pattern, module[start:], strict=True))
