"""Kinds of layers that some classes alternate where config.json does not list them, by its `model_type`.

Only kinds that tensors do not show: attention windows, and layers without rotary positions. What follows from a class's other
keys, or shows in tensors, needs no such knowledge. tests/planner/test_architectures.py holds this against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KINDS = {"S": "sliding_attention", "F": "full_attention", "1": 1, "0": 0}
_CYCLES = {
    "layer_types": {
        **dict.fromkeys(("gemma2", "vaultgemma", "gpt_oss", "t5_gemma_module"), "SF"),
        **dict.fromkeys(("cohere2", "olmo3", "exaone4"), "SSSF"),
        **dict.fromkeys(("gemma3_text", "t5gemma2_text", "t5gemma2_decoder", "embedding_gemma2_text", "neomme"), "SSSSSF"),
        **dict.fromkeys(("gemma3n_text", "kolibri1"), "SSSSF"),
        **dict.fromkeys(("cwm", "granite_swa", "granitemoe_swa"), "FSSS"),
        **dict.fromkeys(("modernbert", "modernbert-decoder"), "FSS"),
        "ultrabert": "SSF",
    },
    "no_rope_layers": dict.fromkeys(("smollm3", "llama4_text"), "1110"),
}
_PERIODS = {
    "layer_types": ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"),
    "no_rope_layers": ("no_rope_layer_interval",),
}


_ENDS_FULL = (
    "gemma4",
    "gemma4_text",
    "gemma4_unified",
    "gemma4_unified_text",
    "diffusion_gemma_text",
    "embedding_gemma2_text",
    "beam",
)


def ends_otherwise(part: Mapping[str, Any]) -> bool:
    """Whether a part's class takes its last layer for one of full attention, and `layer_types` says that it is none."""
    kinds = part.get("layer_types")
    return part.get("model_type") in _ENDS_FULL and isinstance(kinds, list) and kinds[-1:] not in ([], ["full_attention"])


def unlisted(part: Mapping[str, Any]) -> dict[str, list[Any]]:
    """For keys that a part of config.json leaves out, the kinds that its class takes by turns."""
    found = {}
    for key, cycles in _CYCLES.items():
        cycle = cycles.get(str(part.get("model_type")))
        if cycle is None or part.get(key):
            continue
        period = next((part[name] for name in _PERIODS[key] if isinstance(part.get(name), int)), len(cycle))
        first, last = _KINDS[cycle[0]], _KINDS[cycle[-1]]
        others = min(max(period, 1), 1000) - 1
        found[key] = [first, *[last] * others] if cycle[0] == "F" else [*[first] * others, last]
    return found
