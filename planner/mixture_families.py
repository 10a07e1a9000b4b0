"""The families of mixtures that weft writes: which models they are made of, their tensor names, and their config.json.

Names on disk are those of the families' own releases, which every loader reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .dense_config import head_width
from .mixture_config import RANDOM_MODES, MixtureConfig
from .rope import Rope, read_rope

Config = Mapping[str, Any]

_GATE, _UP, _DOWN = "gate_proj.weight", "up_proj.weight", "down_proj.weight"
MLP = (_GATE, _UP, _DOWN)
"""A dense model's feed-forward weights, under `model.layers.N.mlp.`; the last one writes into the residual stream."""

_NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
_ATTENTION = tuple(f"self_attn.{x}_proj.weight" for x in "qkvo")
QKV_BIASES = tuple(f"self_attn.{x}_proj.bias" for x in "qkv")


@dataclass(frozen=True, slots=True)
class Family:
    """One family. Names are relative to a layer; `{e}` stands for an expert's number.

    `made_of` are the model types of its experts; `kept` the tensors of a layer that every base has, `optional` those it may have,
    `filled` those that are zeros where it has none. `keys` gives the keys of config.json that are the family's own, and raises
    CheckpointError for what it cannot carry.
    """

    name: str
    title: str
    made_of: tuple[str, ...]
    shared: str
    gate: str
    experts: Mapping[str, str]
    shared_expert: Mapping[str, str]
    shared_gate: str | None
    kept: tuple[str, ...]
    optional: tuple[str, ...]
    filled: tuple[str, ...]
    keys: Callable[[str, Config, MixtureConfig], Mapping[str, Any]]

    def unfit(self, model_types: Mapping[str, str], mixture: MixtureConfig) -> str | None:
        """Why a mixture of models of these types (by model) is none of this family; None if it is."""
        for model, kind in model_types.items():
            if kind not in self.made_of:
                return f"is made of {' or '.join(self.made_of)} models, and {model} is {kind or 'of no type'}"
        count = len(mixture.shared_experts)
        prompted = any(expert.positive_prompts for expert in mixture.shared_experts)
        random = mixture.gate_mode in RANDOM_MODES
        match self.shared:
            case "none" if count:
                return "has no shared experts"
            case "one, gated" if count != 1:
                return f"has exactly one shared expert, and {count} are given"
            case "one, gated" if not prompted and not random:
                return "has a gate for its shared expert, which needs positive_prompts"
            case "at most one" if count > 1:
                return f"has at most one shared expert, and {count} are given"
            case "at most one" if prompted and not random:
                return "has no gate for its shared expert, which takes no positive_prompts"
        return None

    def config(self, label: str, base: Config, mixture: MixtureConfig) -> dict[str, Any]:
        """The mixture's config.json. Raises CheckpointError for what the base's has and the family cannot carry."""
        kept = {key: value for key, value in base.items() if key not in _REPLACED}
        rope = read_rope(label, base)
        common = {
            "tie_word_embeddings": bool(base.get("tie_word_embeddings", False)),
            "num_experts_per_tok": mixture.experts_per_token,
        }
        return kept | common | rope.settings() | dict(self.keys(label, base, mixture))


_REPLACED = ("architectures", "auto_map", "model_type", "rope_parameters", "rope_theta", "rope_scaling", "mlp_bias")


def _window(config: Config) -> int | None:
    """How far back attention sees in a family where every layer does the same; None: everything."""
    window = config.get("sliding_window")
    used = bool(config.get("use_sliding_window", config.get("model_type") == "mistral"))
    return int(window) if used and isinstance(window, int) else None


def _window_layers(label: str, config: Config) -> list[str]:
    """Which attention each layer has, where config.json says that some see only a window."""
    count = int(config["num_hidden_layers"])
    own = config.get("layer_types")
    if isinstance(own, list) and len(own) == count:
        return [str(kind) for kind in own]
    if _window(config) is None:
        return ["full_attention"] * count
    first = 0 if config.get("model_type") == "mistral" else int(config.get("max_window_layers", 28))
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(count)]


def _mixtral(label: str, config: Config, mixture: MixtureConfig) -> Mapping[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": len(mixture.experts),
        "head_dim": head_width(config),
        "sliding_window": _window(config),
        "attention_bias": False,
        "output_router_logits": False,
    }


def _qwen2(label: str, config: Config, mixture: MixtureConfig) -> Mapping[str, Any]:
    _plain_heads("Qwen2-MoE", label, config)
    inner = config["intermediate_size"]
    kinds = _window_layers(label, config)
    windowed = "sliding_attention" in kinds
    first = kinds.index("sliding_attention") if windowed else config.get("max_window_layers", len(kinds))
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": len(mixture.experts),
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
        **_QWEN,
        "qkv_bias": True,
        "use_sliding_window": windowed,
        "sliding_window": config.get("sliding_window") if windowed else None,
        "max_window_layers": first,
        "layer_types": kinds,
    }


