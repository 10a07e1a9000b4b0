"""LoRA adapters through the command, against what peft makes of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints import llama_config, write_model
from cli.command import Outcome, finished_looking, weft, weft_process
from hub_server import HubServer

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
WEIGHTS = "adapter_model.safetensors"
LINEAR = ["q_proj", "v_proj", "down_proj"]
Tensors = dict[str, Tensor]


def make_llama(**more: Any) -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, tie_word_embeddings=False, **more))


def make_tied() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES, tie_word_embeddings=True))


def make_gpt2() -> Any:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=32))


class Trained:
    """Folders `base`, `adapter` and `merged`, the last of which peft made of the others."""

    def __init__(self, root: Path, make: Callable[[], Any], dtype: torch.dtype = torch.float32, **config: Any) -> None:
        torch.manual_seed(0)
        self.base, self.adapter, merged = root / "base", root / "adapter", root / "merged"
        model = make().to(dtype)
        model.save_pretrained(self.base)
        (self.base / "tokenizer.json").write_text('{"odd":   "spacing"}\n')
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
        wrapped.save_pretrained(self.adapter)
        fresh = type(model).from_pretrained(self.base, dtype=dtype)
        peft.PeftModel.from_pretrained(fresh, self.adapter).merge_and_unload().save_pretrained(merged)
        self.merged = load_file(merged / "model.safetensors")

    @property
    def name(self) -> str:
        return f"{self.base}+{self.adapter}"

    @property
    def own(self) -> Tensors:
        return load_file(self.base / "model.safetensors")

    def plain(self, scale: float) -> Tensors:
        """W + scale·BA in float64, for an adapter of linear layers alone."""
        factors, exact = load_file(self.adapter / WEIGHTS), {name: tensor.double() for name, tensor in self.own.items()}
        for name, a in factors.items():
            if ".lora_A." in name:
                module = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
                exact[module] += scale * (factors[name.replace("lora_A", "lora_B")].double() @ a.double())
        return exact


def run(config: Mapping[str, Any] | str, out: Path, *arguments: str) -> Outcome:
    path: str | Path = out.parent / f"{out.name}.yaml"
    if isinstance(config, str):
        path = config
    else:
        Path(path).write_text(yaml.safe_dump(dict(config), sort_keys=False))
    outcome = weft("run", path, out, *(arguments or ("--ram", "256MiB")))
    assert outcome.code == 0, outcome.err
    return outcome


def result(out: Path) -> Tensors:
    return load_file(out / "model.safetensors")


def equal_to_rounding(got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        worst = (got[name].double() - tensor.double()).abs().max().item()
        assert worst <= 1e-6 * tensor.abs().max().item(), (name, worst)


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (make_llama, {"r": 4, "lora_alpha": 10, "target_modules": LINEAR}),
    "all linear layers, rank-stabilised": (make_llama, {"r": 5, "use_rslora": True, "target_modules": "all-linear"}),
    "patterns": (
        make_llama,
        {"r": 4, "target_modules": LINEAR, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    ),
    "embedding and head": (make_llama, {"r": 4, "target_modules": ["embed_tokens", "lm_head", "o_proj"]}),
    "saved modules": (make_llama, {"r": 4, "target_modules": LINEAR, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}),
    "biases": (lambda: make_llama(attention_bias=True), {"r": 4, "target_modules": LINEAR, "bias": "lora_only"}),
    "conv1d": (make_gpt2, {"r": 4, "fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj", "wte"]}),
    "tied": (make_tied, {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_peft_merges(case: str, tmp_path: Path) -> None:
    make, config = CASES[case]
    trained = Trained(tmp_path, make, task_type="CAUSAL_LM", **config)
    outcome = run(trained.name, tmp_path / "out")
    got = result(tmp_path / "out")
    equal_to_rounding(got, trained.merged)
    own = trained.own
    changed = sum(not torch.equal(got[name], own[name]) for name in own)
    said = re.search(r"changed +(\d+) of (\d+) tensors[^;\n]*(?:; (\d+) come from other models alone)?", outcome.out)
    assert said, outcome.out
    differing, total, brought = (int(number or 0) for number in said.groups())
    assert (differing + brought, total) == (changed, len(own)) and changed > 0, outcome.out
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, 9]]))[0]).all()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Scale 2.5."""
    return Trained(tmp_path_factory.mktemp("plain"), make_llama, r=4, lora_alpha=10, target_modules=LINEAR)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A base in bfloat16 with factors in float32, as they are trained. Scale 2."""
    root = tmp_path_factory.mktemp("half")
    trained = Trained(root, make_llama, torch.bfloat16, r=4, lora_alpha=8, target_modules=LINEAR)
    random = torch.Generator().manual_seed(1)
    shapes = {name: tensor.shape for name, tensor in load_file(trained.adapter / WEIGHTS).items()}
    made = {name: 0.03 * torch.randn(shape, generator=random) for name, shape in shapes.items()}
    save_file(made, trained.adapter / WEIGHTS)
    return trained


def test_a_base_of_16_bits_is_rounded_once(half: Trained, tmp_path: Path) -> None:
    run(half.name, tmp_path / "out")
    got, exact = result(tmp_path / "out"), half.plain(2.0)
    for name, tensor in exact.items():
        assert got[name].dtype == torch.bfloat16
        # The product in float32 may fall on the other side of the middle between two bfloat16 numbers, hardly ever.
        assert (got[name] != tensor.to(torch.bfloat16)).double().mean() < 0.002, name
        assert torch.allclose(got[name].double(), tensor, rtol=2**-8, atol=1e-7)


def test_the_dtype_that_is_asked_for(half: Trained, tmp_path: Path) -> None:
    """Merged in the base's own type: what an adapter makes of a model does not depend on what is done with it then."""
    run({"merge_method": "passthrough", "models": [{"model": half.name}], "dtype": "float32"}, tmp_path / "wide")
    run(half.name, tmp_path / "own")
    wide, own = result(tmp_path / "wide"), result(tmp_path / "own")
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, own[name].float()) for name, tensor in wide.items())


