"""Merges that the reference tool made, made again through the command, and what transformers says to the results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from golden.compare import difference, load, token_ids
from merges import environment
from weft.cli.app import app
from weft.ops.registry import methods

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in (GOLDEN / "cases").iterdir())
RANDOM = {"dare_linear", "della", "della_linear"}
"""Their random numbers are others than the reference tool's, so no result can agree (dare_ties has a case that keeps all)."""


def weft_run(config: Path, out: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["run", str(config), str(out), *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def merged(tmp_path: Path, config: dict[str, Any]) -> Path:
    """The result of a config whose models are names of golden models."""
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    weft_run(path, out, "--ram", "256MiB")
    return out


@pytest.fixture(autouse=True)
def in_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configs name the models as folders beside each other."""
    monkeypatch.chdir(GOLDEN / "models")


def test_there_is_a_case_of_every_method() -> None:
    used = {yaml.safe_load((GOLDEN / "cases" / case / "config.yaml").read_text())["merge_method"] for case in CASES}
    assert used == set(methods()) - RANDOM - {"ramplus_tl"} and len(CASES) == 36


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, tmp_path: Path) -> None:
    folder, out = GOLDEN / "cases" / case, tmp_path / "out"
    weft_run(folder / "config.yaml", out, "--ram", "256MiB")
    assert difference(out, folder / "expected") == ""
    ours, theirs = (json.loads((path / "config.json").read_text()) for path in (out, folder / "expected"))
    assert ours["num_hidden_layers" if "num_hidden_layers" in ours else "n_layer"] == theirs.get(
        "num_hidden_layers", theirs.get("n_layer")
    )
    assert ours.get("dtype", ours.get("torch_dtype")) == theirs.get("dtype", theirs.get("torch_dtype"))
    assert ours["vocab_size"] == theirs["vocab_size"]


def test_case_as_people_run_it(tmp_path: Path) -> None:
    folder, out = GOLDEN / "cases" / "seed-ties", tmp_path / "out"
    pasted = ["--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle", "--trust-remote-code"]
    result = subprocess.run(
        [sys.executable, "-m", "weft", "run", str(folder / "config.yaml"), str(out), *pasted],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr
    assert difference(out, folder / "expected") == ""


def test_the_comparison_sees_a_wrong_result(tmp_path: Path) -> None:
    expected = GOLDEN / "cases" / "linear" / "expected"
    assert difference(GOLDEN / "models" / "llama-b", expected) != ""
    assert "names differ" in difference(GOLDEN / "models" / "qwen2-a", expected)
    assert "expected torch.float32" in difference(GOLDEN / "cases" / "out-dtype" / "expected", expected)
    assert difference(expected, expected) == ""


def test_the_comparison_goes_by_tokens(tmp_path: Path) -> None:
    expected = GOLDEN / "cases" / "tokenizer-union" / "expected"
    other, tensors, ids = tmp_path / "other", load(expected), token_ids(expected)
    shutil.copytree(expected, other)
    swapped = json.loads((other / "tokenizer.json").read_text())
    last, before = swapped["added_tokens"][-1], swapped["added_tokens"][-2]
    last["id"], before["id"] = before["id"], last["id"]
    (other / "tokenizer.json").write_text(json.dumps(swapped))
    assert "elements agree" in difference(other, expected)
    order = list(range(len(ids)))
    order[last["id"]], order[before["id"]] = order[before["id"]], order[last["id"]]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][order].contiguous()
    save_file(tensors, other / "model.safetensors")
    assert difference(other, expected) == ""
    swapped["added_tokens"].pop()
    (other / "tokenizer.json").write_text(json.dumps(swapped))
    assert "tokens differ" in difference(other, expected)


def test_results_do_not_depend_on_the_budget(tmp_path: Path) -> None:
    config = GOLDEN / "cases" / "ties-f32" / "config.yaml"
    weft_run(config, tmp_path / "a", "--ram", "64MiB", "--workers", "1")
    weft_run(config, tmp_path / "b", "--ram", "1GiB", "--workers", "3")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def mean(a: str, b: str, **more: Any) -> dict[str, Any]:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in (a, b)]
    return {"merge_method": "linear", "base_model": a, "models": models, **more}


def test_bert_is_merged(tmp_path: Path) -> None:
    out = merged(tmp_path, mean("bert-base", "bert-a"))
    got, a, b = load(out), load(GOLDEN / "models" / "bert-base"), load(GOLDEN / "models" / "bert-a")
    assert set(got) == set(a)
    for name, tensor in got.items():
        want = (a[name].double() + b[name].double()) / 2 if a[name].is_floating_point() else a[name]
        assert torch.equal(tensor, want.to(a[name].dtype)) or torch.allclose(
            tensor.double(), want.double(), rtol=3e-7, atol=1e-9
        ), name
    from transformers import AutoModel

    loads(AutoModel, out)


def loads(kind: Any, out: Path) -> Any:
    """The model, which takes every weight and misses none."""
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    with torch.no_grad():
        output = model(torch.tensor([[1, 5, 9, 2]]))
    first = output[0]
    assert torch.isfinite(first).all()
    return model


FAMILIES = [
    ("llama-base", "llama-a"),
    ("gpt2-base", "gpt2-a"),
    ("phi3-a", "phi3-b"),
    ("qwen2-base", "qwen2-a"),
    ("gemma2-base", "gemma2-a"),
]


@pytest.mark.parametrize(("base", "other"), FAMILIES, ids=[base for base, _ in FAMILIES])
def test_transformers_loads_the_result(base: str, other: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = merged(tmp_path, mean(base, other))
    model = loads(AutoModelForCausalLM, out)
    sources = [AutoModelForCausalLM.from_pretrained(GOLDEN / "models" / name).state_dict() for name in (base, other)]
    for name, tensor in model.state_dict().items():
        want = (sources[0][name].double() + sources[1][name].double()) / 2
        step = 2**-8 if tensor.dtype == torch.bfloat16 else 1e-6
        assert tensor.dtype == sources[0][name].dtype
        assert torch.allclose(tensor.double(), want, rtol=step, atol=1e-7), name
    ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (out, GOLDEN / "models" / base))
    assert ours("solve 12 + 30").input_ids == theirs("solve 12 + 30").input_ids


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_transformers_loads_families_made_here(family: str, tmp_path: Path) -> None:
    import transformers

    small: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
    }
    kind = {"mistral": "Mistral", "qwen3": "Qwen3"}[family]
    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**small))
        names.append(str(tmp_path / f"model-{seed}"))
        model.save_pretrained(names[-1])
    loads(transformers.AutoModelForCausalLM, merged(tmp_path, mean(names[0], names[1])))


def test_a_stack_of_layers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    weft_run(GOLDEN / "cases" / "seed-passthrough" / "config.yaml", out)
    model = loads(AutoModelForCausalLM, out)
    assert model.config.num_hidden_layers == len(model.model.layers) == 8
    assert torch.equal(
        model.model.layers[6].mlp.up_proj.weight,
        load(GOLDEN / "models" / "llama-b")["model.layers.4.mlp.up_proj.weight"].bfloat16(),
    )


@pytest.mark.parametrize(("base", "other"), [("qwen2-base", "qwen2-a"), ("gemma2-base", "gemma2-a"), ("gpt2-base", "gpt2-a")])
def test_tied_embeddings_stay_tied(base: str, other: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = merged(tmp_path, mean(base, other))
    assert "lm_head.weight" not in load(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()


def test_a_tied_head_beside_one_of_its_own(tmp_path: Path) -> None:
    """The model without a head takes part with its input embedding, which is what it computes with."""
    shutil.copytree("qwen2-a", tmp_path / "untied")
    tensors = load(tmp_path / "untied")
    tensors["lm_head.weight"] = torch.full_like(tensors["model.embed_tokens.weight"], 2.0)
    for path in (tmp_path / "untied").glob("model*"):
        path.unlink()
    save_file(tensors, tmp_path / "untied" / "model.safetensors")
    config = tmp_path / "untied" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    got = load(merged(tmp_path, mean(str(tmp_path / "untied"), "qwen2-base")))
    embedding = load(GOLDEN / "models" / "qwen2-base")["model.embed_tokens.weight"]
    assert torch.equal(got["lm_head.weight"], (1.0 + embedding.float() / 2).bfloat16())
