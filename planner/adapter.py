"""LoRA adapters as PEFT saves them: which of a base model's tensors one changes, and how.

An adapter has a pair of factors for each module that it changes, A [r, in] and B [out, r], and config.json's counterpart with the
numbers that make their scale. Modules are named as in the Python model it was trained in, which wraps checkpoints' names in more
or fewer prefixes. What is not W + scale·B·A (or a tensor taken over whole) is refused: a result that is almost right is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .adapter_config import Scale, read_config
from .adapter_tensors import AdapterTensors, Pair, read_tensors, sort_tensors
from .catalog import Checkpoint, InputTensor, WeightFile
from .dtypes import MERGED
from .layout import input_embedding, is_output_embedding
from .store import Store
from .tied import says_tied

_WRAPPERS = {"model", "language_model", "text_model", "transformer", "gpt_neox", "backbone", "bert", "roberta"}
"""Parts of a module's path that depend on the class the model was loaded with (AutoModel or AutoModelForCausalLM) or its age."""


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
    config = read_config(store)
    file, tensors = read_tensors(store)
    parts = sort_tensors(store.label, tensors)
    return _Match(store.label, config, base).adapter(store, file, parts)


class _Match:
    """An adapter's modules among a base model's tensors."""

    def __init__(self, label: str, config: Mapping[str, Any], base: Checkpoint) -> None:
        self.label, self.config, self.base = label, config, base
        self.scale = Scale(label, config)
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

    def adapter(self, store: Store, file: WeightFile, parts: AdapterTensors) -> Adapter:
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

    def _check_known(self, parts: AdapterTensors) -> None:
        names = [(f"{module}.weight", pair.factors["A"]) for module, pair in parts.pairs.items()]
        names += list(parts.saved.items())
        unknown = [tensor.name for name, tensor in names if not self._find(name)]
        if not unknown:
            return
        if len(unknown) == len(names):
            trained = self.config.get("base_model_name_or_path")
            of = f": it was trained on {trained}" if trained else ""
            raise CheckpointError(
                f"{self.label}: no tensor of this adapter matches {self.base.label} ('{unknown[0]}', for example){of}"
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
        return says_tied(self.base.config)

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
            f"{self.label} changes '{module}', which is tied: input and output embedding both change, as when peft merges it"
        )
        return [self._embedding] if output is None else [self._embedding, output]

    def _low_rank(self, module: str, pair: Pair, name: str) -> LowRank:
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

    def _replaced(self, parts: AdapterTensors) -> dict[str, InputTensor]:
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

    def _check_copies(self, parts: AdapterTensors) -> None:
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
