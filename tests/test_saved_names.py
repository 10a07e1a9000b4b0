"""Models of real architectures as transformers names, saves and loads them: under other names, with and without a part."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.renaming import rename

transformers = pytest.importorskip("transformers")

NAMED_ALIKE = (
    "BertForMaskedLM",
    "CLIPModel",
    "FuyuForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "Gemma3ForConditionalGeneration",
    "InternVLForConditionalGeneration",
    "LlamaForCausalLM",
    "LlavaForConditionalGeneration",
    "MllamaForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Qwen2AudioForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)


@pytest.mark.parametrize("name", NAMED_ALIKE)
def test_names_in_memory_on_the_disk_and_without_the_head_are_brought_together(name: str) -> None:
    """Each tensor finds itself under the other naming, whichever of the two decides the names."""
    from transformers.core_model_loading import revert_weight_conversion

    cls = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
    memory = dict(model.state_dict())
    base = f"{cls.base_model_prefix}."
    namings = [
        memory,
        revert_weight_conversion(model, dict(memory)),
        {key.removeprefix(base): tensor for key, tensor in memory.items() if key.startswith(base)},
    ]
    assert any(naming.keys() != memory.keys() for naming in namings)
    for theirs, ours in permutations([naming for naming in namings if naming], 2):
        known = {id(tensor): key for key, tensor in ours.items()}
        names = rename(*({key: tuple(tensor.shape) for key, tensor in naming.items()} for naming in (theirs, ours))).names
        for key, tensor in theirs.items():
            assert names[key] == known.get(id(tensor), names[key]), key
            assert (names[key] in ours) == (id(tensor) in known)


TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 40,
    "tie_word_embeddings": False,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SIGHT = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIGHT |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
SIZES: dict[str, dict[str, Any]] = {
    "Llama": TEXT,
    "Bert": {**TEXT, "max_position_embeddings": 16},
    "Llava": {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": SIGHT, "image_token_index": 5},
    "Qwen2": TEXT,
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}},
        "vision_config": {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
        | {"out_hidden_size": 16, "fullatt_block_indexes": [1]},
    },
    "Qwen3_5Text": {
        **TEXT,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "rope_parameters": {**ROPE, "mrope_section": [1, 0, 0], "partial_rotary_factor": 0.25},
    },
    "DeepseekV3": {
        **{key: value for key, value in TEXT.items() if key not in ("head_dim", "num_key_value_heads")},
        **{"num_key_value_heads": 2, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1},
        **{"first_k_dense_replace": 1, "moe_intermediate_size": 8, "q_lora_rank": 8, "kv_lora_rank": 8},
        **{"qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8},
    },
}


def saved(cls: str, kind: str, seed: int) -> str:
    """The folder of a small model as transformers saves it."""
    folder = f"{cls}-{seed}"
    if not Path(folder).exists():
        torch.manual_seed(seed)
        getattr(transformers, cls)(getattr(transformers, f"{kind}Config")(**SIZES[kind])).save_pretrained(folder)
    return folder


def run(text: str) -> Plan:
    from weft.engine.run import run as run_plan

    plan = make_plan(load_config(text), Options(Budget(256 << 20, 0, 1)))
    run_plan(plan, Path("out"))
    return plan


def loads_clean() -> None:
    """As the class that config.json names; what that class ignores by itself is nothing that transformers reports."""
    name = json.loads(Path("out/config.json").read_text())["architectures"][0]
    _, info = getattr(transformers, name).from_pretrained("out", output_loading_info=True)
    assert not {key: found for key, found in info.items() if found}


PAIRS = {
    "a text model in one of text and images": (
        ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VL"),
        ("Qwen2ForCausalLM", "Qwen2"),
    ),
    "the same with other prefixes": (("LlavaForConditionalGeneration", "Llava"), ("LlamaForCausalLM", "Llama")),
    "a headless model": (("LlamaForCausalLM", "Llama"), ("LlamaModel", "Llama")),
    "another head": (("BertForMaskedLM", "Bert"), ("BertForSequenceClassification", "Bert")),
    "no head, and a pooler": (("BertForMaskedLM", "Bert"), ("BertModel", "Bert")),
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_models_of_two_classes_make_one_of_the_first(
    pair: tuple[tuple[str, str], tuple[str, str]], turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, other = (saved(*of, seed) for seed, of in enumerate(reversed(pair) if turned else pair))
    run(f"merge_method: task_arithmetic\nbase_model: {base}\nmodels: [{{model: {other}, parameters: {{weight: 0.5}}}}]")
    loads_clean()
    made, kept = load_file("out/model.safetensors"), load_file(f"{base}/model.safetensors")
    assert made.keys() == kept.keys()
    same = {name for name in made if torch.equal(made[name], kept[name])}
    layers = [name for name in made if ("layers.0." in name or "layer.0." in name) and "vis" not in name and ".weight" in name]
    assert layers and not any(name in same for name in layers if "orm" not in name)


@pytest.mark.parametrize("cls", ["Qwen3_5ForCausalLM", "DeepseekV3ForCausalLM"])
@pytest.mark.parametrize("first", [True, False])
def test_a_release_with_heads_for_multi_token_prediction(
    cls: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored under a name of their own, or as a layer behind the last."""
    monkeypatch.chdir(tmp_path)
    kind = {"Qwen3_5ForCausalLM": "Qwen3_5Text", "DeepseekV3ForCausalLM": "DeepseekV3"}[cls]
    tuned, release = saved(cls, kind, 0), saved(cls, kind, 1)
    head = "model.layers.2" if kind == "DeepseekV3" else "mtp"
    more = {f"{head}.fc.weight": torch.ones(16, 32), f"{head}.norm.weight": torch.ones(16)}
    save_file(load_file(f"{release}/model.safetensors") | more, f"{release}/model.safetensors")
    models = (release, tuned) if first else (tuned, release)
    plan = run("merge_method: linear\nparameters: {weight: 0.5}\nmodels:\n" + "".join(f"- model: {m}\n" for m in models))
    assert plan.kept == 2 and more.keys() <= load_file("out/model.safetensors").keys()
    if head == "mtp":
        loads_clean()
    slices = "".join(f"- sources: [{{model: {release}, layer_range: [{n}, 2]}}]\n" for n in (0, 1))
    plan = make_plan(load_config(f"merge_method: passthrough\nslices:\n{slices}"), Options(Budget(256 << 20, 0, 1)))
    names = {recipe.name for recipe in plan.recipes}
    config = getattr(transformers, f"{kind}Config").from_dict(dict(plan.model_config))
    with torch.device("meta"):
        wanted = getattr(transformers, cls)(config).state_dict()
    assert {name for name in wanted if ".experts." not in name} == {n for n in names - more.keys() if ".experts." not in n}
    assert (names & more.keys() == more.keys()) == (head == "mtp")
