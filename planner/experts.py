"""Whether what a config names can be the experts of one mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint
from .config import LoadedConfig
from .dense_config import check_sizes, head_width
from .document import Path
from .layout import input_embedding
from .mixture_config import RANDOM_MODES, MixtureConfig
from .rope import read_rope
from .sources import Model

_DIMENSIONS = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act",
)  # fmt: skip


def check_prompts(config: LoadedConfig, mixture: MixtureConfig) -> list[str]:
    """What the user should know. Raises ConfigError for experts and prompts of which no router can be made."""
    count = len(mixture.experts)
    if not 1 <= mixture.experts_per_token <= count:
        raise config.error(
            ("experts_per_token",),
            f"{mixture.experts_per_token} experts for each token, and there {'is' if count == 1 else 'are'} {count} "
            f"(the default is 2): choose a number from 1 to {count}",
        )
    notes = []
    sources = {expert.source_model for expert in mixture.experts}
    if len(sources) == 1 and count > 1:
        notes.append(f"all {count} experts are the same model, {next(iter(sources))}: the mixture computes what that model does")
    if mixture.gate_mode in RANDOM_MODES:
        return notes
    for i, expert in enumerate(mixture.experts):
        if not expert.positive_prompts:
            raise config.error(
                ("experts", i),
                f"{expert.source_model} has no positive_prompts: say what it is good at, or choose gate_mode: random",
            )
    prompts = {(tuple(expert.positive_prompts), tuple(expert.negative_prompts)) for expert in mixture.experts}
    if len(prompts) == 1 and count > 1:
        raise config.error(
            ("experts",), "all experts have the same prompts, so that no router can tell them apart: say what each is good at"
        )
    return notes


def check_alike(config: LoadedConfig, mixture: MixtureConfig, base: Model, experts: Sequence[Model]) -> list[str]:
    """What the user should know. Raises CheckpointError where dimensions disagree: all that do, and what would go together."""
    places: list[Path] = [("base_model",), *((*path, "source_model") for path, _ in mixture.all_experts())]
    ropes = []
    for path, model in zip(places, (base, *experts), strict=True):
        try:
            check_sizes(model.checkpoint.label, model.checkpoint.config)
            ropes.append(read_rope(model.checkpoint.label, model.checkpoint.config))
        except CheckpointError as error:
            raise CheckpointError(str(config.error(path, str(error)))) from None
    wanted = dimensions(base.checkpoint)
    for path, model in zip(places[1:], experts, strict=True):
        differing = [
            f"{key} {_said(own)} instead of {_said(wanted[key])}"
            for key, own in dimensions(model.checkpoint).items()
            if own != wanted[key]
        ]
        if differing:
            message = f"{model.reference} does not fit {base.reference}: {', '.join(differing)}; {_together(base, experts)}"
            raise CheckpointError(str(config.error(path, message)))
    notes = []
    turned = {str(model.reference): None for model, rope in zip(experts, ropes[1:], strict=True) if rope != ropes[0]}
    if turned:
        notes.append(f"positions are those of {base.reference}, and these have other rotary settings: {', '.join(turned)}")
    rows = {str(model.reference): _vocabulary(model.checkpoint) for model in (base, *experts)}
    other = [f"{name} ({count})" for name, count in rows.items() if count != rows[str(base.reference)]]
    if other:
        own = f"{base.reference} ({rows[str(base.reference)]} tokens)"
        notes.append(f"embeddings come from {own} alone, and these have other vocabularies: {', '.join(other)}")
    return notes


def dimensions(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What must be equal in all models of a mixture; Phi-3 counts as Phi-3 whatever layout it is read in."""
    config = checkpoint.config
    found = {key: config.get(key) for key in _DIMENSIONS}
    found["num_key_value_heads"] = config.get("num_key_value_heads") or config.get("num_attention_heads")
    found["head_dim"] = head_width(config)
    return found


def _together(base: Model, experts: Sequence[Model]) -> str:
    """The most of the given models that would fit each other."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, model in {str(model.reference): model for model in (base, *experts)}.items():
        groups.setdefault(tuple(dimensions(model.checkpoint).values()), []).append(name)
    largest = max(groups.values(), key=len)
    if len(largest) > 1:
        return f"{', '.join(largest[:-1])} and {largest[-1]} fit each other; all models of a mixture must be fine-tunes of one"
    return f"no two of these fit each other: combine fine-tunes of one model, such as those of {base.reference}"


def _said(value: object) -> str:
    return "nothing" if value is None else str(value)


def _vocabulary(checkpoint: Checkpoint) -> int:
    name = input_embedding(checkpoint.tensors)
    return checkpoint.tensors[name].shape[0] if name else 0
