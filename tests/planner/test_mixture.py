"""Mixtures as plans: names, config.json, which family, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from checkpoints import write_model
from weft.errors import BudgetError, CheckpointError, ConfigError
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.router import ROUTER

HIDDEN, INNER, ROWS = 8, 12, 20
SETTINGS: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
}


def dense(
    folder: Path, *, without: tuple[str, ...] = (), more: Mapping[str, tuple[int, ...]] | None = None, **changes: Any
) -> str:
    """A dense model whose tensors have the shapes that its config.json says; its path."""
    config = {**SETTINGS, **changes}
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    groups = config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config["num_hidden_layers"]):
        head = f"model.layers.{layer}"
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (heads * width, hidden),
            "self_attn.k_proj": (groups * width, hidden),
            "self_attn.v_proj": (groups * width, hidden),
            "self_attn.o_proj": (hidden, heads * width),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            shapes[f"{head}.{name}.weight"] = shape
        if config["model_type"] == "qwen3":
            shapes |= {f"{head}.self_attn.{x}_norm.weight": (width,) for x in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    shapes |= more or {}
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items() if name not in without}
    write_model(folder, tensors, config, tokenizer="{}", tokenizer_config="{}")
    return str(folder)


def config_of(base: str, experts: list[str], **more: Any) -> dict[str, Any]:
    items = [{"source_model": e, "positive_prompts": [f"prompt {i}"]} for i, e in enumerate(experts)]
    return {"base_model": base, "experts": items, "gate_mode": "cheap_embed", **more}


def planned(config: Mapping[str, Any], ram: int = 1 << 30) -> Plan:
    return make_plan(load_config(yaml.safe_dump(dict(config)), "mix.yaml"), Options(Budget(ram, 0, 2)))


@pytest.fixture
def llamas(tmp_path: Path) -> list[str]:
    return [dense(tmp_path / name) for name in ("base", "one", "two")]


def test_names_on_disk_are_mixtrals_own(llamas: list[str]) -> None:
    plan = planned(config_of(llamas[0], llamas[1:]))
    head = "model.layers.{}"
    wanted = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    for layer in range(2):
        at = head.format(layer)
        wanted |= {f"{at}.input_layernorm.weight", f"{at}.post_attention_layernorm.weight"}
        wanted |= {f"{at}.self_attn.{x}_proj.weight" for x in "qkvo"} | {f"{at}.block_sparse_moe.gate.weight"}
        wanted |= {f"{at}.block_sparse_moe.experts.{e}.w{n}.weight" for e in range(2) for n in (1, 2, 3)}
    assert {recipe.name for recipe in plan.recipes} == wanted
    names = {recipe.name: recipe for recipe in plan.recipes}
    for n, own in ((1, "gate"), (2, "down"), (3, "up")):
        recipe = names[f"model.layers.1.block_sparse_moe.experts.1.w{n}.weight"]
        (leaf,) = recipe.leaves()
        assert (leaf.name, leaf.file.model, recipe.method) == (f"model.layers.1.mlp.{own}_proj.weight", llamas[2], None)


def test_what_does_not_change_is_copied(llamas: list[str]) -> None:
    plan = planned(config_of(llamas[0], llamas[1:]))
    for recipe, kernel in zip(plan.recipes, plan.kernels, strict=True):
        (leaf,) = recipe.leaves()
        assert kernel.copies and (leaf.dtype == recipe.dtype) == (leaf.file.model != ROUTER), recipe.name
    assert {recipe.dtype for recipe in planned(config_of(llamas[0], llamas[1:], dtype="float32")).recipes} == {"F32"}


def test_qwen2_and_deepseek_names(llamas: list[str], tmp_path: Path) -> None:
    shared = {"source_model": llamas[0], "positive_prompts": ["all"]}
    names = {recipe.name: recipe.shape for recipe in planned(config_of(llamas[0], llamas[1:], shared_experts=[shared])).recipes}
    at = "model.layers.1.mlp"
    assert names[f"{at}.gate.weight"] == (2, HIDDEN) and names[f"{at}.shared_expert_gate.weight"] == (1, HIDDEN)
    assert names[f"{at}.experts.1.down_proj.weight"] == names[f"{at}.shared_expert.down_proj.weight"] == (HIDDEN, INNER)
    assert names["model.layers.0.self_attn.k_proj.bias"] == (HIDDEN // 2,)
    own = config_of(llamas[0], llamas[1:], architecture="DeepSeek-MoE", shared_experts=[{"source_model": llamas[0]}])
    deepseek = {recipe.name for recipe in planned(own).recipes}
    assert f"{at}.shared_experts.up_proj.weight" in deepseek and f"{at}.gate.weight" in deepseek
    assert not any("shared_expert_gate" in name or name.endswith("bias") for name in deepseek)


ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


@pytest.mark.parametrize(
    "given",
    [
        {"rope_theta": 123.0, "rope_scaling": ROPE},
        {"rope_theta": None, "rope_parameters": {**ROPE, "rope_theta": 123.0}},
        {"rope_theta": 123.0, "rope_scaling": {**{k: v for k, v in ROPE.items() if k != "rope_type"}, "type": "llama3"}},
    ],
)
def test_config_json_is_complete(given: dict[str, Any], tmp_path: Path) -> None:
    base = dense(tmp_path / "base", tie_word_embeddings=True, head_dim=6, **given)
    got = planned(config_of(base, [base, base])).model_config
    assert (got["rope_theta"], got["rope_scaling"]) == (123.0, ROPE) and "rope_parameters" not in got
    assert (got["model_type"], got["architectures"]) == ("mixtral", ["MixtralForCausalLM"])
    assert (got["num_local_experts"], got["num_experts_per_tok"], got["head_dim"]) == (2, 2, 6)
    assert got["tie_word_embeddings"] is True and got["sliding_window"] is None and got["torch_dtype"] == "bfloat16"


def test_a_theta_that_is_not_said_is_the_dense_familys(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", rope_theta=None)
    got = planned(config_of(base, [base, base])).model_config
    assert (got["rope_theta"], got["rope_scaling"]) == (10000.0, None)


def test_windows_are_carried_over(tmp_path: Path) -> None:
    mistral = dense(tmp_path / "mistral", model_type="mistral", sliding_window=32)
    assert planned(config_of(mistral, [mistral] * 2)).model_config["sliding_window"] == 32
    shared = [{"source_model": mistral, "positive_prompts": ["all"]}]
    got = planned(config_of(mistral, [mistral] * 2, shared_experts=shared)).model_config
    assert (got["sliding_window"], got["use_sliding_window"], got["max_window_layers"]) == (32, True, 0)
    assert got["layer_types"] == ["sliding_attention"] * 2
    biases = {f"model.layers.{i}.self_attn.{x}_proj.bias": (n,) for i in range(2) for x, n in (("q", 8), ("k", 4), ("v", 4))}
    qwen = dense(
        tmp_path / "qwen", model_type="qwen2", more=biases, sliding_window=32, use_sliding_window=True, max_window_layers=1
    )
    shared = [{"source_model": qwen, "positive_prompts": ["all"]}]
    got = planned(config_of(qwen, [qwen] * 2, shared_experts=shared)).model_config
    assert got["layer_types"] == ["full_attention", "sliding_attention"] and got["max_window_layers"] == 1
    assert (got["num_experts"], got["moe_intermediate_size"], got["shared_expert_intermediate_size"]) == (2, INNER, INNER)
    assert (got["decoder_sparse_step"], got["norm_topk_prob"], got["model_type"]) == (1, True, "qwen2_moe")
    qwen3 = dense(tmp_path / "qwen3", model_type="qwen3", head_dim=4)
    got = planned(config_of(qwen3, [qwen3] * 2)).model_config
    assert (got["num_experts"], got["moe_intermediate_size"], got["head_dim"], got["model_type"]) == (2, INNER, 4, "qwen3_moe")


Case = tuple[dict[str, Any], dict[str, Any], str]
CANNOT: dict[str, Case] = {
    "biases of attention": ({"more": {"model.layers.0.self_attn.q_proj.bias": (8,)}}, {}, "Mixtral has no place for its"),
    "biases of the feed-forward part": ({"more": {"model.layers.1.mlp.up_proj.bias": (12,)}}, {}, "no place for its"),
    "a foreign tensor": ({"more": {"model.visual.weight": (8, 8)}}, {}, "no place for its 'model.visual.weight'"),
    "no head": ({"without": ("lm_head.weight",)}, {}, "missing weights: it has no 'lm_head.weight'"),
    "no norm": ({"without": ("model.layers.1.input_layernorm.weight",)}, {}, "missing weights: it has no 'model.layers.1.in"),
    "a wide head": ({"head_dim": 6}, {"architecture": "deepseek"}, "attention heads are 6 wide (head_dim), and DeepSeek-MoE has"),
    "scaled positions": ({"rope_scaling": ROPE}, {"architecture": "deepseek"}, "its rope_scaling is llama3, which DeepSeek-MoE"),
    "a window": (
        {"model_type": "mistral", "sliding_window": 32},
        {"architecture": "deepseek"},
        "sliding_window of 32 tokens cannot be carried over to DeepSeek-MoE",
    ),
    "some windows": (
        {"model_type": "qwen3", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1},
        {},
        "some of its layers see a window only",
    ),
    "positions by kind of layer": ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, {}, "each kind of layer"),
}  # fmt: skip


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_be_carried_over_is_an_error(name: str, tmp_path: Path) -> None:
    changes, more, says = CANNOT[name]
    base = dense(tmp_path / "base", **changes)
    with pytest.raises(CheckpointError) as error:
        planned(config_of(base, [base, base], **more))
    assert str(error.value).startswith("mix.yaml, line ") and says in str(error.value), error.value


def test_old_buffers_are_left_out(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", more={"model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})
    assert not any("inv_freq" in recipe.name for recipe in planned(config_of(base, [base, base])).recipes)


def test_experts_that_cannot_be_combined(llamas: list[str], tmp_path: Path) -> None:
    wide = dense(tmp_path / "wide", hidden_size=16, num_attention_heads=4, num_key_value_heads=2, model_type="mistral")
    with pytest.raises(CheckpointError) as error:
        planned(config_of(llamas[0], [llamas[1], wide, llamas[2]]))
    text = str(error.value)
    assert "experts[1].source_model" in text
    for part in ("model_type mistral instead of llama", "hidden_size 16 instead of 8", "num_attention_heads 4 instead of 2"):
        assert part in text
    assert "intermediate_size" not in text
    assert f"{llamas[0]}, {llamas[1]} and {llamas[2]} fit each other" in text
    deep = dense(tmp_path / "deep", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="num_hidden_layers 3 instead of 2; no two of these fit each other"):
        planned(config_of(llamas[0], [deep], experts_per_token=1))
    lying = dense(tmp_path / "lying", more={"model.layers.0.mlp.up_proj.weight": (13, HIDDEN)})
    with pytest.raises(CheckpointError, match=r"has shape \[13, 8\], and \[12, 8\] in"):
        planned(config_of(llamas[0], [llamas[1], lying]))
    poor = dense(tmp_path / "poor", without=("model.layers.0.mlp.up_proj.weight",))
    with pytest.raises(CheckpointError, match=r"missing weights: it has no 'model.layers.0.mlp.up_proj.weight'"):
        planned(config_of(llamas[0], [llamas[1], poor]))


def test_a_model_that_is_none(tmp_path: Path, llamas: list[str]) -> None:
    broken = dense(tmp_path / "broken")
    settings = json.loads((tmp_path / "broken" / "config.json").read_text())
    del settings["hidden_size"]
    (tmp_path / "broken" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"base_model: .*config.json: has no 'hidden_size'"):
        planned(config_of(broken, llamas[1:]))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_dim", "8"),
        ("num_key_value_heads", 0),
        ("sliding_window", [4]),
        ("max_window_layers", -1),
        ("num_hidden_layers", True),
    ],
)
def test_settings_that_are_no_sizes(key: str, value: object, llamas: list[str], tmp_path: Path) -> None:
    path = tmp_path / "one" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=rf"experts\[0\].source_model: .*'{key}' is .*, not a size"):
        planned(config_of(llamas[0], llamas[1:]))


def test_no_family_fits(llamas: list[str], tmp_path: Path) -> None:
    shared = [{"source_model": llamas[0], "positive_prompts": ["a"]}, {"source_model": llamas[1], "positive_prompts": ["b"]}]
    with pytest.raises(ConfigError) as error:
        planned(config_of(llamas[0], llamas[1:], shared_experts=shared))
    for part in (
        "no family of mixtures fits: Mixtral has no shared experts",
        "DeepSeek-MoE has at most one shared expert, and 2 are given",
        "Qwen2-MoE has exactly one shared expert, and 2 are given",
        f"Qwen3-MoE is made of qwen3 models, and {llamas[0]} is llama",
    ):
        assert part in str(error.value)
    gemma = [dense(tmp_path / f"gemma-{i}", model_type="gemma2") for i in range(2)]
    with pytest.raises(ConfigError, match=r"Mixtral is made of llama or mistral models, and .*gemma-0 is gemma2; DeepSeek"):
        planned(config_of(gemma[0], gemma))
    with pytest.raises(
        ConfigError, match="architecture: no family of mixtures fits: Qwen2-MoE has exactly one shared expert, and 0"
    ):
        planned(config_of(llamas[0], llamas[1:], architecture="qwen2"))
    with pytest.raises(ConfigError, match="there is no architecture 'gpt'; known: mixtral, deepseek, qwen2, qwen3"):
        planned(config_of(llamas[0], llamas[1:], architecture="gpt"))
    prompted = [{"source_model": llamas[0], "positive_prompts": ["a"]}]
    with pytest.raises(ConfigError, match="DeepSeek-MoE has no gate for its shared expert, which takes no positive_prompts"):
        planned(config_of(llamas[0], llamas[1:], architecture="deepseek", shared_experts=prompted))
    with pytest.raises(ConfigError, match="has a gate for its shared expert, which needs positive_prompts"):
        planned(config_of(llamas[0], llamas[1:], architecture="qwen", shared_experts=[{"source_model": llamas[0]}]))


@pytest.mark.parametrize("count", [0, -1, 3])
def test_experts_for_each_token(count: int, llamas: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"experts_per_token: {count} experts for each token, and there are 2 .* from 1 to 2"):
        planned(config_of(llamas[0], llamas[1:], experts_per_token=count))
    with pytest.raises(ConfigError, match="there is 1 "):
        planned(config_of(llamas[0], llamas[1:2]))


def test_prompts_that_make_no_router(llamas: list[str]) -> None:
    config = config_of(llamas[0], llamas[1:])
    config["experts"][1]["positive_prompts"] = []
    with pytest.raises(ConfigError, match=r"experts\[1\]: .* has no positive_prompts"):
        planned(config)
    assert planned({**config, "gate_mode": "random"}).routers
    config["experts"][1]["positive_prompts"] = ["prompt 0"]
    with pytest.raises(ConfigError, match="all experts have the same prompts"):
        planned(config)
    config["experts"][1]["negative_prompts"] = ["something else"]
    assert planned(config).routers


def test_one_model_many_times_is_noted(llamas: list[str]) -> None:
    assert any("all 2 experts are the same model" in note for note in planned(config_of(llamas[0], [llamas[1]] * 2)).notes)
    assert not any("same model" in note for note in planned(config_of(llamas[0], llamas[1:])).notes)


def test_other_vocabularies_are_noted(llamas: list[str], tmp_path: Path) -> None:
    chat = dense(tmp_path / "chat", vocab_size=ROWS + 4)
    assert any(f"other vocabularies: {chat} (24)" in note for note in planned(config_of(llamas[0], [llamas[1], chat])).notes)


def test_other_rotary_settings_are_noted(llamas: list[str], tmp_path: Path) -> None:
    chat = dense(tmp_path / "chat", rope_theta=10000.0)
    assert any(f"other rotary settings: {chat}" in note for note in planned(config_of(llamas[0], [llamas[1], chat, chat])).notes)
    assert not any("rotary" in note for note in planned(config_of(llamas[0], llamas[1:])).notes)


def test_prompts_need_a_tokenizer(llamas: list[str], tmp_path: Path) -> None:
    for path in (tmp_path / "base").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"base_model: .*has no tokenizer, which prompts need"):
        planned(config_of(llamas[0], llamas[1:]))
    assert planned(config_of(llamas[0], llamas[1:], gate_mode="random")).routers


def test_the_digest_knows_all_that_the_router_depends_on(llamas: list[str], tmp_path: Path) -> None:
    def digest(**more: Any) -> str:
        config = config_of(llamas[0], llamas[1:])
        config["experts"][0]["positive_prompts"] = [more.pop("prompt", "prompt 0")]
        return planned({**config, **more}).digest

    first = digest()
    assert digest() == first
    variants = [digest(prompt="other"), digest(gate_mode="hidden"), digest(gate_mode="hidden_avg"), digest(experts_per_token=1)]
    (tmp_path / "base" / "tokenizer.json").write_text('{"other": 1}')
    variants.append(digest())
    assert len({first, *variants}) == 6
    random = digest(gate_mode="random")
    assert digest(gate_mode="random", prompt="other") == random != digest(gate_mode="uniform_random")


def test_the_plan_knows_the_routers_memory(tmp_path: Path) -> None:
    base = dense(tmp_path / "base", hidden_size=256, intermediate_size=4096, vocab_size=64)
    layer = 4 * (3 * 256 * 4096 + 2 * 256 + 256 * 256 * 2 + 2 * 128 * 256)
    config = config_of(base, [base, base], gate_mode="hidden")
    plan = planned(config)
    needed = plan.predicted_ram
    assert layer + (64 << 20) < needed < layer + (140 << 20)
    assert planned(config, ram=needed - (8 << 20)).predicted_ram < needed, "fewer batches at once"
    with pytest.raises(BudgetError, match=r"is too little to run .* layer by layer for the router") as error:
        planned(config, ram=72 << 20)
    assert planned(config, ram=error.value.needed).predicted_ram <= error.value.needed
    assert planned({**config, "gate_mode": "random"}, ram=72 << 20).predicted_ram < needed
    assert plan.bytes_read()[base] > planned({**config, "gate_mode": "random"}).bytes_read()[base]


def test_vectors_that_a_device_computes_are_others_than_the_cpus(llamas: list[str]) -> None:
    def names(gate_mode: str, *device: str) -> set[str]:
        config = load_config(yaml.safe_dump(config_of(llamas[0], llamas[1:], gate_mode=gate_mode)))
        plan = make_plan(config, Options(Budget(4 << 30, 4 << 30, 2, *device)))
        return {router.file.name for router in plan.routers}

    assert names("hidden") == names("hidden", "cpu")
    assert not names("hidden") & names("hidden", "cuda:0", "cuda on Some GPU")
    assert not names("hidden", "cuda:0", "cuda on Another GPU") & names("hidden", "cuda:0", "cuda on Some GPU")
    assert names("cheap_embed") == names("cheap_embed", "cuda:0", "cuda on Some GPU")  # the CPU adds these up in any case
