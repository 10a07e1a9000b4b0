"""Models in folders whose names hold the signs that a reference is made of, and models that once were quantised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import weft
from checkpoints import llama_config, llama_tensors, write_model
from cli.command import weft as command
from trials import trials
from weft.planner.reference import Location, ModelReference, parse_reference

FOLDERS = ("base", "chat+code", "base+chat", "v1@home", "a+b@c+d", "sub+1/x@y")


def write_adapter(folder: Path) -> None:
    """LoRA of rank 1 for one tensor."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    factors = {f"{name}A.weight": torch.ones(1, 4), f"{name}B.weight": torch.ones(4, 1)}
    save_file(factors, folder / "adapter_model.safetensors")


SIGNS = st.text("+@a/", max_size=5)
ANY = st.text("abelor+@/.~ \0", max_size=12) | st.builds(lambda name, end: name + end, st.sampled_from(FOLDERS), SIGNS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in FOLDERS:
        write_model(folder / name, llama_tensors(), llama_config())
    for name in ("lora", "lora+8@1"):
        write_adapter(folder / name)
    return folder


@pytest.fixture(autouse=True)
def _here(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)


def of(model: str, adapter: str | None = None) -> ModelReference:
    return ModelReference(Location(model), Location(adapter) if adapter else None)


@pytest.mark.parametrize("model", FOLDERS)
@pytest.mark.parametrize("prefix", ["", "./"])
def test_what_exists_is_that_folder_with_any_adapter(model: str, prefix: str) -> None:
    name = prefix + model
    assert parse_reference(name) == of(name)
    for adapter in ("lora", "lora+8@1", "./lora+8@1"):
        assert parse_reference(f"{name}+{adapter}") == of(name, adapter)
        assert parse_reference(f" {name} + {adapter} ") == of(name, adapter)
    assert parse_reference(f"{name}+org/adapter@main") == ModelReference(Location(name), Location("org/adapter", "main"))
    assert parse_reference("org/base@v1+lora+8@1") == ModelReference(Location("org/base", "v1"), Location("lora+8@1"))


def test_the_longest_folder_that_fits_comes_first() -> None:
    assert parse_reference("base+chat") == of("base+chat")
    assert parse_reference("base+chat+lora") == of("base+chat", "lora")
    assert parse_reference("base+lora") == of("base", "lora")


@pytest.mark.parametrize("text", ["none+such+folder", "base+no+folder", "org/x+lora+9", "base@a@b", "v1@home@a@b"])
def test_what_does_not_exist_has_one_of_each_sign(text: str) -> None:
    with pytest.raises(ValueError, match=r"has more than one '[+@]'.*and there is no such folder"):
        parse_reference(text)


@trials(50)
@given(ANY)
def test_any_text_is_a_reference_or_a_value_error(text: str) -> None:
    try:
        found = parse_reference(text)
    except ValueError as error:
        assert "\n" not in str(error).replace(repr(text), "")
        return
    for location in (found.model, found.adapter):
        if location is not None and "+" in location.path:
            assert Path(location.path).is_dir()


def test_commands_take_them() -> None:
    text = "merge_method: linear\nmodels:\n" + "".join(
        f"  - model: {name}\n    parameters: {{weight: 1}}\n" for name in ("base", "chat+code", "a+b@c+d+lora+8@1")
    )
    assert "model: a+b" in text
    Path("merge.yaml").write_text(text)
    assert command("plan", "merge.yaml").code == 0
    assert command("run", "chat+code+lora+8@1", "out").code == 0
    assert json.loads(command("inspect", "sub+1/x@y+lora", "--json").out)["adapter"]["adapter"] == "lora"
    assert "identical" in command("diff", "chat+code", "v1@home").out
    assert "more than one '+'" in command("inspect", "chat+code+no+adapter").line


def test_a_revision_of_a_folder_is_refused_by_the_folder_s_name() -> None:
    assert command("inspect", "v1@home@main").line.startswith("v1@home@main: a folder has no revisions")


LEFT_OVER: dict[str, Any] = {
    "quantization_config": {"quant_method": "fp8"},
    "text_config": {"quantization_config": {"bits": 4}, "x": 1},
}


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_a_result_says_nothing_of_a_quantisation_that_was_undone(tmp_path: Path, method: str) -> None:
    for name in ("left", "plain"):
        write_model(tmp_path / name, llama_tensors(), llama_config(**(LEFT_OVER if name == "left" else {})))
    entries = [{"model": str(tmp_path / name), "parameters": {"weight": 1}} for name in ("left", "plain")]
    plan = weft.plan({"merge_method": method, "models": entries[: 2 if method == "linear" else 1]})
    (note,) = [note for note in plan.notes if "quantisation" in note]
    assert note.startswith(f"{tmp_path / 'left'}: its config.json names fp8 quantisation, but its weights are plain numbers")
    assert "quantization_config" not in json.dumps(dict(plan.model_config)) and plan.model_config["text_config"] == {"x": 1}
    assert json.loads(command("inspect", str(tmp_path / "left"), "--json").out)["quantization"] is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"a": 1', "cut short; fetch it again"),
        (b'{"a": {}', "cut short; fetch it again"),
        (b"", "cut short; fetch it again"),
        (b'{"a": 1, }', "not valid JSON (line 1)"),
        (b'{"a": 1}\n{"b": 2}', "not valid JSON (line 2)"),
        (b"version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    ],
)
def test_only_a_file_that_is_cut_short_is_to_be_fetched_again(tmp_path: Path, data: bytes, says: str) -> None:
    write_model(tmp_path / "m", llama_tensors(), llama_config())
    (tmp_path / "m/config.json").write_bytes(data)
    line = command("inspect", str(tmp_path / "m")).line
    assert says in line and ("fetch it again" in line) == ("fetch it again" in says)