_QWEN = {"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "output_router_logits": False}


def _qwen3(label: str, config: Config, mixture: MixtureConfig) -> Mapping[str, Any]:
    kinds = set(_window_layers(label, config))
    if len(kinds) > 1:
        raise CheckpointError(
            f"{label}: some of its layers see a window only (use_sliding_window), and in Qwen3-MoE all layers do or none: "
            "it cannot be carried over"
        )
    windowed = kinds == {"sliding_attention"}
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": len(mixture.experts),
        "moe_intermediate_size": config["intermediate_size"],
        **_QWEN,
        "head_dim": head_width(config),
        "use_sliding_window": windowed,
        "sliding_window": config.get("sliding_window") if windowed else None,
    }


def _deepseek(label: str, config: Config, mixture: MixtureConfig) -> Mapping[str, Any]:
    _plain_heads("DeepSeek-MoE", label, config)
    rope: Rope = read_rope(label, config)
    if rope.kind not in ("default", "linear", "dynamic"):
        raise CheckpointError(
            f"{label}: its rope_scaling is {rope.kind}, which DeepSeek-MoE does not know: use another architecture"
        )
    window, longest = _window(config), config.get("max_position_embeddings", 0)
    if window is not None and window < longest:
        raise CheckpointError(
            f"{label}: its sliding_window of {window} tokens cannot be carried over to DeepSeek-MoE: use another architecture"
        )
    code = "deepseek-ai/deepseek-moe-16b-base--{}"
    return {
        "architectures": ["DeepseekForCausalLM"],
        "model_type": "deepseek",
        "auto_map": {
            "AutoConfig": code.format("configuration_deepseek.DeepseekConfig"),
            "AutoModel": code.format("modeling_deepseek.DeepseekModel"),
            "AutoModelForCausalLM": code.format("modeling_deepseek.DeepseekForCausalLM"),
        },
        "n_routed_experts": len(mixture.experts),
        "n_shared_experts": len(mixture.shared_experts) or None,
        "moe_intermediate_size": config["intermediate_size"],
        "first_k_dense_replace": 0,
        "moe_layer_freq": 1,
        "scoring_func": "softmax",
        "norm_topk_prob": True,
        "attention_bias": False,
    }


def _plain_heads(title: str, label: str, config: Config) -> None:
    plain = config["hidden_size"] // config["num_attention_heads"]
    if head_width(config) != plain:
        raise CheckpointError(
            f"{label}: its attention heads are {head_width(config)} wide (head_dim), and {title} has hidden_size / "
            f"num_attention_heads = {plain}: it cannot be carried over, use another architecture"
        )


def _own_names(pattern: str) -> dict[str, str]:
    return {name: pattern + name for name in MLP}


_LLAMAS = ("llama", "mistral")

FAMILIES = (
    Family(
        name="mixtral",
        title="Mixtral",
        made_of=_LLAMAS,
        shared="none",
        gate="block_sparse_moe.gate.weight",
        experts={
            _GATE: "block_sparse_moe.experts.{e}.w1.weight",
            _DOWN: "block_sparse_moe.experts.{e}.w2.weight",
            _UP: "block_sparse_moe.experts.{e}.w3.weight",
        },
        shared_expert={},
        shared_gate=None,
        kept=(*_NORMS, *_ATTENTION),
        optional=(),
        filled=(),
        keys=_mixtral,
    ),
    Family(
        name="deepseek",
        title="DeepSeek-MoE",
        made_of=_LLAMAS,
        shared="at most one",
        gate="mlp.gate.weight",
        experts=_own_names("mlp.experts.{e}."),
        shared_expert=_own_names("mlp.shared_experts."),
        shared_gate=None,
        kept=(*_NORMS, *_ATTENTION),
        optional=(),
        filled=(),
        keys=_deepseek,
    ),
    Family(
        name="qwen2",
        title="Qwen2-MoE",
        made_of=("qwen2", *_LLAMAS),
        shared="one, gated",
        gate="mlp.gate.weight",
        experts=_own_names("mlp.experts.{e}."),
        shared_expert=_own_names("mlp.shared_expert."),
        shared_gate="mlp.shared_expert_gate.weight",
        kept=(*_NORMS, *_ATTENTION),
        optional=QKV_BIASES,
        filled=QKV_BIASES,
        keys=_qwen2,
    ),
    Family(
        name="qwen3",
        title="Qwen3-MoE",
        made_of=("qwen3",),
        shared="none",
        gate="mlp.gate.weight",
        experts=_own_names("mlp.experts.{e}."),
        shared_expert={},
        shared_gate=None,
        kept=(*_NORMS, *_ATTENTION, "self_attn.q_norm.weight", "self_attn.k_norm.weight"),
        optional=(*QKV_BIASES, "self_attn.o_proj.bias"),
        filled=(),
        keys=_qwen3,
    ),
)


def named(architecture: str | None) -> Iterator[Family]:
    """The families whose name begins with `architecture`, as in `qwen` or `Qwen2-MoE`; all where it is None."""
    wanted = (architecture or "").lower().replace("-", "").replace("_", "").replace(" ", "").removesuffix("moe")
    for family in FAMILIES:
        if family.name.startswith(wanted):
            yield family
