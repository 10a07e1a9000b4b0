"""LoRA adapters as PEFT saves them, against what PEFT itself makes of them, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from cli.models import edit_json, tensors, write_model
from weft.errors import CheckpointError
from weft.planner.adapter import Adapter, open_adapter
from weft.planner.catalog import Checkpoint, InputTensor, open_checkpoint
from weft.planner.store import Folder

Tensors = dict[str, torch.Tensor]
WEIGHTS = "adapter_model.safetensors"


def opened(adapter: Path, base: Path) -> tuple[Adapter, Checkpoint]:
    checkpoint = open_checkpoint(Folder(base, "base"))
    return open_adapter(Folder(adapter, "adapter"), checkpoint), checkpoint


def applied(adapter: Path, base: Path) -> Tensors:
    """The base model's tensors with the adapter applied, from what `open_adapter` says, by torch."""
    found, checkpoint = opened(adapter, base)
    own = load_file(base / "model.safetensors")
    theirs = load_file(adapter / WEIGHTS)
    for name, patch in found.patches.items():
        product = theirs[patch.b.name].double() @ theirs[patch.a.name].double()
        own[name] = (own[name].double() + patch.scale * (product.t() if patch.transposed else product)).float()
    for name, tensor in found.replaced.items():
        assert name in checkpoint.tensors
        own[name] = theirs[tensor.name].float()
    return own


SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 48}
DECODER: dict[str, Any] = SIZES | {"hidden_size": 16, "intermediate_size": 24, "num_key_value_heads": 1}


def make_llama(transformers: Any, **more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, tie_word_embeddings=False, **more))


def make_tied(transformers: Any) -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER, tie_word_embeddings=True))


def make_gpt2(transformers: Any) -> Any:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=48, n_positions=32)
    return transformers.GPT2LMHeadModel(config)


class Trained:
    """A base model and an adapter on the disk, and the weights of PEFT's merging, as transformers saves them."""

    def __init__(self, root: Path, make: Callable[[Any], Any], **config: Any) -> None:
        peft = pytest.importorskip("peft")
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        self.base, self.adapter, merged = root / "base", root / "adapter", root / "merged"
        model = make(transformers)
        model.save_pretrained(self.base)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn_like(parameter))
        wrapped.save_pretrained(self.adapter)
        # Loaded again, as everyone who has the two folders would.
        fresh = type(model).from_pretrained(self.base)
        peft.PeftModel.from_pretrained(fresh, self.adapter).merge_and_unload().save_pretrained(merged)
        self.merged = load_file(merged / "model.safetensors")

    def check(self) -> None:
        result = applied(self.adapter, self.base)
        assert result.keys() == self.merged.keys()
        changed = 0
        before = load_file(self.base / "model.safetensors")
        for name, tensor in self.merged.items():
            difference = (result[name] - tensor).abs().max().item()
            assert difference <= 1e-6 * tensor.abs().max().item(), (name, difference)
            changed += not torch.equal(tensor, before[name])
        found = opened(self.adapter, self.base)[0]
        assert changed == len(found.patches) + len(found.replaced) > 0


LINEAR = ["q_proj", "v_proj", "down_proj"]

CASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "plain": (make_llama, {"r": 4, "lora_alpha": 10, "target_modules": LINEAR}),
    "all linear layers": (make_llama, {"r": 3, "target_modules": "all-linear"}),
    "rank-stabilised": (make_llama, {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": LINEAR}),
    "rank pattern": (
        make_llama,
        {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp.*": 6, "q_proj": 5}},
    ),
    "alpha pattern": (
        make_llama,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEAR,
            "alpha_pattern": {
                "model.layers.0.self_attn.q_proj": 3,
                "proj": 5,
                "^model.layers.1.self_attn.v_proj": 7,
                "o_v_proj": 9,
            },
        },
    ),
    "patterns and rank-stabilised": (
        make_llama,
        {
            "r": 4,
            "use_rslora": True,
            "target_modules": LINEAR,
            "rank_pattern": {"0.self_attn.q_proj": 7, "q_proj": 2},
            "alpha_pattern": {"1.self_attn.q_proj": 3},
        },
    ),
    "some layers": (make_llama, {"r": 4, "target_modules": LINEAR, "layers_to_transform": [1]}),
    "embedding": (make_llama, {"r": 4, "lora_alpha": 6, "target_modules": [*LINEAR, "embed_tokens"]}),
    "output projection": (make_llama, {"r": 4, "target_modules": ["lm_head", "q_proj"]}),
    "saved modules": (
        make_llama,
        {"r": 4, "target_modules": LINEAR, "modules_to_save": ["lm_head", "embed_tokens", "input_layernorm"]},
    ),
    "biases": (lambda t: make_llama(t, attention_bias=True), {"r": 4, "target_modules": LINEAR, "bias": "all"}),
    "gpt-2": (make_gpt2, {"r": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "gpt-2, flag forgotten": (make_gpt2, {"r": 4, "target_modules": ["c_proj"]}),
    "gpt-2 embedding": (make_gpt2, {"r": 4, "fan_in_fan_out": True, "target_modules": ["c_proj", "wpe"]}),
    "flag where it does not belong": (make_llama, {"r": 4, "fan_in_fan_out": True, "target_modules": ["o_proj", "q_proj"]}),
    "tied": (make_tied, {"r": 4, "target_modules": LINEAR}),
    "tied embedding": (make_tied, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
    "tied output projection": (make_tied, {"r": 4, "target_modules": ["lm_head", "q_proj"]}),
    "tied and kept so": (
        make_tied,
        {"r": 4, "target_modules": LINEAR, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    Trained(tmp_path, make, task_type="CAUSAL_LM", **config).check()


@pytest.mark.filterwarnings("ignore")
def test_tied_embeddings_are_noted_and_untying_is_refused(tmp_path: Path) -> None:
    trained = Trained(tmp_path / "a", make_tied, r=2, target_modules=["lm_head"])
    found, _ = opened(trained.adapter, trained.base)
    assert list(found.patches) == ["model.embed_tokens.weight"]
    assert "input and output embedding both change" in found.notes[0]
    for number, modules in enumerate((["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"])):
        trained = Trained(tmp_path / str(number), make_tied, r=2, target_modules=["q_proj"], modules_to_save=modules)
        assert "replaces one of base's tied embeddings" in refusal(trained.adapter, trained.base)
    both = Trained(tmp_path / "both", make_tied, r=2, target_modules=["lm_head", "embed_tokens"])
    assert "both change 'model.embed_tokens.weight'" in refusal(both.adapter, both.base)


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_saved_along_are_used_once(tmp_path: Path) -> None:
    """`save_embedding_layers` writes a tied embedding under both its names."""
    trained = Trained(tmp_path, make_tied, r=2, target_modules=["q_proj"])
    file = trained.adapter / WEIGHTS
    content = load_file(file)
    embedding = torch.randn(48, 16)
    for name in ("model.embed_tokens", "lm_head"):
        content[f"base_model.model.{name}.weight"] = embedding.clone()
    save_file(content, file)
    assert torch.equal(applied(trained.adapter, trained.base)["model.embed_tokens.weight"], embedding)


# What peft is not needed for: adapters written by hand.


def pair(
    module: str, shape: tuple[int, int] = (8, 8), rank: int = 2, prefix: str = "base_model.model.", middle: str = ""
) -> Tensors:
    out, inner = shape
    return {
        f"{prefix}{module}.lora_A{middle}.weight": torch.ones(rank, inner),
        f"{prefix}{module}.lora_B{middle}.weight": torch.ones(out, rank),
    }


Q = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"


def write_adapter(folder: Path, content: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(content, folder / WEIGHTS)
    return folder


def refusal(adapter: Path, base: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(adapter, base)
    assert str(caught.value).startswith("adapter")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_an_adapter_says(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    content = pair(Q) | pair(UP, (16, 8)) | {"base_model.model.model.norm.weight": torch.zeros(8)}
    adapter = write_adapter(tmp_path / "adapter", content, base_model_name_or_path="x")
    found, _ = opened(adapter, base)
    assert [file.name for file in found.files] == [WEIGHTS]
    assert list(found.patches) == [f"{Q}.weight", f"{UP}.weight"]
    patch = found.patches[f"{UP}.weight"]
    assert (patch.scale, patch.transposed, patch.a.shape, patch.b.shape) == (2.0, False, (2, 8), (16, 2))
    assert patch.a.file is found.files[0]
    raw = (adapter / WEIGHTS).read_bytes()
    assert raw[patch.a.offset : patch.a.offset + patch.a.nbytes] == torch.ones(2, 8).numpy().tobytes()
    assert list(found.replaced) == ["model.norm.weight"]
    assert found.notes == ()


def test_a_pickled_adapter(tmp_path: Path) -> None:
    base, content = write_model(tmp_path / "base"), pair(Q)
    adapter = write_adapter(tmp_path / "adapter", content)
    (adapter / WEIGHTS).unlink()
    torch.save(content, adapter / "adapter_model.bin")
    found, _ = opened(adapter, base)
    assert found.files[0].name == "adapter_model.bin"
    assert found.patches[f"{Q}.weight"].b.shape == (8, 2)


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("middle", ["", ".default", ".my-adapter"])
def test_how_factors_are_named(prefix: str, middle: str, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pair(Q, prefix=prefix, middle=middle))
    found, _ = opened(adapter, write_model(tmp_path / "base"))
    assert list(found.patches) == [f"{Q}.weight"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("layers.0.q_proj", "model.layers.0.q_proj"),
        ("model.layers.0.q_proj", "layers.0.q_proj"),
        ("model.layers.0.q_proj", "language_model.model.layers.0.q_proj"),
        ("model.language_model.layers.0.q_proj", "language_model.model.layers.0.q_proj"),
        ("lm_head", "language_model.lm_head"),
        ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
    ],
)
def test_modules_are_found_behind_other_prefixes(module: str, name: str, tmp_path: Path) -> None:
    other = "vision_tower.layers.0.q_proj.weight"
    base = write_model(tmp_path / "base", {f"{name}.weight": torch.ones(8, 8), other: torch.ones(8, 8)})
    found, _ = opened(write_adapter(tmp_path / "adapter", pair(module)), base)
    assert list(found.patches) == [f"{name}.weight"]


def test_names_that_could_be_either_are_refused(tmp_path: Path) -> None:
    both = {"model.a.weight": torch.ones(8, 8), "transformer.a.weight": torch.ones(8, 8)}
    base = write_model(tmp_path / "base", both)
    message = refusal(write_adapter(tmp_path / "adapter", pair("a")), base)
    assert "'a.weight' could be 'model.a.weight' or 'transformer.a.weight'" in message


def test_a_tied_model_that_has_both_tensors_changes_in_both(tmp_path: Path) -> None:
    content = tensors(layers=1)
    base = write_model(tmp_path / "base", content, config={"tie_word_embeddings": True})
    found, _ = opened(write_adapter(tmp_path / "adapter", pair("lm_head", (16, 8))), base)
    assert set(found.patches) == {"model.embed_tokens.weight", "lm_head.weight"}
    edit_json(base / "config.json", tie_word_embeddings=False)
    found, _ = opened(tmp_path / "adapter", base)
    assert list(found.patches) == ["lm_head.weight"]


def test_an_output_projection_is_not_looked_for_where_it_is_not_tied(tmp_path: Path) -> None:
    content = tensors(layers=1)
    del content["lm_head.weight"]
    base = write_model(tmp_path / "base", content)
    message = refusal(write_adapter(tmp_path / "adapter", pair("lm_head", (16, 8)) | pair(Q)), base)
    assert "1 of the adapter's tensors match nothing in base, such as 'base_model.model.lm_head.lora_A.weight'" in message


@pytest.mark.parametrize(
    ("shape", "bias", "flag", "transposed"),
    [
        ((8, 24), 24, False, True),
        ((24, 8), 24, True, False),
        ((8, 24), None, True, False),
        (None, None, True, True),
        (None, None, False, False),
    ],
)
def test_a_square_weight_is_stored_as_its_neighbours_are(
    shape: tuple[int, int] | None, bias: int | None, flag: bool, transposed: bool, tmp_path: Path
) -> None:
    content = {"h.0.c.weight": torch.ones(8, 8)}
    if shape is None or bias is not None:
        content["h.0.c.bias"] = torch.ones(8)
    if shape is not None:
        content["h.0.d.weight"] = torch.ones(shape)
    if bias is not None:
        content["h.0.d.bias"] = torch.ones(bias)
    base = write_model(tmp_path / "base", content)
    found, _ = opened(write_adapter(tmp_path / "adapter", pair("h.0.c"), fan_in_fan_out=flag), base)
    assert found.patches["h.0.c.weight"].transposed is transposed


def test_a_copy_of_the_embedding_is_not_used_but_noted(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    embedding = "base_model.model.model.embed_tokens"
    content = {
        f"{embedding}.lora_embedding_A": torch.ones(2, 16),
        f"{embedding}.lora_embedding_B": torch.ones(8, 2),
        f"{embedding}.base_layer.weight": torch.ones(16, 8),
    }
    found, _ = opened(write_adapter(tmp_path / "adapter", content), base)
    assert found.patches["model.embed_tokens.weight"].transposed
    assert not found.replaced
    assert "copy of 'model.embed_tokens.weight'" in found.notes[0]
    content[f"{embedding}.base_layer.weight"] = torch.ones(18, 8)
    message = refusal(write_adapter(tmp_path / "other", content), base)
    assert "must be resized first" in message


def without(content: Tensors, end: str) -> Tensors:
    return {name: tensor for name, tensor in content.items() if not name.endswith(end)}


REFUSED: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "another type": (pair(Q), {"peft_type": "IA3"}, "an adapter of type IA3; weft applies LoRA adapters only"),
    "LoHa": ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, {"peft_type": "LOHA"}, "an adapter of type LOHA"),
    "no type": (pair(Q), {"peft_type": None}, "adapter_config.json: not the config of an adapter: it has no peft_type"),
    "DoRA": (pair(Q), {"use_dora": True}, "DoRA, which also scales columns; weft applies plain LoRA only"),
    "DoRA in the file": (pair(Q) | {f"{Q}.lora_magnitude_vector": torch.ones(8)}, {}, "DoRA"),
    "biases": (pair(Q), {"lora_bias": True}, r"\(lora_bias\)"),
    "biases in the file": (pair(Q) | {f"{Q}.lora_B.bias": torch.ones(8)}, {}, f"'{Q}.lora_B.bias' is not part of plain LoRA"),
    "experts": (pair(Q), {"target_parameters": ["experts.gate_up_proj"]}, "the experts of a mixture"),
    "experts in the file": (pair("model.layers.0.mlp.experts.base_layer"), {}, "target_parameters"),
    "Megatron": (pair(Q), {"megatron_config": {"x": 1}}, "Megatron"),
    "token indices": (pair(Q), {"trainable_token_indices": [1]}, "single tokens' embeddings"),
    "PiSSA": (pair(Q), {"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
    "no B": (without(pair(Q), "lora_B.weight"), {}, f"'base_model.model.{Q}.lora_A.weight' has no lora_B beside it"),
    "no A": (without(pair(Q), "lora_A.weight"), {}, f"'base_model.model.{Q}.lora_B.weight' has no lora_A beside it"),
    "two of one": (pair(Q) | pair(Q, middle=".other"), {}, f"one factor too many for '{Q}'"),
    "convolution": (
        {f"{Q}.lora_A.weight": torch.ones(2, 8, 1, 1), f"{Q}.lora_B.weight": torch.ones(8, 2, 1, 1)},
        {},
        r"not to convolutions",
    ),
    "a vector": (pair("model.norm"), {}, r"for a weight \[8\]"),
    "does not fit": (pair(Q, (8, 9)), {}, rf"A \[2, 9\] and B \[8, 2\], which do not fit base's '{Q}.weight' \[8, 8\]"),
    "embedding does not fit": (
        {"model.embed_tokens.lora_embedding_A": torch.ones(2, 8), "model.embed_tokens.lora_embedding_B": torch.ones(16, 2)},
        {},
        "do not fit base's 'model.embed_tokens.weight'",
    ),
    "ranks differ": ({f"{Q}.lora_A.weight": torch.ones(2, 8), f"{Q}.lora_B.weight": torch.ones(8, 3)}, {}, "do not fit"),
    "another rank": (pair(Q), {"r": 4}, f"'{Q}' has rank 2, but adapter_config.json says 4"),
    "another rank by pattern": (pair(Q), {"rank_pattern": {"q_proj": 8}}, "has rank 2, but adapter_config.json says 8"),
    "no number": (pair(Q), {"lora_alpha": "16"}, "lora_alpha is '16', not a number"),
    "no number by pattern": (pair(Q), {"alpha_pattern": {"q_proj": None}}, "alpha_pattern for 'q_proj' is None, not a number"),
    "no map": (pair(Q), {"rank_pattern": ["q_proj"]}, "rank_pattern is not a map"),
    "no expression": (pair(Q), {"rank_pattern": {"(": 2}}, r"'\(' is not a regular expression"),
    "integers": ({name: tensor.int() for name, tensor in pair(Q).items()}, {}, "has dtype I32"),
    "nothing in it": ({}, {}, "there are no tensors of an adapter in it"),
    "nothing matches": (
        pair("model.layers.9.self_attn.q_proj"),
        {"base_model_name_or_path": "org/other"},
        r"no tensor of this adapter matches base \('.*layers\.9.*', for example\): it was trained on org/other",
    ),
    "something does not match": (pair(Q) | pair("score"), {}, r"1 of the adapter's tensors match nothing in base, .*score"),
    "another shape": ({"lm_head.weight": torch.ones(18, 8)}, {}, r"'lm_head.weight' has shape \[18, 8\], but .* resized first"),
    "saved and patched": (pair("lm_head", (16, 8)) | {"lm_head.weight": torch.ones(16, 8)}, {}, "both change 'lm_head.weight'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    content, config, says = REFUSED[case]
    message = refusal(write_adapter(tmp_path / "adapter", content, **config), write_model(tmp_path / "base"))
    assert re.search(says, message), message


def test_folders_that_are_no_adapters(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    assert "not an adapter: it has no adapter_config.json" in refusal(base, base)
    adapter = write_adapter(tmp_path / "adapter", pair(Q))
    (adapter / WEIGHTS).unlink()
    assert "missing weights: there is no adapter_model.safetensors or adapter_model.bin" in refusal(adapter, base)
    (adapter / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in refusal(adapter, base)
    (adapter / WEIGHTS).write_bytes(save(pair(Q))[:-4])
    assert "cut short" in refusal(adapter, base)
    (adapter / "adapter_config.json").write_text("{")
    assert "not valid JSON" in refusal(adapter, base)


def test_weights_that_are_integers_are_refused(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", {"a.weight": torch.ones(8, 8, dtype=torch.int32)})
    assert "'a.weight' of base is I32" in refusal(write_adapter(tmp_path / "adapter", pair("a")), base)


def test_the_tensors_are_of_the_catalog(tmp_path: Path) -> None:
    found, _ = opened(write_adapter(tmp_path / "adapter", pair(Q)), write_model(tmp_path / "base"))
    assert isinstance(found.patches[f"{Q}.weight"].a, InputTensor)