def test_files_and_manifest(plain: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = run(plain.name, out)
    assert (out / "tokenizer.json").read_bytes() == (plain.base / "tokenizer.json").read_bytes()
    assert not [path.name for path in out.iterdir() if "adapter" in path.name]
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (out, plain.base))
    assert {key: value for key, value in ours.items() if "dtype" not in key} == {
        key: value for key, value in theirs.items() if "dtype" not in key
    }
    assert f"9 of {len(plain.own)} tensors" in outcome.out and "differ from the base model" in outcome.out
    for name, tensor in plain.own.items():
        changed = any(module in name for module in LINEAR)
        assert torch.equal(tensor, result(out)[name]) is not changed, name


def test_a_config_of_one_model_says_the_same(plain: Trained, tmp_path: Path) -> None:
    run(plain.name, tmp_path / "words")
    written = {"model": {"path": str(plain.base)}, "lora": {"path": str(plain.adapter)}}
    for number, model in enumerate((plain.name, written)):
        run({"merge_method": "passthrough", "models": [{"model": model}]}, tmp_path / str(number))
        assert (tmp_path / str(number) / "model.safetensors").read_bytes() == (
            tmp_path / "words" / "model.safetensors"
        ).read_bytes()


@pytest.mark.parametrize("method", ["ties", "slerp", "linear"])
def test_among_the_models_of_a_merge(method: str, plain: Trained, tmp_path: Path) -> None:
    """As if the adapter had been merged into a folder of its own first."""
    run(plain.name, tmp_path / "merged")
    other = tmp_path / "other"
    shutil.copytree(plain.base, other)
    save_file({name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in plain.own.items()}, other / "model.safetensors")
    outs = []
    for number, name in enumerate((plain.name, str(tmp_path / "merged"))):
        models: list[dict[str, Any]] = [{"model": name}, {"model": str(other)}]
        config: dict[str, Any] = {"merge_method": method, "base_model": str(plain.base), "models": models}
        if method == "slerp":
            config |= {"base_model": name, "parameters": {"t": 0.3}}
        else:
            config["parameters"] = {"weight": 0.6, "density": 0.5} if method == "ties" else {"weight": 0.6}
        run(config, tmp_path / f"out{number}")
        outs.append((tmp_path / f"out{number}" / "model.safetensors").read_bytes())
    assert outs[0] == outs[1]


