"""Whether models are of one family, and how their settings differ where shapes agree: what a merge can do, but seldom should.

Tensors of equal shapes can be merged whatever they mean. What they mean is said in config.json: the class, how positions are
rotated, which activation follows, how many heads share a matrix. The result has the base model's config.json, so what the others
learned under other settings may not work there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..errors import CheckpointError
from .layout import main_settings
from .rope import read_rope
from .sources import Model

_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "activation": ("hidden_act", "hidden_activation", "activation_function", "ffn_activation", "activation"),
    "norm epsilon": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "key-value heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "head_dim": ("head_dim",),
    "sliding_window": ("sliding_window",),
    "experts a token": ("num_experts_per_tok", "moe_topk"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "query_pre_attn_scalar": ("query_pre_attn_scalar",),
    "logit scale": ("logit_scale", "logits_scaling"),
    "embedding_multiplier": ("embedding_multiplier",),
    "residual_multiplier": ("residual_multiplier",),
    "attention_multiplier": ("attention_multiplier",),
}
"""What a setting is called in messages, and the keys that families have for it. What a tied head comes to, `tied` says."""


def class_of(model: Model) -> str:
    """What config.json says that a model is, for people: `LlamaForCausalLM`, or its model_type."""
    config = model.checkpoint.config
    named = config.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    return str(config.get("model_type") or "of a class that its config.json does not name")


def of_one_family(model: Model, other: Model) -> bool:
    """Whether two models have one `model_type`, as far as they say; a text model is of the family of what it is a part of."""
    mine, theirs = model.checkpoint.config, other.checkpoint.config
    if len(list(main_settings(mine))) != len(list(main_settings(theirs))):
        return True
    types = mine.get("model_type"), theirs.get("model_type")
    return None in types or types[0] == types[1]


def family_notes(models: Iterable[Model], base: Model) -> Iterator[str]:
    """A note for each model of another family than the base, and for each with other settings."""
    own = _settings(base)
    for model in {model.checkpoint.label: model for model in models}.values():
        if model.checkpoint.label == base.checkpoint.label:
            continue
        if not of_one_family(model, base):
            yield (
                f"{model.reference} is {class_of(model)} and {base.reference} {class_of(base)}, which the result will be: shapes "
                "agree, but models of different families seldom have anything to give each other"
            )
        other = _settings(model)
        changed = [name for name in own if name in other and own[name] != other[name]]
        if changed:
            listed = ", ".join(f"{name} {_shown(other[name])} (not {_shown(own[name])})" for name in changed)
            yield f"{model.reference} has other settings than {base.reference}, whose config.json the result has: {listed}"


def _settings(model: Model) -> dict[str, Any]:
    """The settings that change what tensors mean, as far as config.json says them."""
    settings: dict[str, Any] = {}
    for part in main_settings(model.checkpoint.config):
        settings |= part
    found: dict[str, Any] = {}
    for name, keys in _SETTINGS.items():
        value = next((settings[key] for key in keys if settings.get(key) is not None), None)
        if isinstance(value, str | int | float):
            found[name] = value
    with suppress(CheckpointError):
        rope = read_rope(model.checkpoint.label, settings)
        rotated = settings.get("rope_parameters") or {}
        if "rope_theta" in settings or "rope_theta" in rotated:
            found["rope_theta"] = rope.theta
            found["rotary scaling"] = dict(rope.scaling or {}) or "none"
    return found


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
