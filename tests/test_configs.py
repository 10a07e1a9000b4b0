"""The configs of configs/, run as people run them: against small models of 32 layers under the real names, on a local Hub.

All in this process: tests/planner/test_hub.py and tests/test_adapters.py see one of its own honour the Hub's settings, and
tests/test_golden.py sees it take what people paste behind `run`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weft
from cli.command import weft as command
from cli.models import tensors, write_model
from hub_server import HubServer
from mixtures import SLIDING, make_model
from vocabularies import word_tokenizer
from weft.ops.registry import methods
from weft.planner.config import read_config

Use = Callable[..., None]
CONFIGS = Path(__file__).parents[1] / "configs"
SEEDS = ("dare-ties-mistral", "passthrough-mistral", "slerp-llama3-chinese", "slerp-mistral", "ties-mistral")
MIXTURES = {"moe": "mixtral", "moe-qwen2": "qwen2_moe"}
"""The mixtures of experts, and the model type of their results."""

FLAGS = ("--copy-tokenizer", "--allow-crimes", "--out-shard-size", "1B", "--lazy-unpickle", "--trust-remote-code")
NAMES = (
    "mistralai/Mistral-7B-v0.1",
    "samir-fama/SamirGPT-v1",
    "abacusai/Slerp-CM-mist-dpo",
    "EmbeddedLLM/Mistral-7B-Merge-14-v0.2",
    "OpenPipe/mistral-ft-optimized-1218",
    "mlabonne/NeuralHermes-2.5-Mistral-7B",
    "cognitivecomputations/dolphin-2.9-llama3-8b",
    "shenzhi-wang/Llama3-8B-Chinese-Chat",
)
LLAMAS = ("NousResearch/Hermes-2-Pro-Llama-3-8B", "NousResearch/Meta-Llama-3-8B-Instruct", "NousResearch/Meta-Llama-3-8B")
ADAPTER = "alignment-handbook/zephyr-7b-sft-qlora"
PADDING = torch.ones(1024, 1024, dtype=torch.bfloat16)
"""A tensor of 2 MiB: so large that a plan which fetched weights would show."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """All the models that the configs name."""
    root = tmp_path_factory.mktemp("hub")
    for seed, name in enumerate(NAMES):
        content = tensors(layers=32, hidden=16, vocabulary=64, seed=seed) | {"model.padding.weight": PADDING}
        write_model(root / name, content, shards=1 + seed % 2, config={"model_type": "mistral", "vocab_size": 64})
    for name, added in zip(LLAMAS, (["<|eot_id|>", "<|im_start|>", "<|im_end|>"], ["<|eot_id|>"], ["<|eot_id|>"]), strict=True):
        rows = 63 + len(added)
        content = tensors(layers=32, hidden=16, vocabulary=rows, seed=rows) | {"model.padding.weight": PADDING}
        write_model(root / name, content, config={"model_type": "llama", "vocab_size": rows})
        vocabulary = {f"w{number}": number for number in range(63)}
        tokenizer = word_tokenizer(vocabulary, {token: 63 + number for number, token in enumerate(added)})
        (root / name / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_adapter(root / ADAPTER)
    with HubServer({name: root / name for name in (*NAMES, *LLAMAS, ADAPTER)}) as server:
        yield server


def write_adapter(folder: Path) -> None:
    """Changes one layer, and the large tensor, so that it is large itself."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 512, "lora_alpha": 512}))
    factors = {}
    for module, size in (("model.padding", 1024), ("model.layers.3.self_attn.q_proj", 16)):
        factors[f"base_model.model.{module}.lora_A.weight"] = torch.ones(512, size, dtype=torch.bfloat16)
        factors[f"base_model.model.{module}.lora_B.weight"] = torch.ones(size, 512, dtype=torch.bfloat16) / 512
    save_file(factors, folder / "adapter_model.safetensors")


def test_every_method_has_a_config() -> None:
    used = {read_config(path).merge.merge_method for path in CONFIGS.glob("*.yaml") if path.stem not in MIXTURES}
    assert used == set(methods())


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_methods_config_runs(method: str, hub: HubServer, tmp_path: Path, use: Use) -> None:
    use(hub.url)
    summary = weft.run(weft.plan(CONFIGS / f"{method}.yaml", ram="256MiB"), tmp_path / "out")
    assert summary is not None and summary.tensors > 32 and summary.nan + summary.inf == 0
    assert (tmp_path / "out" / "weft.json").is_file()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in MIXTURES))
