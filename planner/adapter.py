"""LoRA adapters as PEFT saves them: which of a base model's tensors one changes, and how.

An adapter has a pair of factors for each module that it changes, A [r, in] and B [out, r], and config.json's counterpart with the
numbers that make their scale. Modules are named as in the Python model it was trained in, which wraps checkpoints' names in more
or fewer prefixes. What is not W + scale·B·A (or a tensor taken over whole) is refused: a result that is almost right is wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError
from .catalog import Checkpoint, InputTensor, WeightFile, read_header
from .dtypes import MERGED
from .json_text import loads
from .layout import input_embedding, is_output_embedding
from .store import Store

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_FACTOR = re.compile(r"(?P<module>.+?)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
_EMBEDDING_FACTOR = re.compile(r"(?P<module>.+?)\.lora_embedding_(?P<side>[AB])(\.[^.]+)?")
_SAVED = re.compile(r"(?P<module>.+)\.modules_to_save(\.[^.]+)?\.(?P<rest>weight|bias)")
_WRAPPERS = {"model", "language_model", "text_model", "transformer", "gpt_neox", "backbone", "bert", "roberta"}
"""Parts of a module's path that depend on the class the model was loaded with (AutoModel or AutoModelForCausalLM) or its age."""

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

_REFUSED = {
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


@dataclass(frozen=True, slots=True)
class LowRank:
    """A tensor W becomes W + scale·B·A, or W + scale·(B·A)ᵀ if `transposed`, with A [r, in] and B [out, r]."""

    a: InputTensor
    b: InputTensor
    scale: float
    transposed: bool


@dataclass(frozen=True, slots=True)
class Adapter:
    """What an adapter does to its base model: `patches` and `replaced` by the base model's tensor names."""

    label: str
    store: Store
    files: tuple[WeightFile, ...]
    patches: Mapping[str, LowRank]
    replaced: Mapping[str, InputTensor]
    notes: tuple[str, ...]


def open_adapter(store: Store, base: Checkpoint) -> Adapter:
    """Read an adapter's config and header, and find the tensors of `base` that it changes.

    Raises CheckpointError for what is no LoRA adapter, for a kind of LoRA that weft cannot apply, and for one that does not fit.
    """
    config = _config(store)
    file, tensors = _tensors(store)
    parts = _sort(store.label, tensors)
    return _Match(store.label, config, base).adapter(store, file, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
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
            raise CheckpointError(f"{self.label}/{CONFIG}: '{pattern}' is no regular expression: {error}") from None


def _looks_like(pattern: str, module: str) -> bool:
    """Whether a plain pattern, whose dots stand for any character, matches a module's whole path or its end from a dot on."""
    start = len(module) - len(pattern)
    at_border = start == 0 or (start > 0 and module[start - 1] == ".")
    return at_border and all(a in (".", b) for a, b in zip(pattern, module[start:], strict=True))


@dataclass(slots=True)
class _Pair:
    """The factors of one module, as far as they are found."""

    embedding: bool
    factors: dict[str, InputTensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Parts:
    """An adapter's tensors by what they are for; `copies` are of the base model's weights, as they were in training."""

    pairs: dict[str, _Pair]
    saved: dict[str, InputTensor]
    copies: dict[str, InputTensor]


def _config(store: Store) -> Mapping[str, Any]:
    where = f"{store.label}/{CONFIG}"
    if CONFIG not in store.sizes():
        raise CheckpointError(f"{store.label}: not an adapter: it has no {CONFIG}")
    try:
        config = loads(store.read(CONFIG))
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}; fetch it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise CheckpointError(f"{where}: not the config of an adapter: it has no peft_type")
    if config["peft_type"] != "LORA":
        raise CheckpointError(f"{store.label}: an adapter of type {config['peft_type']}; weft applies LoRA adapters only")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{store.label}: {what}; weft applies plain LoRA only: merge it with peft first")
    start = str(config.get("init_lora_weights")).lower()
    if start.startswith(_CHANGES_BASE):
        raise CheckpointError(
            f"{store.label}: trained on a base model whose weights its initialisation changed (init_lora_weights: {start}); "
            "save it with path_initial_model_for_weight_conversion, which makes plain LoRA of it"
        )
    return config


def _tensors(store: Store) -> tuple[WeightFile, list[InputTensor]]:
    sizes = store.sizes()
    name = next((name for name in WEIGHTS if name in sizes), None)
    if name is None:
        raise CheckpointError(f"{store.label}: missing weights: there is no {WEIGHTS[0]} or {WEIGHTS[1]}")
    header = read_header(store, name, sizes[name], f"{store.label}/{name}")
    file = WeightFile(store.label, name, sizes[name], f"{store.identity(name)}:{header.digest}")
    return file, [InputTensor(e.name, e.dtype, e.shape, file, e.offset, e.nbytes) for e in header.tensors]


def _sort(label: str, tensors: Iterable[InputTensor]) -> _Parts:
    parts = _Parts({}, {}, {})
    for tensor in tensors:
        name = tensor.name.removeprefix("base_model.model.")
        if ".original_module." in name:
            continue
        if "lora_magnitude_vector" in name:
            raise CheckpointError(f"{label}: '{tensor.name}': {_REFUSED['use_dora']}; weft applies plain LoRA only")
        if embedding := _EMBEDDING_FACTOR.fullmatch(name):
            _add_factor(label, parts, embedding, tensor, True)
        elif match := _FACTOR.fullmatch(name):
            _add_factor(label, parts, match, tensor, False)
        elif "lora_" in name or "token_adapter" in name:
            raise CheckpointError(f"{label}: '{tensor.name}' is no part of plain LoRA, which is all that weft applies")
        elif name.endswith(".base_layer.weight"):
            parts.copies[name.removesuffix(".base_layer.weight") + ".weight"] = tensor
        else:
            saved = _SAVED.fullmatch(name)
            parts.saved[f"{saved['module']}.{saved['rest']}" if saved else name.replace(".base_layer.", ".")] = tensor
    for module, pair in parts.pairs.items():
        for side, other in (("A", "B"), ("B", "A")):
            if side not in pair.factors:
                raise CheckpointError(f"{label}: '{pair.factors[other].name}' has no lora_{side} beside it; fetch it again")
        for tensor in pair.factors.values():
            if tensor.dtype not in MERGED:
                raise CheckpointError(f"{label}: '{tensor.name}' has dtype {tensor.dtype}, which is no floating-point type")
        if module.endswith(".base_layer"):
            raise CheckpointError(f"{label}: '{pair.factors['A'].name}': {_REFUSED['target_parameters']}; weft cannot apply it")
    if not parts.pairs and not parts.saved:
        raise CheckpointError(f"{label}: there are no tensors of an adapter in it")
    return parts


def _add_factor(label: str, parts: _Parts, match: re.Match[str], tensor: InputTensor, embedding: bool) -> None:
    pair = parts.pairs.setdefault(match["module"], _Pair(embedding))
    if match["side"] in pair.factors or pair.embedding is not embedding:
        raise CheckpointError(f"{label}: '{tensor.name}' is one factor too many for '{match['module']}'")
    pair.factors[match["side"]] = tensor


class _Match:
    """An adapter's modules among a base model's tensors."""

    def __init__(self, label: str, config: Mapping[str, Any], base: Checkpoint) -> None:
        self.label, self.config, self.base = label, config, base
        self.scale = _Scale(label, config)
        self.notes: list[str] = []
        self._unwrapped: dict[str, list[str]] = {}
        for name in base.tensors:
            self._unwrapped.setdefault(_unwrap(name), []).append(name)
        self._embedding = input_embedding(base.tensors)
        self._input_first = {
            len_bias == tensor.shape[1]
            for name, tensor in base.tensors.items()
            if len(tensor.shape) == 2 and tensor.shape[0] != tensor.shape[1] and (len_bias := self._bias(name)) in tensor.shape
        }
        """Whether layers are stored [in, out], as their biases show: {True}, {False}, or not clear."""

    def adapter(self, store: Store, file: WeightFile, parts: _Parts) -> Adapter:
        """Raises CheckpointError where something does not fit, or nothing does."""
        self._check_known(parts)
        patches: dict[str, LowRank] = {}
        for module, pair in parts.pairs.items():
            for name in self._patched(module):
                if name in patches:
                    self._refuse_both(name, patches[name].a.name, pair.factors["A"].name)
                patches[name] = self._low_rank(module, pair, name)
        replaced = self._replaced(parts)
        for name in replaced:
            if name in patches:
                self._refuse_both(name, patches[name].a.name, replaced[name].name)
        self._check_copies(parts)
        return Adapter(self.label, store, (file,), patches, replaced, tuple(self.notes))

    def _refuse_both(self, name: str, first: str, second: str) -> None:
        raise CheckpointError(
            f"{self.label}: '{first}' and '{second}' both change '{name}' of {self.base.label}; "
            "weft applies one change to a tensor: merge the adapter with peft first"
        )

    def _check_known(self, parts: _Parts) -> None:
        names = [(f"{module}.weight", pair.factors["A"]) for module, pair in parts.pairs.items()]
        names += list(parts.saved.items())
        unknown = [tensor.name for name, tensor in names if not self._find(name)]
        if not unknown:
            return
        if len(unknown) == len(names):
            trained = self.config.get("base_model_name_or_path")
            of = f": it was trained on {trained}" if trained else ""
            raise CheckpointError(
                f"{self.label}: no tensor of this adapter matches {self.base.label}, such as '{unknown[0]}' does not{of}"
            )
        raise CheckpointError(
            f"{self.label}: {len(unknown)} of the adapter's tensors match nothing in {self.base.label}, such as '{unknown[0]}'"
        )

    def _find(self, name: str) -> str | None:
        """The base model's tensor of a name in the adapter: a tied output projection without one is the input embedding."""
        if name in self.base.tensors:
            return name
        found = self._unwrapped.get(_unwrap(name), [])
        if len(found) > 1:
            raise CheckpointError(
                f"{self.label}: '{name}' could be '{found[0]}' or '{found[1]}' of {self.base.label}: weft cannot tell which"
            )
        return found[0] if found else self._embedding if is_output_embedding(name) and self._tied() is not False else None

    def _tied(self) -> bool | None:
        """Whether input and output embedding are one, as the base model's config says; None if it does not."""
        config = self.base.config
        text = config.get("text_config")
        value = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
        return value if isinstance(value, bool) else None

    def _patched(self, module: str) -> list[str]:
        """The base model's tensors that a module's factors change: of tied embeddings both, as they are one in memory."""
        name = self._find(f"{module}.weight")
        assert name is not None
        output = next((n for n in self.base.tensors if is_output_embedding(n)), None)
        if name not in (self._embedding, output) or self._embedding is None:
            return [name]
        if self._tied() is not True and not (output is None and is_output_embedding(f"{module}.weight")):
            return [name]
        self.notes.append(
            f"{self.label} changes '{module}', which is tied: input and output embedding both change, as peft's merging does it"
        )
        return [self._embedding] if output is None else [self._embedding, output]

    def _low_rank(self, module: str, pair: _Pair, name: str) -> LowRank:
        a, b = pair.factors["A"], pair.factors["B"]
        weight = self.base.tensors[name]
        if len(a.shape) != 2 or len(b.shape) != 2 or len(weight.shape) != 2:
            shapes = " and ".join(str(list(factor.shape)) for factor in (a, b))
            raise CheckpointError(
                f"{self.label}: '{module}' has factors {shapes} for a weight {list(weight.shape)}: "
                "weft applies LoRA to linear layers and embeddings, not to convolutions or stacked experts"
            )
        rank, inner, outer = a.shape[0], a.shape[1], b.shape[0]
        fits = {False: weight.shape == (outer, inner), True: weight.shape == (inner, outer)}
        if rank < 1 or b.shape[1] != rank or not (fits[True] if pair.embedding else any(fits.values())):
            raise CheckpointError(
                f"{self.label}: '{module}' has factors A {list(a.shape)} and B {list(b.shape)}, "
                f"which do not fit {self.base.label}'s '{name}' {list(weight.shape)}"
            )
        if weight.dtype not in MERGED:
            raise CheckpointError(f"{self.label}: '{name}' of {self.base.label} is {weight.dtype}, to which nothing can be added")
        transposed = pair.embedding or (self._stored_input_first(name) if all(fits.values()) else fits[True])
        return LowRank(a, b, self.scale.of(module, rank), transposed)

    def _stored_input_first(self, name: str) -> bool:
        """Whether a square weight is [in, out]: peft goes by the layer's class, which a checkpoint shows in biases alone."""
        if self._bias(name) is None:
            return False
        if len(self._input_first) == 1:
            return next(iter(self._input_first))
        return bool(self.config.get("fan_in_fan_out"))

    def _bias(self, name: str) -> int | None:
        """The length of the bias beside a weight."""
        bias = self.base.tensors.get(name.removesuffix("weight") + "bias") if name.endswith(".weight") else None
        return bias.shape[0] if bias is not None and len(bias.shape) == 1 else None

    def _replaced(self, parts: _Parts) -> dict[str, InputTensor]:
        replaced: dict[str, InputTensor] = {}
        for name, tensor in parts.saved.items():
            own = self._find(name)
            assert own is not None
            wrapped = self._trained(name)
            tied = own == self._embedding and (self._tied() is True or is_output_embedding(name))
            if tied and wrapped and not self.config.get("ensure_weight_tying"):
                raise CheckpointError(
                    f"{self.label}: '{tensor.name}' replaces one of {self.base.label}'s tied embeddings, which unties them: "
                    "save the base model with tie_word_embeddings: false and both tensors first"
                )
            if tied and own in replaced:
                continue  # one tensor, saved under both its names
            if own in replaced:
                self._refuse_both(own, replaced[own].name, tensor.name)
            if tensor.shape != self.base.tensors[own].shape:
                raise CheckpointError(
                    f"{self.label}: '{tensor.name}' has shape {list(tensor.shape)}, "
                    f"but '{own}' of {self.base.label} has {list(self.base.tensors[own].shape)}: "
                    "the base model must be resized first, as it was for training"
                )
            replaced[own] = tensor
        return replaced

    def _trained(self, name: str) -> bool:
        """Whether a tensor belongs to a module of `modules_to_save`: trained on its own, not saved along with the adapter."""
        modules = self.config.get("modules_to_save") or []
        module = name.rpartition(".")[0]
        return isinstance(modules, list) and any(isinstance(end, str) and module.endswith(end) for end in modules)

    def _check_copies(self, parts: _Parts) -> None:
        """PEFT saves the base model's embedding along with factors for it; the base model has it already."""
        for name, tensor in parts.copies.items():
            own = self._find(name)
            if own is None or tensor.shape != self.base.tensors[own].shape:
                raise CheckpointError(
                    f"{self.label}: '{tensor.name}' has shape {list(tensor.shape)}, which is not that of any such tensor of "
                    f"{self.base.label}: the base model must be resized first, as it was for training"
                )
            self.notes.append(
                f"{self.label} has a copy of '{own}' from its training, which is not used: {self.base.label} has it"
            )


def _unwrap(name: str) -> str:
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    return ".".join(parts[first:])