def test_two_adapters_on_one_base(plain: Trained, tmp_path: Path) -> None:
    second = tmp_path / "second"
    shutil.copytree(plain.adapter, second)
    save_file({name: -tensor for name, tensor in load_file(plain.adapter / WEIGHTS).items() if "lora_A" in name}
              | {name: tensor for name, tensor in load_file(plain.adapter / WEIGHTS).items() if "lora_B" in name},
              second / WEIGHTS)  # fmt: skip
    models = [{"model": f"{plain.base}+{adapter}", "parameters": {"weight": 0.5}} for adapter in (plain.adapter, second)]
    run({"merge_method": "linear", "models": models}, tmp_path / "out")
    equal_to_rounding(result(tmp_path / "out"), plain.own)  # one takes away what the other adds


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of 100 MB in bfloat16, of which two tensors are 16 MB, and an adapter for those."""
    root = tmp_path_factory.mktemp("big")
    random = torch.Generator().manual_seed(3)

    def make(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (0.02 * torch.randn(shape, generator=random)).to(dtype)

    base: Tensors = {"model.embed_tokens.weight": make(4000, 1024), "model.norm.weight": make(1024)}
    factors: Tensors = {}
    for layer in range(2):
        module = f"model.layers.{layer}.mlp.down_proj"
        base[f"{module}.weight"] = make(1024, 8192)
        factors[f"base_model.model.{module}.lora_A.weight"] = make(16, 8192, dtype=torch.float32)
        factors[f"base_model.model.{module}.lora_B.weight"] = make(1024, 16, dtype=torch.float32)
    write_model(root / "base", base, llama_config(2, tie_word_embeddings=True))
    (root / "adapter").mkdir()
    save_file(factors, root / "adapter" / WEIGHTS)
    (root / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32}))
    return f"{root / 'base'}+{root / 'adapter'}"


def test_a_small_budget_gives_the_same_bytes(big: str, tmp_path: Path) -> None:
    tiled = []
    for name, ram, workers in (("small", "48MiB", "1"), ("three", "64MiB", "3"), ("large", "1GiB", "2")):
        tiled.append(json.loads(weft("plan", big, "--json", "--ram", ram, "--workers", workers).out)["tiled_tensors"])
        run(big, tmp_path / name, "--ram", ram, "--workers", workers)
    assert tiled[0] >= 2, "the tensors that change are larger than the budget's share"
    first, *others = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "three", "large")]
    assert all(data == first for data in others)


def test_no_merged_copy_touches_the_disk(big: str, tmp_path: Path) -> None:
    """In a process of its own, with a temporary folder that nobody may write to, the only new files are the result's."""
    base, adapter = (Path(part) for part in big.split("+"))

    def inputs() -> dict[Path, tuple[int, int]]:
        files = [path for folder in (base, adapter) for path in folder.iterdir()]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = inputs()
    nowhere, home, out = tmp_path / "nowhere", tmp_path / "home", tmp_path / "out"
    home.mkdir()
    config = tmp_path / "config.yaml"
    task = {"model": big, "parameters": {"weight": 0.5, "density": 0.5}}
    config.write_text(yaml.safe_dump({"merge_method": "ties", "base_model": str(base), "models": [task]}))
    outcome = weft_process("run", config, out, "--ram", "96MiB", TMPDIR=str(nowhere), HF_HOME=str(home), HOME=str(home))
    assert outcome.code == 0, outcome.err
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for folder in (base, adapter) for path in folder.iterdir()
    } == before
    assert not nowhere.exists()
    assert not [path for path in home.rglob("*.safetensors")]
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "model.safetensors", "weft.json"}
    assert {model["model"] for model in json.loads((out / "weft.json").read_text())["inputs"]} == {str(base), str(adapter)}


def refused(model: str, tmp_path: Path) -> str:
    """The line, the same from every form; nothing is written, and the base is not copied."""
    out = tmp_path / "refused"
    line = weft("run", model, out).line
    assert weft("plan", model).line == line and finished_looking(out) == [] and not out.exists()
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump({"merge_method": "passthrough", "models": [{"model": model}]}))
    assert weft("run", path, out).code == 2 and not out.exists()
    return line


def edited(trained: Trained, tmp_path: Path, tensors: Mapping[str, Tensor] | None = None, **settings: Any) -> str:
    """The base with a changed copy of the adapter."""
    folder = tmp_path / "edited"
    shutil.copytree(trained.adapter, folder)
    if tensors is not None:
        save_file(dict(tensors), folder / WEIGHTS)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return f"{trained.base}+{folder}"


