"""Models that cannot be used: one line that names the file or tensor and what to do, exit code 2, nothing finished left."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cli.command import finished_looking, weft
from cli.models import INDEX, LINEAR, SHARDS, edit_json, entry, safetensors_bytes, tensors, write_model

B = Path("b")
WEIGHTS = B / "model.safetensors"
PICKLE = B / "pytorch_model.bin"
X = entry("BF16", [2, 2], 0, 8)
UP = "model.layers.2.mlp.up_proj"
Break = Callable[[], object]


def steps(*todo: Break) -> Break:
    """One after the other."""
    return lambda: [step() for step in todo]


def again(content: dict[str, torch.Tensor] | None = None, **how: Any) -> None:
    """Model b anew."""
    shutil.rmtree(B)
    write_model(B, content, **how)


def without(*names: str) -> None:
    """Model b without some tensors."""
    kept = {name: tensor for name, tensor in tensors(seed=1).items() if name not in names}
    again(kept, config={"num_hidden_layers": 4})


def added(name: str, dtype: torch.dtype = torch.float32) -> Break:
    """Model b with one more tensor."""
    return lambda: again(tensors(seed=1) | {name: torch.zeros(2, dtype=dtype)})


def coded(**settings: Any) -> Break:
    """Model b with a tensor of codes that its name does not give away, and these settings in config.json."""
    tensor = torch.zeros(2, 2, dtype=torch.int8)
    return lambda: again(tensors(seed=1) | {"model.codes": tensor}, config=settings)


def header(value: object, data: bytes = b"", length: int | None = None) -> Break:
    """Model b with this header."""
    return lambda: WEIGHTS.write_bytes(safetensors_bytes(value, data, length))


def indexed(**places: str) -> Break:
    """Model b in two shards, with further places in its index."""

    def run() -> None:
        again(shards=2)
        weight_map = json.loads((B / INDEX).read_text())["weight_map"]
        edit_json(B / INDEX, weight_map=weight_map | {name.replace("__", "."): place for name, place in places.items()})

    return run


def sharded(*gone: str) -> Break:
    """Model b in two shards, without some of its files."""
    return steps(lambda: again(shards=2), *((B / name).unlink for name in gone))


def cut(size: int) -> Break:
    """Model b's file cut to so many bytes; less than 0: by so many."""
    return lambda: os.truncate(WEIGHTS, size if size >= 0 else WEIGHTS.stat().st_size + size)


def renamed(name: str, *gone: str) -> Break:
    """Model b's weights under another name, without some of its other files."""
    return steps(lambda: WEIGHTS.rename(B / name), *((B / other).unlink for other in gone))


def pickled(value: object = None, cut: int | None = None) -> Break:
    """Model b as a .bin file."""

    def run() -> None:
        WEIGHTS.unlink()
        torch.save(tensors(seed=1) if value is None else value, PICKLE)
        if cut is not None:
            os.truncate(PICKLE, cut)

    return run


