"""Mixtures of experts: the reference tool's, the dense models they are made of, and what transformers says to the results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import weft
from cli.command import stopped_at
from cli.command import weft as command
from merges import environment, hashes, merge, nothing_looks_finished, plan, write_config
from mixtures import GOLDEN, LLAMA3, PROMPTS, SLIDING, logits, make_model, mixture, tensors, text
from weft.engine import router_vectors
from weft.engine.events import Summary
from weft.errors import CheckpointError, ConfigError

MODELS = GOLDEN / "models"
CASES = sorted(path.name for path in (GOLDEN / "mixtures").iterdir())
EVEN: dict[str, Any] = {"residual_scale": 0.0}
"""A shared expert that adds nothing."""


@pytest.mark.parametrize("case", CASES)
def test_case(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers loads both: the reference tool's files hold experts fused."""
    monkeypatch.chdir(MODELS)
    folder, out = GOLDEN / "mixtures" / case, tmp_path / "out"
    assert command("run", folder / "config.yaml", out, "--ram", "256MiB").code == 0
    got, want = loaded(out), loaded(folder / "expected")
    assert set(got) == set(want)
    for name, expected in want.items():
        found = got[name].double()
        if name.endswith("gate.weight") and "gate_proj" not in name:
            assert torch.cosine_similarity(found, expected.double(), dim=-1).min() > 0.9995, name
            assert abs(found.norm() / expected.norm() - 1) < 0.005, name
        else:
            assert torch.equal(got[name], expected) or torch.allclose(found, expected.double(), rtol=2e-3, atol=0), name


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    kind = transformers.AutoModelForCausalLM
    model, info = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return dict(model.state_dict())


FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral of llama": ("Llama", {**LLAMA3, "head_dim": 16}, {}),
    "mixtral of llama, tied": ("Llama", {"tie_word_embeddings": True}, {"gate_mode": "random"}),
    "mixtral of mistral": ("Mistral", {**SLIDING, "rope_theta": 12345.0}, {"gate_mode": "hidden_avg"}),
    "mixtral of phi3": ("Phi3", SLIDING, {"gate_mode": "cheap_embed"}),
    "qwen2 of qwen2": ("Qwen2", {"tie_word_embeddings": True}, {"shared": True}),
    "qwen2 of qwen2, some layers windowed": (
        "Qwen2",
        {**SLIDING, "use_sliding_window": True, "max_window_layers": 1, "rope_theta": 777.0},
        {"shared": True},
    ),
    "qwen2 of llama": ("Llama", LLAMA3, {"shared": True}),
    "qwen2 of mistral": ("Mistral", SLIDING, {"shared": True, "gate_mode": "uniform_random", "architecture": "qwen"}),
    "qwen3": ("Qwen3", {"head_dim": 16, "rope_theta": 4321.0}, {}),
    "qwen3, windowed": ("Qwen3", {**SLIDING, "use_sliding_window": True, "max_window_layers": 0, "head_dim": 8}, {}),
}
TYPES = {"mixtral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}


@pytest.mark.parametrize("name", FAMILIES)
def test_identical_experts_are_the_dense_model(name: str, tmp_path: Path) -> None:
    kind, settings, more = FAMILIES[name]
    dense = make_model(tmp_path / "dense", kind, **settings)
    more = dict(more)
    if more.pop("shared", False):
        prompts = [] if more.get("gate_mode", "").endswith("random") else ["a planner"]
        more["shared_experts"] = [{"source_model": str(dense), "positive_prompts": prompts, **EVEN}]
    merge(mixture(dense, [dense] * 3, experts_per_token=2, **more), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == TYPES[name.split()[0].rstrip(",")]
    assert (logits(tmp_path / "out") - logits(dense)).abs().max() < 1e-4


class DeepseekMoe(torch.nn.Module):
    """The feed-forward part of DeepSeek-MoE as its paper has it, from a checkpoint's tensors."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str, config: dict[str, Any]) -> None:
        super().__init__()
        self.weights, self.prefix, self.config = weights, prefix, config

    def expert(self, name: str, x: torch.Tensor) -> torch.Tensor:
        gate, up, down = (self.weights.pop(f"{self.prefix}.{name}.{part}_proj.weight") for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routed = torch.stack([self.expert(f"experts.{e}", x) for e in range(self.config["n_routed_experts"])], -1)
        scores = (x @ self.weights.pop(f"{self.prefix}.gate.weight").T).softmax(-1)
        best = scores.topk(self.config["num_experts_per_tok"])
        weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))
        shared = self.expert("shared_experts", x) if self.config["n_shared_experts"] else 0
        return (routed * weights.unsqueeze(-2)).sum(-1) + shared


@pytest.mark.parametrize("shared", [False, True])
def test_deepseek_is_the_dense_model(shared: bool, tmp_path: Path) -> None:
    """transformers has no such model of its own: the feed-forward parts of the dense one are replaced."""
    dense = make_model(tmp_path / "dense", "Llama", rope_theta=5000.0)
    config = mixture(dense, [dense, dense], architecture="deepseek", experts_per_token=1)
    if shared:
        config["shared_experts"] = [{"source_model": str(dense), "residual_scale": 0.25}]
        for expert in config["experts"]:
            expert["residual_scale"] = 0.75
    merge(config, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["model_type"], settings["first_k_dense_replace"], settings["moe_layer_freq"]) == ("deepseek", 0, 1)
    assert (settings["scoring_func"], settings["norm_topk_prob"], settings["moe_intermediate_size"]) == ("softmax", True, 48)
    weights = tensors(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(dense)
    for layer, module in enumerate(model.model.layers):
        module.mlp = DeepseekMoe(weights, f"model.layers.{layer}.mlp", settings)
        for name in ("input_layernorm", "post_attention_layernorm", *(f"self_attn.{x}_proj" for x in "qkvo")):
            module.get_submodule(name).weight.data = weights.pop(f"model.layers.{layer}.{name}.weight")
    for name in ("model.embed_tokens", "model.norm", "lm_head"):
        model.get_submodule(name).weight.data = weights.pop(f"{name}.weight")
    with torch.inference_mode():
        got = model.eval()(text()).logits
    assert not weights, "every tensor is used"
    assert (got - logits(dense)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {**LLAMA3, "num_hidden_layers": 4}),
        ("Mistral", SLIDING),
        ("Qwen2", {**SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
        ("Qwen3", {"head_dim": 16}),
        ("Phi3", SLIDING),
    ],
)
@pytest.mark.parametrize("mode", ["hidden", "hidden_avg"])
def test_hidden_vectors_are_those_of_a_whole_forward_pass(kind: str, settings: dict[str, Any], mode: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", kind, **settings)
    config = mixture(base, [base, base], gate_mode=mode, experts_per_token=1)
    config["experts"][0]["negative_prompts"] = ["def add(a, b)", "the planner compiles a graph of small tasks"]
    if kind == "Qwen2":
        config["shared_experts"] = [{"source_model": str(base), "positive_prompts": ["a planner"]}]
    merge(config, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModel.from_pretrained(base, dtype=torch.float32).eval()

    def states(prompt: str) -> torch.Tensor:
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
        with torch.inference_mode():
            layers = torch.stack(model(ids, output_hidden_states=True).hidden_states[:-1])[:, 0].double()
        return layers[:, -1] if mode == "hidden" else layers.mean(1)

    got = tensors(tmp_path / "out")
    for e, expert in enumerate(config["experts"]):
        want = torch.stack([states(prompt) for prompt in expert["positive_prompts"]]).mean(0)
        if "negative_prompts" in expert:
            want -= torch.stack([states(prompt) for prompt in expert["negative_prompts"]]).mean(0)
        want /= want.norm(dim=-1, keepdim=True)
        for layer, vector in enumerate(want):
            names = [name for name in got if f"layers.{layer}." in name and name.endswith(".gate.weight")]
            assert (got[names[0]][e].double() - vector).abs().max() < 1e-5, (layer, e)


def test_random_gates(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "Llama", hidden_size=256)
    name = "model.layers.{}.block_sparse_moe.gate.weight"
    found = {}
    for mode in ("random", "uniform_random"):
        config = mixture(base, [base] * 4, gate_mode=mode)
        for expert in config["experts"]:
            del expert["positive_prompts"]
        merge(config, tmp_path / mode)
        merge(config, tmp_path / f"{mode}-again", workers=1)
        merge(config, tmp_path / f"{mode}-seed", seed=1)
        found[mode] = torch.stack([tensors(tmp_path / mode)[name.format(layer)] for layer in range(3)])
        assert hashes(tmp_path / mode) == hashes(tmp_path / f"{mode}-again")
        assert not torch.equal(found[mode][0], tensors(tmp_path / f"{mode}-seed")[name.format(0)])
        assert not torch.equal(found[mode][0], found[mode][1])
    assert abs(found["random"].mean()) < 0.06 and abs(found["random"].std() - 1) < 0.06
    bound = 256**-0.5
    assert found["uniform_random"].abs().max() <= bound and abs(found["uniform_random"].std() - bound / 3**0.5) < 0.06 * bound


def test_noise_and_scale(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "Llama", hidden_size=128, intermediate_size=600)
    config = mixture(base, [base, base], gate_mode="random")
    config["experts"][1] |= {"noise_scale": 0.05, "residual_scale": 2.0}
    merge(config, tmp_path / "out")
    got, own = tensors(tmp_path / "out"), tensors(base)
    for part, name, factor in (("w1", "gate", 1), ("w2", "down", 2), ("w3", "up", 1)):
        dense = own[f"model.layers.1.mlp.{name}_proj.weight"]
        assert torch.equal(got[f"model.layers.1.block_sparse_moe.experts.0.{part}.weight"], dense)
        noise = got[f"model.layers.1.block_sparse_moe.experts.1.{part}.weight"] / factor - dense
        assert abs(noise.std() - 0.05) < 0.002 and abs(noise.mean()) < 0.001


KILLED = """
import os, signal, sys
from weft.engine import router_vectors as router
saved = router._save_state
def save(of, folder, layer, states, vectors):
    saved(of, folder, layer, states, vectors)
    if layer == 2:
        os.kill(os.getpid(), signal.SIGKILL)
router._save_state = save
sys.argv = ["weft", "run", *sys.argv[1:], "-q"]
from weft.cli.main import main
main()
"""
"""`weft run` that is killed when two layers are done."""


class Killed(BaseException):
    """Nothing catches this, as nothing catches SIGKILL."""


def layers_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers that are run from now on."""
    from weft.engine.base_layers import BaseLayers

    ran: list[int] = []
    load = BaseLayers.load

    def noted(self: BaseLayers, layer: int) -> None:
        ran.append(layer)
        load(self, layer)

    monkeypatch.setattr(BaseLayers, "load", noted)
    return ran


def test_ctrl_c_while_transformers_is_imported(tmp_path: Path) -> None:
    """Which takes seconds; the package does not lack only because its import was stopped."""
    base = make_model(tmp_path / "base", "Llama")
    config = write_config(tmp_path / "config.yaml", mixture(base, [base, base]))
    command = ("run", str(config), str(tmp_path / "out"), "-q")
    outcome = stopped_at("transformers", signal.SIGINT, *command, swallow=True)
    assert (outcome.code, outcome.err) == (130, "weft: stopped; give the same command again to continue\n")
    assert not (tmp_path / "out").exists()


def test_killed_while_the_router_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed, num_hidden_layers=5) for seed, name in enumerate("ab"))
    config = mixture(base, [base, other])
    path, out = write_config(tmp_path / "config.yaml", config), tmp_path / "out"
    merge(config, tmp_path / "undisturbed")
    process = [sys.executable, "-c", KILLED, str(path), str(out)]
    done = subprocess.run(process, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert nothing_looks_finished(out)
    ran = layers_run(monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(router_vectors, "_write", stop_after(router_vectors._write, ".bin"))
        merge(config, out)
    assert ran == [2, 3], "not the ones that are done, nor the last, whose result nobody asks for"
    assert nothing_looks_finished(out)
    ran.clear()
    merge(config, out)
    assert ran == [] and hashes(out) == hashes(tmp_path / "undisturbed")


def stop_after(function: Callable[..., Any], ending: str = "") -> Callable[..., Any]:
    """The function, killed after it has written a file with this ending."""

    def stopping(*arguments: Any) -> None:
        function(*arguments)
        if not ending or arguments[0].suffix == ending:
            raise Killed

    return stopping


def test_vectors_are_not_made_of_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the base model is replaced by one of the same size and time, its layers are run from the first one on."""
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    config, out = mixture(base, [base, other]), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(router_vectors, "_save_state", stop_after(router_vectors._save_state))
        merge(config, out)
    weights = Path(base) / "model.safetensors"
    time = weights.stat().st_mtime_ns
    weights.write_bytes(weights.read_bytes())
    os.utime(weights, ns=(time, time))
    ran = layers_run(monkeypatch)
    merge(config, out)
    assert ran == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"x" * 200])
def test_a_damaged_state_is_not_used(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    config, out = mixture(base, [base, other]), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(router_vectors, "_save_state", stop_after(router_vectors._save_state))
        merge(config, out)
    (state,) = (out / ".weft").glob("*.state")
    state.write_bytes(damage)
    ran = layers_run(monkeypatch)
    merge(config, out)
    assert ran == [0, 1]


def test_the_result_does_not_depend_on_the_budget(tmp_path: Path) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    config = mixture(base, [base, other])
    config["experts"][0]["positive_prompts"] = [f"{'a planner ' * n}and a word" for n in range(1, 60, 4)]
    merge(config, tmp_path / "small", ram=100 << 20, workers=1)
    merge(config, tmp_path / "large", ram=1 << 30, workers=3)
    assert hashes(tmp_path / "small") == hashes(tmp_path / "large")


def test_where_prompts_would_go(tmp_path: Path) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    path = write_config(tmp_path / "config.yaml", mixture(base, [base, other, base], gate_mode="cheap_embed"))
    outcome = command("run", path, tmp_path / "out", "--show-routing")
    assert outcome.code == 0, outcome.err
    table = outcome.out[outcome.out.index("weight of each expert") :]
    for prompt in (prompt for prompts in PROMPTS for prompt in prompts):
        (line,) = (line for line in table.splitlines() if line.strip().startswith(prompt))
        shares = [int(word.rstrip("%")) for word in line.split() if word.endswith("%")]
        assert len(shares) == 3 and abs(sum(shares) - 100) <= 2
    hidden = mixture(base, [base, other])
    shown = weft.run(plan(hidden), tmp_path / "hidden")
    assert isinstance(shown, Summary) and shown.routings == []
    summary = merge_showing(hidden, tmp_path / "hidden-shown")
    (routing,) = summary.routings
    assert routing.owners == ((0,), (0,), (1,)) and routing.prompts == (*PROMPTS[0], *PROMPTS[1])
    assert all(abs(sum(shares) - 1) < 1e-9 for shares in routing.shares)
    assert hashes(tmp_path / "hidden-shown") == hashes(tmp_path / "hidden")


def merge_showing(config: dict[str, Any], out: Path) -> Summary:
    from weft.engine.run import run

    summary = run(plan(config), out, show_routing=True)
    assert summary is not None
    return summary


def test_routing_is_shown_of_mixtures_with_prompts_only(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "Llama")
    dense = write_config(tmp_path / "dense.yaml", {"merge_method": "passthrough", "models": [{"model": str(base)}]})
    assert "is not a mixture of experts" in command("run", dense, tmp_path / "out", "--show-routing").line
    config = mixture(base, [base, base], gate_mode="random")
    for expert in config["experts"]:
        del expert["positive_prompts"]
    path = write_config(tmp_path / "config.yaml", config)
    assert "there are no prompts" in command("run", path, tmp_path / "out", "--show-routing").line
    assert not (tmp_path / "out").exists()


def test_nearly_parallel_vectors_are_warned_of(tmp_path: Path) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    config = mixture(base, [base, other], gate_mode="cheap_embed")
    same = "the planner compiles a graph of small tasks, each of which is run in the memory that was allowed"
    for expert, end in zip(config["experts"], (".", "!"), strict=True):
        expert["positive_prompts"] = [same + end]
    summary = merge(config, tmp_path / "out")
    (warning,) = summary.warnings
    assert "nearly parallel in 3 of 3 layers" in warning and "prompts that differ more" in warning
    assert merge(mixture(base, [base, other]), tmp_path / "different").warnings == []


def test_an_expert_may_be_a_stage_or_adapted_and_a_mixture_may_be_streamed(tmp_path: Path) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    stage = {
        "name": "between",
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in (base, other)],
    }
    config = mixture(base, ["between", other])
    documents = "\n---\n".join(yaml.safe_dump(part) for part in (stage, config))
    got = dict(weft.merge(documents, ram="256MiB"))
    a, b = tensors(base), tensors(other)
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in range(3):
        between = got[f"model.layers.{layer}.block_sparse_moe.experts.0.w3.weight"]
        assert torch.allclose(between, (a[name.format(layer)] + b[name.format(layer)]) / 2, atol=1e-6)
    plain = plan(mixture(base, [other, base]))
    streamed = dict(weft.merge(plain))
    merge(mixture(base, [other, base]), tmp_path / "out")
    assert all(torch.equal(tensor, tensors(tmp_path / "out")[key]) for key, tensor in streamed.items())


def test_a_base_that_is_computed_cannot_be_run(tmp_path: Path) -> None:
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    stage = {
        "name": "between",
        "merge_method": "linear",
        "models": [{"model": str(path), "parameters": {"weight": 0.5}} for path in (base, other)],
    }
    for mode, refused in (("hidden", True), ("cheap_embed", True), ("random", False)):
        config = mixture("between", [base, other], gate_mode=mode)
        documents = "\n---\n".join(yaml.safe_dump(part) for part in (stage, config))
        if refused:
            with pytest.raises(CheckpointError, match="reads the base model from files"):
                weft.plan(documents)
        else:
            assert weft.plan(documents).routers


def test_a_mixture_can_be_merged(tmp_path: Path) -> None:
    """The result of a mixture is a model like any other, also between stages."""
    base, other = (make_model(tmp_path / name, "Llama", seed) for seed, name in enumerate("ab"))
    stage = {"name": "sparse", **mixture(base, [base, other])}
    last = {"merge_method": "passthrough", "models": [{"model": "sparse"}]}
    path = tmp_path / "stages.yaml"
    path.write_text("\n---\n".join(yaml.safe_dump(part) for part in (stage, last)))
    weft.run(weft.plan(path), tmp_path / "out")
    merge(mixture(base, [base, other]), tmp_path / "alone")
    got, want = tensors(tmp_path / "out"), tensors(tmp_path / "alone")
    assert set(got) == set(want) and all(torch.equal(got[name], want[name]) for name in want)


def test_without_the_library_a_run_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model(tmp_path / "base", "Llama")
    made = plan(mixture(base, [base, base]))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install transformers"):
        weft.run(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    weft.run(plan(mixture(base, [base, base], gate_mode="random")), tmp_path / "random")
