"""The config of a mixture of experts, as data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from .chat_templates import ChatTemplate
from .config_types import FloatType, Number, Reference, Strict, Whole
from .document import Path
from .tokenizer_config import TokenizerConfig, TokenizerSource

GateMode = Literal["hidden", "hidden_last", "hidden_avg", "cheap_embed", "random", "uniform_random"]
HIDDEN_MODES = ("hidden", "hidden_last", "hidden_avg")
RANDOM_MODES = ("random", "uniform_random")

Prompts = list[str]


class Expert(Strict):
    """One entry of `experts` or `shared_experts`: a model whose feed-forward weights become an expert, and what it is good at."""

    source_model: Reference
    positive_prompts: Prompts = Field(default_factory=list)
    negative_prompts: Prompts = Field(default_factory=list)
    noise_scale: Annotated[Number, Field(ge=0, allow_inf_nan=False)] | None = None
    residual_scale: Annotated[Number, Field(allow_inf_nan=False)] | None = None


class MixtureConfig(Strict):
    """A mixture of experts: everything from the base model, except that each layer's feed-forward part becomes several."""

    base_model: Reference
    experts: Annotated[list[Expert], Field(min_length=1)]
    shared_experts: list[Expert] = Field(default_factory=list)
    gate_mode: GateMode = "hidden"
    experts_per_token: Whole = 2
    architecture: str | None = None
    dtype: FloatType | None = None
    tokenizer_source: TokenizerSource | None = None
    tokenizer: TokenizerConfig | None = None
    chat_template: ChatTemplate | None = None
    name: str | None = None

    @model_validator(mode="after")
    def _one_tokenizer(self) -> MixtureConfig:
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give 'tokenizer_source' or 'tokenizer', not both")
        return self

    def all_experts(self) -> Iterator[tuple[Path, Expert]]:
        """Experts, then shared ones, with their places in the config."""
        for key, experts in (("experts", self.experts), ("shared_experts", self.shared_experts)):
            for i, expert in enumerate(experts):
                yield (key, i), expert