def test_nothing_matches(plain: Trained, tmp_path: Path) -> None:
    tensors = {name.replace("layers", "blocks"): tensor for name, tensor in load_file(plain.adapter / WEIGHTS).items()}
    line = refused(edited(plain, tmp_path, tensors, base_model_name_or_path="org/other"), tmp_path)
    assert "no tensor of this adapter matches" in line and "trained on org/other" in line and "blocks" in line


def test_some_do_not_match(plain: Trained, tmp_path: Path) -> None:
    tensors = {name.replace("layers.2", "layers.7"): tensor for name, tensor in load_file(plain.adapter / WEIGHTS).items()}
    assert "3 of the adapter's tensors match nothing in" in refused(edited(plain, tmp_path, tensors), tmp_path)


def test_dora(tmp_path: Path) -> None:
    trained = Trained(tmp_path, make_llama, r=2, use_dora=True, target_modules=["q_proj"])
    assert "DoRA, which also scales columns; weft applies plain LoRA only: merge it with peft first" in refused(
        trained.name, tmp_path
    )


def test_other_kinds(plain: Trained, tmp_path: Path) -> None:
    assert "an adapter of type IA3; weft applies LoRA adapters only" in refused(
        edited(plain, tmp_path, peft_type="IA3"), tmp_path
    )


def test_shapes_that_do_not_fit(plain: Trained, tmp_path: Path) -> None:
    tensors = {n: t[:, :-1].contiguous() if "lora_A" in n else t for n, t in load_file(plain.adapter / WEIGHTS).items()}
    assert "which do not fit" in refused(edited(plain, tmp_path, tensors), tmp_path)


def test_folders_that_are_not_there(plain: Trained, tmp_path: Path) -> None:
    assert str(tmp_path / "gone") in refused(f"{plain.base}+{tmp_path / 'gone'}", tmp_path)
    assert "not an adapter: it has no adapter_config.json" in refused(f"{plain.base}+{plain.base}", tmp_path)
    assert "more than one '+'" in refused(f"{plain.name}+{plain.adapter}", tmp_path)


def test_an_adapter_that_changes_nothing_is_said(plain: Trained, tmp_path: Path) -> None:
    tensors = {n: t.zero_() if "lora_B" in n else t for n, t in load_file(plain.adapter / WEIGHTS).items()}
    outcome = run(edited(plain, tmp_path, tensors), tmp_path / "out")
    assert "0 of" in outcome.out and "the result is identical to the base model" in outcome.out


def test_an_adapter_of_whole_tensors_alone(plain: Trained, tmp_path: Path) -> None:
    """What it replaces is a change, although nothing is computed."""
    tensors = {"base_model.model.model.norm.weight": torch.full((32,), 2.0)}
    outcome = run(edited(plain, tmp_path, tensors, modules_to_save=["norm"]), tmp_path / "out")
    assert torch.equal(result(tmp_path / "out")["model.norm.weight"], tensors["base_model.model.model.norm.weight"])
    assert "1 come from other models alone" in outcome.out and "identical" not in outcome.out


def test_an_adapter_from_the_hub(plain: Trained, tmp_path: Path, use: Callable[..., None]) -> None:
    """The plan reads headers, the run downloads both."""
    with HubServer({"org/base": plain.base, "org/adapter": plain.adapter}) as hub:
        use(hub.url)
        planned = weft("plan", "org/base+org/adapter", "--json")
        assert planned.code == 0, planned.err
        models = {model["model"]: model for model in json.loads(planned.out)["models"]}
        assert set(models) == {"org/base", "org/adapter"}
        assert all(len(model["commit"]) == 40 and model["bytes_to_download"] > 0 for model in models.values())
        done = weft("run", "org/base+org/adapter@main", tmp_path / "out")
        assert done.code == 0, done.err
        before = hub.sent(WEIGHTS)
        again = weft("plan", "org/base+org/adapter", "--json")
        assert again.code == 0 and json.loads(again.out)["bytes_to_download"] == 0, again.err
        assert hub.sent(WEIGHTS) == before
    equal_to_rounding(result(tmp_path / "out"), plain.merged)