class Code:
    """What would run where a pickle is trusted."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


CASES: dict[str, tuple[Break, str]] = {
    # folders
    "no folder": (lambda: shutil.rmtree(B), r"b: there is no such folder, and it is not a Hub name \(org/name\)"),
    "a file": (steps(lambda: shutil.rmtree(B), B.touch), r"b: a file; a model is the folder that holds config\.json"),
    "nothing": (steps(lambda: shutil.rmtree(B), B.mkdir), r"b/config\.json: not there: b is not a model"),
    "no config.json": ((B / "config.json").unlink, r"b/config\.json: not there: b is not a model, or not a complete one"),
    "config.json cut": (
        lambda: (B / "config.json").write_text('{"a'), r"b/config\.json: not valid JSON: it is cut short; fetch it again"
    ),
    "config.json a list": (lambda: (B / "config.json").write_text("[]"), r"b/config\.json: not a map"),
    "no weights": (WEIGHTS.unlink, r"b: missing weights: no model\.safetensors, pytorch_model\.bin or index"),
    "weights of another library": (renamed("tf_model.h5"), r"b: missing weights: .*tf_model\.h5, which weft does not read"),
    "a folder of another revision": (
        lambda: Path("merge.yaml").write_text(LINEAR.replace("model: b", "model: b@v1")),
        r"b@v1: a folder has no revisions: leave out '@v1'",
    ),
    # shards
    "shard not there": (sharded(SHARDS[1]), rf"b: missing weights: {INDEX} names {SHARDS[1]}, which is not there; fetch it"),
    "shard not there, no index": (sharded(SHARDS[1], INDEX), r"b: missing weights: shard 2 of 2 is not there; fetch it again"),
    "index outside": (
        indexed(lm_head__weight="../a/model.safetensors"),
        rf"b/{INDEX}: 'lm_head\.weight' is put into '\.\./a/model\.safetensors', which is not a weight file of this model",
    ),
    "index of a whole path": (indexed(lm_head__weight="/etc/x.bin"), rf"b/{INDEX}: 'lm_head\.weight' is put into '/etc/x\.bin'"),
    "index of what is not there": (
        indexed(extra__weight=SHARDS[0]),
        rf"b: missing weights: the index puts 'extra\.weight' into {SHARDS[0]}, which does not have it",
    ),
    "index cut": (lambda: (B / INDEX).write_text('{"weight_map'), rf"b/{INDEX}: not valid JSON: it is cut short; fetch it again"),
    "index without a map": (lambda: (B / INDEX).write_text("{}"), rf"b/{INDEX}: has no 'weight_map'"),
    "the same shard twice": (
        steps(lambda: again(shards=2), lambda: shutil.copy(B / SHARDS[0], B / SHARDS[1])),
        rf"b/{SHARDS[1]}: tensor 'model\.embed_tokens\.weight' is in {SHARDS[0]} too",
    ),
    # safetensors files
    "cut short": (cut(-10), r"b/model\.safetensors: cut short: \d+ bytes, its header promises \d+ .*fetch it again"),
    "cut in the header": (cut(100), r"b/model\.safetensors: cut short inside its header: 100 of at least \d+ bytes; fetch it"),
    "cut to nothing": (cut(0), r"b/model\.safetensors: 0 bytes are not a safetensors file .*fetch it again"),
    "too long": (lambda: WEIGHTS.open("ab").write(b"xx"), r"b/model\.safetensors: 2 bytes more than its header describes"),
    "header longer than the file": (header({}, length=5000), r"b/model\.safetensors: cut short inside its header: 10 of"),
    "header without end": (header({}, length=1 << 60), r"b/model\.safetensors: not a safetensors file"),
    "header no JSON": (header(b"hello"), r"b/model\.safetensors: not a safetensors file \(its header is not valid JSON\)"),
    "header a list": (header([]), r"b/model\.safetensors: not a safetensors file \(its header is not a map\)"),
    "header empty": (header({}), r"b: there are no tensors in model\.safetensors"),
    "overlap": (
        header({"x": X, "y": entry("BF16", [2, 2], 4, 12)}, bytes(12)),
        r"b/model\.safetensors: the bytes of tensor 'y' overlap those of another",
    ),
    "hole": (
        header({"x": X, "y": entry("BF16", [2, 2], 12, 20)}, bytes(20)),
        r"b/model\.safetensors: 4 bytes before those of tensor 'y' belong to no tensor",
    ),
    "wrong size": (header({"x": entry("BF16", [2, 3], 0, 8)}, bytes(8)), r"tensor 'x' says 8 bytes, but BF16 \[2, 3\] has 12"),
    "offsets backwards": (header({"x": entry("BF16", [2, 2], 8, 0)}, bytes(8)), r"tensor 'x' says -8 bytes"),
    "shape below nothing": (header({"x": entry("BF16", [-2, -2], 0, 8)}, bytes(8)), r"tensor 'x' has no valid dtype, shape"),
    "shape without end": (header({"x": entry("BF16", [1 << 61] * 300, 0, 8)}, bytes(8)), r"tensor 'x' has no valid dtype"),
    "name twice": (header(b'{"x": %s, "x": %s}' % ((json.dumps(X).encode(),) * 2), bytes(8)), r"a name appears twice"),
    "name that steers the terminal": (
        header({"\x1b[2J\n": entry("BF16", [1], 0, 8)}, bytes(8)),
        r"'\\x1b\[2J\\n' is not a valid tensor name",
    ),
    "unknown dtype": (header({"x": entry("C64", [1], 0, 8)}, bytes(8)), r"tensor 'x' has dtype C64, a type unknown to weft"),
    "a pointer": (
        lambda: WEIGHTS.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        r"b/model\.safetensors: a Git LFS pointer instead of the weights: run `git lfs pull`",
    ),
    # quantised
    "FP8": (
        lambda: again(tensors(seed=1, dtype=torch.float8_e4m3fn)),
        r"b/model\.safetensors: tensor '.*' has dtype F8_E4M3, quantised codes .*use the model's bfloat16 or float16 release",
    ),
    "quantization_config": (
        coded(quantization_config={"quant_method": "hqq"}),
        r"b: quantised with hqq \(config\.json, quantization_config; tensor 'model\.codes' is I8\): .*float16 release",
    ),
    "quantization_config inside": (
        coded(text_config={"quantization_config": {"bits": 4}}),
        r"b: quantised with an unnamed method",
    ),
    "GPTQ": (added(f"{UP}.g_idx", torch.int32), rf"b: tensor '{UP}\.g_idx' belongs to GPTQ quantisation: .*release"),
    "AWQ": (added(f"{UP}.qzeros", torch.int32), rf"b: tensor '{UP}\.qzeros' belongs to GPTQ or AWQ quantisation"),
    "bitsandbytes": (
        added(f"{UP}.weight.quant_state.bitsandbytes__nf4", torch.uint8), r"belongs to bitsandbytes 4-bit quantisation"
    ),
    "bitsandbytes 8": (added(f"{UP}.SCB"), r"belongs to bitsandbytes 8-bit quantisation"),
    "block scales": (added(f"{UP}.weight_scale_inv"), r"belongs to FP8 with block scales quantisation"),
    "GGUF": (renamed("b.Q4_K_M.gguf"), r"b: b\.Q4_K_M\.gguf is GGUF, a quantised format: use the model's safetensors release"),
    "GGUF without config.json": (renamed("b.gguf", "config.json"), r"b: b\.gguf is GGUF, a quantised format"),
    "GGUF file": (
        steps(Path("b.gguf").touch, lambda: Path("merge.yaml").write_text(LINEAR.replace("model: b", "model: b.gguf"))),
        r"b\.gguf: a GGUF file, a quantised format: use the model's safetensors release",
    ),
    "adapter": (renamed("adapter_model.safetensors"), r"b: this is an adapter, not a model"),
    "adapter without config.json": (renamed("adapter_model.safetensors", "config.json"), r"b: this is an adapter, not a model"),
    # models that do not go together
    "another width": (
        lambda: again(hidden=16),
        r"tensor '.*' has shape \[16, 8\] in a and \[16, 16\] in b: only models of one architecture .*never broadcast",
    ),
    "a side of one": (
        lambda: again(tensors(seed=1) | {"model.norm.weight": torch.ones(1)}),
        r"tensor 'model\.norm\.weight' has shape \[8\] in a and \[1\] in b: .*never broadcast",
    ),
    "another vocabulary": (
        lambda: again(vocabulary=18), r"has shape \[16, 8\] in a and \[18, 8\] in b: their vocabularies differ.*tokenizer_source"
    ),
    "another depth": (lambda: again(layers=5), r"merge\.yaml, line 4, models\[1\]: b has 5 layers and a has 4"),
    "a tensor missing": (
        lambda: without(f"{UP}.weight"), rf"b: missing weights: it has no '{UP}\.weight', which a has; fetch it again"
    ),
    "a layer missing": (
        lambda: without(*(name for name in tensors() if ".layers.2." in name)),
        r"b: missing weights: there is no tensor of layer 2 .*the model has 4 layers",
    ),
    "the output missing, not tied": (lambda: without("lm_head.weight"), r"b: missing weights: it has no 'lm_head\.weight'"),
    "integers": (
        lambda: again(tensors(seed=1) | {"model.norm.weight": torch.zeros(8, dtype=torch.int32)}),
        r"tensor 'model\.norm\.weight' is BF16 in a and I32 in b: integers and floating-point numbers cannot be merged",
    ),
    # .bin files
    "code": (pickled({"x": Code()}), r"b/pytorch_model\.bin: refused: it is more than tensors: it wants to load '\w+\.system'"),
    "bin cut": (pickled(cut=3000), r"b/pytorch_model\.bin: not a PyTorch zip checkpoint: cut short, .*fetch it again"),
    "bin of a list": (pickled([1, 2]), r"b/pytorch_model\.bin: not a state dict"),
    "bin strided": (pickled({"x.weight": torch.zeros(3, 4).t()}), r"tensor 'x\.weight' is stored transposed .*safetensors"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config and its models a and b in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_model(Path("a"))
    write_model(B, seed=1)
    Path("merge.yaml").write_text(LINEAR)


@pytest.mark.parametrize("name", CASES)
def test_one_line_says_what_is_wrong(name: str) -> None:
    spoil, message = CASES[name]
    spoil()
    outcome = weft("run", "merge.yaml", "out")
    assert re.search(message, outcome.line), outcome.line
    assert outcome.out == ""
    assert finished_looking(Path("out")) == []
    assert not Path("pwned").exists()


def test_the_nearest_folder_is_named() -> None:
    write_model(Path("models/mistral-7b"))
    for name, close in (("models/mistral-7b-", "mistral-7b"), ("./models/mistral7b", "mistral-7b"), ("bb", "b")):
        Path("merge.yaml").write_text(LINEAR.replace("model: b", f"model: {Path(name).resolve()}"))
        assert weft("run", "merge.yaml", "out").line.endswith(f"; did you mean '{close}'?")


def test_shards_without_an_index_are_found() -> None:
    sharded(INDEX)()
    assert weft("run", "merge.yaml", "out", "--quiet").code == 0


def test_a_bin_file_gives_what_safetensors_gives() -> None:
    assert weft("run", "merge.yaml", "from_safetensors", "--quiet").code == 0
    pickled()()
    assert weft("run", "merge.yaml", "from_bin", "--quiet").code == 0
    expected, found = (load_file(Path(out) / "model.safetensors") for out in ("from_safetensors", "from_bin"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tied_output_is_read_from_the_embedding() -> None:
    content = tensors(seed=1)
    content["lm_head.weight"] = content["model.embed_tokens.weight"].clone()
    again(content)
    assert weft("run", "merge.yaml", "whole", "--quiet").code == 0
    del content["lm_head.weight"]
    again(content, config={"tie_word_embeddings": True})
    assert weft("run", "merge.yaml", "tied", "--quiet").code == 0
    whole, tied = (load_file(Path(out) / "model.safetensors")["lm_head.weight"] for out in ("whole", "tied"))
    assert torch.equal(whole, tied)
