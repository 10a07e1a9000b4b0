"""The router of a mixture: what its vectors are made of, and the small file they will stand in when a run has made them.

The planner knows the file's layout, so gate tensors are inputs like any others: recipes, graph and schedule need not know where
they come from. The file holds, as float32: for each layer the vector of each expert, and last of a gated shared one; then zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import BudgetError
from .catalog import Checkpoint, InputTensor, WeightFile
from .memory import OVERHEAD, Budget
from .mixture_config import HIDDEN_MODES, RANDOM_MODES
from .recipe import Source, identity
from .sizes import format_size

ROUTER = "<router>"
"""Stands where other weight files name their model."""

ROUTER_VERSION = 1
"""Raise it when the vectors of the same prompts change."""

READ_BYTES = 8 << 20
"""Weights are widened to float32 in pieces of this many bytes."""

BATCH_TOKENS = 256
"""Tokens that go through a layer together: fixed, so that results depend neither on workers nor on memory."""

LIBRARIES = 48 << 20
"""What matrix products and their threads take beside tensors (measured)."""

TOKENIZER = 4 << 20
TOKENIZER_FACTOR = 28
"""What a tokenizer takes while transformers reads it: a constant, and for each byte of its files (measured)."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What an expert is good at, and what it is not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that making the vectors takes, on the host and on the device, and how many batches are computed side by side."""

    ram: int
    vram: int
    threads: int