def test_a_plan_fetches_kilobytes(name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.chdir(tmp_path)
    use(hub.url)
    before = len(hub.requests)
    outcome = command("plan", CONFIGS / f"{name}.yaml", "out", "--json")
    assert outcome.code == 0, outcome.err
    fetched: dict[str, int] = {}
    for request in hub.requests[before:]:
        fetched[request.path] = fetched.get(request.path, 0) + request.sent
    weights = {path: sent for path, sent in fetched.items() if path.endswith(".safetensors")}
    about = json.loads(outcome.out)
    assert len(weights) >= len(about["models"])
    assert max(weights.values()) <= 256 << 10, "the header and what was read ahead with it"
    assert about["bytes_to_download"] > PADDING.nbytes * len(about["models"])
    config = read_config(CONFIGS / f"{name}.yaml").merge
    assert about["method"] == config.merge_method
    for model in about["models"]:
        assert re.fullmatch("[0-9a-f]{40}", model["commit"])
        assert any(model["commit"] in path for path in weights), "fetched by the commit to which the plan is pinned"
    assert not Path("out").exists()


@pytest.mark.parametrize("name", SEEDS)
def test_people_run_it_as_it_is(name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.chdir(tmp_path)
    use(hub.url)
    config = CONFIGS / f"{name}.yaml"

    outcome = command("run", config, "out", *FLAGS)
    assert outcome.code == 0, outcome.err
    assert re.search(r"^done in ", outcome.out, re.MULTILINE)
    result = load_file("out/model.safetensors")
    layers = 40 if name.startswith("passthrough") else 32
    assert set(result) == set(tensors(layers=layers)) | {"model.padding.weight"}
    about = json.loads(Path("out/config.json").read_text())
    assert (about["num_hidden_layers"], about["vocab_size"]) == (layers, 64)
    wanted = read_config(config).merge.dtype
    assert about["torch_dtype"] == wanted
    assert {str(tensor.dtype) for tensor in result.values()} == {f"torch.{wanted}"}
    assert Path("out/tokenizer.json").read_text() == '{"version": "1.0"}'
    expected(name, result)

    requests = len(hub.requests)
    use(hub.url, offline=True)
    offline = command("plan", config, "out", "--json")
    assert offline.code == 0, offline.err
    about = json.loads(offline.out)
    assert (about["bytes_to_download"], about["out"]) == (0, "complete")
    if name == "slerp-llama3-chinese":
        again = command("run", config, "again", "--quiet")
        assert (again.code, again.err) == (0, "")
        assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert len(hub.requests) == requests


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.chdir(tmp_path)
    config = read_config(CONFIGS / f"{name}.yaml")
    assert config.mixture is not None
    kind, windowed = ("Qwen2", {}) if name == "moe-qwen2" else ("Mistral", SLIDING)
    model = make_model(tmp_path / "model", kind, **windowed)
    models = {str(expert.source_model): model for _, expert in config.mixture.all_experts()} | {
        str(config.mixture.base_model): model
    }
    with HubServer(models) as server:
        use(server.url)
        outcome = command("plan", CONFIGS / f"{name}.yaml", "--json")
        assert outcome.code == 0, outcome.err
        about = json.loads(outcome.out)
        assert {model["model"] for model in about["models"]} == set(models)
        assert about["method"] == "mixture" and about["bytes_to_download"] > 0 and about["peak_tensor"] == "the router"
        if name == "moe-qwen2":
            return
        outcome = command("run", CONFIGS / f"{name}.yaml", "out", "--show-routing")
    assert outcome.code == 0, outcome.err
    assert "solve the equation for x" in outcome.out
    result = json.loads(Path("out/config.json").read_text())
    assert (result["model_type"], result["num_local_experts"], result["num_experts_per_tok"]) == (MIXTURES[name], 4, 2)
    assert result["sliding_window"] == SLIDING["sliding_window"]


def test_an_adapter_is_applied(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.chdir(tmp_path)
    use(hub.url)
    outcome = command("run", CONFIGS / "lora.yaml", "out")
    assert outcome.code == 0, outcome.err
    result = load_file("out/model.safetensors")
    own = tensors(layers=32, hidden=16, vocabulary=64, seed=NAMES.index("mistralai/Mistral-7B-v0.1"))
    for name, tensor in own.items():
        assert torch.equal(result[name], tensor + 1 if ".3.self_attn.q_proj" in name else tensor), name
    assert torch.equal(result["model.padding.weight"], PADDING + 1)


def test_vocabularies_are_merged(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.chdir(tmp_path)
    use(hub.url)
    outcome = command("run", CONFIGS / "tokenizer-union.yaml", "out")
    assert outcome.code == 0, outcome.err
    result = load_file("out/model.safetensors")
    assert json.loads(Path("out/config.json").read_text())["vocab_size"] == 128
    assert result["model.embed_tokens.weight"].shape == result["lm_head.weight"].shape == (128, 16)
    tokens = {token["content"]: token["id"] for token in json.loads(Path("out/tokenizer.json").read_text())["added_tokens"]}
    assert tokens == {"<|eot_id|>": 63, "<|im_start|>": 64, "<|im_end|>": 65}
    assert torch.isfinite(result["model.embed_tokens.weight"]).all()
    assert "<|start_header_id|>" in json.loads(Path("out/tokenizer_config.json").read_text())["chat_template"]


def expected(name: str, result: dict[str, torch.Tensor]) -> None:
    """A look at the values, where they are easily told."""
    models = {model: tensors(layers=32, hidden=16, vocabulary=64, seed=seed) for seed, model in enumerate(NAMES)}
    openpipe, hermes = models["OpenPipe/mistral-ft-optimized-1218"], models["mlabonne/NeuralHermes-2.5-Mistral-7B"]
    q, up = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.mlp.up_proj.weight"
    if name == "passthrough-mistral":
        for out, (model, layer) in {0: (openpipe, 0), 31: (openpipe, 31), 32: (hermes, 24), 39: (hermes, 31)}.items():
            assert torch.equal(result[q.format(out)], model[q.format(layer)])
    elif name == "slerp-mistral":
        assert torch.equal(result[q.format(0)], openpipe[q.format(0)]) and torch.equal(result[q.format(31)], hermes[q.format(31)])
        assert torch.equal(result[up.format(0)], hermes[up.format(0)]) and torch.equal(
            result[up.format(31)], openpipe[up.format(31)]
        )
    elif name == "slerp-llama3-chinese":
        chinese = models["shenzhi-wang/Llama3-8B-Chinese-Chat"]
        assert torch.equal(result[q.format(0)], chinese[q.format(0)])
    else:
        base = models["mistralai/Mistral-7B-v0.1"][q.format(5)].to(result[q.format(5)].dtype)
        kept = (result[q.format(5)] == base).float().mean().item()
        assert 0.02 < kept < 0.45, "where no model had a difference left, the base's value stands"