@dataclass(frozen=True)
class Router:
    """How to make the router's vectors. `names` are the gate tensors' names by layer, `experts` how many are routed.

    `prompts` has one item an expert, then one for a gated shared expert. `weights` are each layer's tensors of the base model,
    by their names within the layer; `tokenizer` its tokenizer's files, `processor` what runs them (None: the CPU).
    """

    mode: str
    seed: int
    experts: int
    per_token: int
    prompts: tuple[Prompts, ...]
    names: tuple[str, ...]
    hidden: int
    zeros: int
    base: Checkpoint
    embedding: Source
    weights: tuple[Mapping[str, Source], ...]
    tokenizer: Mapping[str, bytes]
    processor: str | None = None

    @cached_property
    def digest(self) -> str:
        """Of all that the vectors depend on: the base model, the prompts and their tokenizer, or the seed."""
        made_of: list[Any] = [ROUTER_VERSION, self.mode, len(self.prompts), self.experts, self.hidden, self.zeros, self.layers]
        if self.mode in RANDOM_MODES:
            made_of += [self.seed, self.names]
        else:
            texts = [[prompts.positive, prompts.negative] for prompts in self.prompts]
            files = {name: hashlib.sha256(data).hexdigest() for name, data in self.tokenizer.items()}
            made_of += [texts, files, identity(self.embedding)]
        if self.runs_base:
            weights = [[[name, identity(source)] for name, source in layer.items()] for layer in self.weights]
            made_of += [layer_settings(self.base.config), weights]
            made_of += [self.processor] if self.processor else []
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.names)

    @property
    def runs_base(self) -> bool:
        """Whether the vectors are hidden states of the base model."""
        return self.mode in HIDDEN_MODES

    @property
    def file(self) -> WeightFile:
        """The file that a run makes."""
        size = 4 * (self.layers * len(self.prompts) * self.hidden + self.zeros)
        return WeightFile(ROUTER, f"router-{self.digest}.bin", size, self.digest)

    def gate(self, layer: int) -> InputTensor:
        """The vectors of a layer's experts, [experts, hidden]."""
        return self._rows(layer, 0, self.experts)

    def shared_gate(self, layer: int) -> InputTensor:
        """The vector of a layer's shared expert, [1, hidden]."""
        return self._rows(layer, self.experts, 1)

    def zero(self, name: str, count: int) -> InputTensor:
        """A vector of zeros."""
        assert count <= self.zeros
        return InputTensor(name, "F32", (count,), self.file, self.file.size - 4 * self.zeros, 4 * count)

    def _rows(self, layer: int, first: int, count: int) -> InputTensor:
        row = 4 * self.hidden
        offset = (layer * len(self.prompts) + first) * row
        return InputTensor(f"{self.names[layer]}[{first}]", "F32", (count, self.hidden), self.file, offset, count * row)

    def texts(self) -> tuple[str, ...]:
        """All prompts, each once."""
        return tuple(dict.fromkeys(text for prompts in self.prompts for text in (*prompts.positive, *prompts.negative)))

    def reads(self, *, everything: bool = False) -> Iterator[InputTensor]:
        """The base model's tensors that are read for the vectors, or for `everything`, to show how prompts are routed."""
        wanted = [self.embedding] if self.mode not in RANDOM_MODES or everything else []
        if self.runs_base or everything:
            wanted += [source for weights in self.weights for source in weights.values()]
        yield from (source for source in wanted if isinstance(source, InputTensor))

    def said(self) -> str:
        """How the vectors are made, for people."""
        if self.mode in RANDOM_MODES:
            return f"the router is random ({self.mode}): it routes nothing by meaning until it is trained"
        what = f"the router is made from {len(self.texts())} prompts"
        if self.runs_base:
            return f"{what}, which run through {self.base.label} in float32, one layer in memory at a time"
        return f"{what} by their token embeddings, the same for all layers"

    def memory(self, budget: Budget, *, everything: bool = False) -> Memory:
        """What making the vectors takes at most; as many batches at once as the budget allows, at least one."""
        file = 2 * self.file.size
        tokens = _tokenizer_memory(self.tokenizer)
        if not self.runs_base and not everything:
            return Memory(OVERHEAD + file + tokens, 0, 1)
        lengths = [_most_tokens(text) for text in self.texts()]
        states = 4 * self.hidden * sum(lengths)
        layer = max((4 * sum(_elements(source) for source in weights.values()) for weights in self.weights), default=0)
        batch = _activations(self.base.config, max(BATCH_TOKENS, *lengths, 1))
        host = (
            OVERHEAD + LIBRARIES + READ_BYTES + file + tokens + 3 * states
        )  # themselves, put together, and on their way to the disk
        if not budget.on_host:
            return Memory(host + batch, layer + batch + LIBRARIES, 1)
        threads = max(1, min(budget.workers, (budget.ram - host - layer) // batch))
        return Memory(host + layer + threads * batch, 0, threads)


_LAYER_KEYS = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "original_max_position_embeddings",
    "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "attention_bias", "mlp_bias",
    "sliding_window", "use_sliding_window", "max_window_layers", "layer_types", "pad_token_id",
)  # fmt: skip


def layer_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that describes a layer's arithmetic, and nothing that could name code or files."""
    return {key: config[key] for key in _LAYER_KEYS if key in config}


def _tokenizer_memory(files: Mapping[str, bytes]) -> int:
    """Bytes that a tokenizer of these files takes; white space between their entries does not count."""
    return TOKENIZER + TOKENIZER_FACTOR * sum(len(data.translate(None, b" \t\r\n")) for data in files.values()) if files else 0


def _elements(source: Source) -> int:
    total = 1
    for side in source.shape:
        total *= side
    return total


def _most_tokens(text: str) -> int:
    """No tokenizer makes more tokens than bytes, beside one that begins the prompt and one for a space before it."""
    return len(text.encode()) + 2


def _activations(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes of what one batch needs within a layer, by the widths of its parts; attention sees one prompt at a time at worst."""
    hidden, inner, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    width = heads * int(config.get("head_dim") or hidden // heads)
    masked = isinstance(config.get("sliding_window"), int) and config["sliding_window"] < tokens
    scores = 2 * heads * tokens * tokens if masked else 0
    return 4 * (tokens * (8 * hidden + 3 * inner + 8 * width) + scores)


def check_routers(routers: Iterable[Router], budget: Budget, *, everything: bool = False) -> None:
    """Raise BudgetError, with what would do, where a router cannot be made within the budget."""
    for router in routers:
        memory = router.memory(budget, everything=everything)
        for option, needed, given in (("--ram", memory.ram, budget.ram), ("--vram", memory.vram, budget.vram)):
            if needed > given and not (option == "--vram" and budget.on_host):
                mebibytes = -(-needed // (1 << 20))
                what = f"run {router.base.label} layer by layer for the router: its largest layer, tokenizer and prompts take"
                if not router.runs_base and not everything:
                    what = "make the router: the tokenizer and the vectors take"
                raise BudgetError(
                    f"{option} {format_size(given)} is too little to {what} {format_size(needed)}; "
                    f"it needs at least {option} {mebibytes}MiB",
                    mebibytes << 20,
                )
