"""The finished folder: every file of it, and what the run says about it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cli.command import weft
from golden.compare import load
from merges import (
    CONFIG,
    SIDE,
    linear,
    merge,
    plan,
    recipe,
    small_tensors,
    write_config,
    write_model,
    write_sides,
    write_two,
)
from weft import __version__
from weft.engine.finish import check_shards
from weft.engine.folder import OutputFolder
from weft.errors import OutputError


def raw(path: Path) -> dict[str, tuple[dict[str, Any], bytes]]:
    """A safetensors file read by hand: each tensor's description and bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    begin = 8 + length
    return {
        name: (spec, data[begin + spec["data_offsets"][0] : begin + spec["data_offsets"][1]])
        for name, spec in header.items()
        if name != "__metadata__"
    }


def contents(out: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of each tensor, whose order is that of the inputs' files."""
    return {name: (spec["dtype"], spec["shape"], data) for name, (spec, data) in raw(out / "model.safetensors").items()}


def test_one_shard(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    summary = merge(linear(base, other), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "weft.json", *SIDE}
    got, a, b = load(tmp_path / "out"), load(base), load(other)
    assert list(got) and set(got) == set(a)
    for name, tensor in got.items():
        assert torch.equal(tensor, (a[name] + b[name]) / 2)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    elements = sum(tensor.numel() for tensor in got.values())
    assert (summary.tensors, summary.parameters, summary.computed, summary.reused) == (9, elements, 9, 0)
    assert summary.bytes_written == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert summary.bytes_read == 2 * 4 * elements
    assert summary.measured_ram <= summary.predicted_ram and summary.predicted_vram == summary.measured_vram == 0


def test_several_shards_and_their_index(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    merge(linear(base, other), out, shard_size=4000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2 and shards == [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {name: shard for shard in shards for name in raw(out / shard)}
    assert index["weight_map"] == found and set(found) == set(load(base))
    sizes = {shard: sum(len(data) for _, data in raw(out / shard).values()) for shard in shards}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["metadata"]["total_parameters"] == sum(tensor.numel() for tensor in load(base).values())
    assert all(size <= 4000 or len(raw(out / shard)) == 1 for shard, size in sizes.items())
    merge(linear(base, other), tmp_path / "whole")
    whole = load(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load(out).items())


def test_shard_size_on_the_command_line(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    result = weft("run", write_config(tmp_path / "c.yaml", linear(base, other)), tmp_path / "out", "--out-shard-size", "4K")
    assert result.code == 0, result.err
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


def test_tensors_are_aligned_to_their_elements(tmp_path: Path) -> None:
    mixed = {
        "model.a.weight": torch.ones(3, dtype=torch.uint8),
        "model.b.weight": torch.ones(3, dtype=torch.bfloat16),
        "model.c.weight": torch.ones(3, dtype=torch.float64),
        "model.d.weight": torch.ones(3, dtype=torch.float32),
    }
    # The safetensors library would have put them into a good order itself.
    base = write_pickled(tmp_path / "base", mixed, 1)
    out = tmp_path / "out"
    merge({"merge_method": "passthrough", "models": [{"model": str(base)}]}, out)
    data = (out / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert start % 8 == 0
    for name, (spec, _) in raw(out / "model.safetensors").items():
        assert (start + spec["data_offsets"][0]) % mixed[name].element_size() == 0
    assert all(torch.equal(tensor, mixed[name]) for name, tensor in load(out).items())


def test_side_files_are_the_base_models_byte_for_byte(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    (other / "tokenizer.json").write_bytes(b"{}")
    for name in ("README.md", "training_args.bin", "modeling_custom.py", "pytorch_model.bin.index.json.bak"):
        (base / name).write_bytes(b"not to be copied")
    merge(linear(base, other), tmp_path / "out")
    for name, data in SIDE.items():
        assert (tmp_path / "out" / name).read_bytes() == data
    assert not (tmp_path / "out" / "training_args.bin").exists() and not (tmp_path / "out" / "modeling_custom.py").exists()
    assert b"not to be copied" not in (tmp_path / "out" / "README.md").read_bytes()


def test_without_the_tokenizer(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    merge(linear(base, other), tmp_path / "out", copy_tokenizer=False)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "weft.json", "generation_config.json"}


@pytest.mark.parametrize("shard_size", [10**9, 4000])
def test_the_manifest(tmp_path: Path, shard_size: int) -> None:
    base, other = write_two(tmp_path)
    out = tmp_path / "out"
    made = plan(recipe("dare_ties", base, other), seed=5, shard_size=shard_size)
    merge(recipe("dare_ties", base, other), out, seed=5, shard_size=shard_size)
    manifest = json.loads((out / "weft.json").read_text())
    assert yaml.safe_load(manifest["config"]) == recipe("dare_ties", base, other)
    assert manifest["plan"] == made.digest
    assert (manifest["weft"], manifest["seed"], manifest["method"], manifest["device"]) == (__version__, 5, "dare_ties", "cpu")
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or manifest["versions"]["torch"] == torch.__version__
    inputs = {entry["model"]: entry for entry in manifest["inputs"]}
    assert set(inputs) == {str(base), str(other)}
    for folder in (base, other):
        path = folder / "model.safetensors"
        known = inputs[str(folder)]["files"]["model.safetensors"]
        assert known["size"] == path.stat().st_size and str(path.stat().st_mtime_ns) in known["identity"]
    shards = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    assert {name: shard["bytes"] for name, shard in manifest["shards"].items()} == shards
    for name, shard in manifest["shards"].items():
        data = (out / name).read_bytes()
        assert shard["header"] == xxhash.xxh3_128_hexdigest(data[: 8 + int.from_bytes(data[:8], "little")])
    small = {path.name: path.read_bytes() for path in out.iterdir() if path.name not in shards and path.name != "weft.json"}
    assert manifest["files"] == {name: xxhash.xxh3_128_hexdigest(data) for name, data in small.items()}
    bytes_of = {name: data for shard in shards for name, (_, data) in raw(out / shard).items()}
    assert set(manifest["tensors"]) == set(bytes_of)
    for name, data in bytes_of.items():
        assert manifest["tensors"][name]["xxh3_128"] == xxhash.xxh3_128_hexdigest(data), name
    assert manifest["totals"]["tensors"] == len(bytes_of)
    assert manifest["totals"]["parameters"] * 4 == sum(map(len, bytes_of.values()))


def test_config_json_follows_the_result(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    stack = {
        "merge_method": "passthrough",
        "slices": [{"sources": [{"model": str(path), "layer_range": [0, 2]}]} for path in (base, other)],
        "dtype": "bfloat16",
    }
    merge(stack, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {**CONFIG, "num_hidden_layers": 4, "torch_dtype": "bfloat16"}
    assert all(tensor.dtype == torch.bfloat16 for tensor in load(tmp_path / "out").values())


# What the summary counts.


def test_elements_that_differ_from_the_base_are_counted(tmp_path: Path) -> None:
    one = small_tensors(1)
    two = {name: tensor.clone() for name, tensor in one.items()}
    two["model.norm.weight"][3] += 1
    two["lm_head.weight"][:7] += 1
    base, other = write_model(tmp_path / "base", one), write_model(tmp_path / "other", two)
    for dtype in ("float32", "bfloat16"):
        summary = merge(linear(base, other, dtype=dtype), tmp_path / dtype)
        assert (summary.differing_tensors, summary.differing_elements) == (2, 1 + 7 * 16)
        assert summary.compared_elements == summary.parameters and summary.foreign_tensors == 0


def test_counts_over_many_blocks_and_tiles(tmp_path: Path) -> None:
    one = {"model.a.weight": torch.zeros(1030, 1031)}
    two = {"model.a.weight": torch.zeros(1030, 1031)}
    two["model.a.weight"].view(-1)[::7] = 1.0
    two["model.a.weight"].view(-1)[3::70001] = float("nan")
    two["model.a.weight"].view(-1)[5::300007] = float("inf")
    changed = two["model.a.weight"]
    base, other = write_model(tmp_path / "base", one), write_model(tmp_path / "other", two)
    summary = merge(linear(base, other), tmp_path / "out", workers=3)
    assert summary.differing_elements == int((changed != 0).sum())
    assert (summary.nan, summary.inf) == (int(changed.isnan().sum()), int(changed.isinf().sum()))
    assert summary.nan and summary.inf and summary.nonfinite_tensors == ["model.a.weight"]


@pytest.mark.parametrize("method", ["linear", "passthrough"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_nan_and_inf_are_counted_in_every_type(tmp_path: Path, method: str, dtype: str) -> None:
    kind = getattr(torch, dtype)
    tensors = small_tensors(1, kind)
    tensors["model.norm.weight"][:5] = float("nan")
    tensors["lm_head.weight"][0, :3] = float("-inf")
    base, other = write_model(tmp_path / "base", tensors), write_model(tmp_path / "other", tensors)
    summary = merge(recipe(method, base, other), tmp_path / "out")
    assert (summary.nan, summary.inf) == (5, 3)
    assert sorted(summary.nonfinite_tensors) == ["lm_head.weight", "model.norm.weight"]


def test_overflow_in_the_results_type_is_seen(tmp_path: Path) -> None:
    tensors = small_tensors(1)
    tensors["model.norm.weight"][2] = 1e6
    base, other = write_model(tmp_path / "base", tensors), write_model(tmp_path / "other", tensors)
    assert merge(linear(base, other, dtype="float16"), tmp_path / "half").inf == 1
    assert merge(linear(base, other), tmp_path / "single").inf == 0


def test_large_values_are_not_taken_for_inf(tmp_path: Path) -> None:
    """Their sum overflows; they do not."""
    tensors = small_tensors(1, torch.bfloat16) | {"model.norm.weight": torch.full((16,), 3e38).bfloat16()}
    base, other = write_model(tmp_path / "base", tensors), write_model(tmp_path / "other", tensors)
    summary = merge(recipe("passthrough", base, other), tmp_path / "out")
    assert (summary.nan, summary.inf) == (0, 0)


def test_a_result_that_is_the_base_is_warned_of(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    config = recipe("slerp", base, other)
    config["parameters"] = {"t": 0}
    result = weft("run", write_config(tmp_path / "c.yaml", config), tmp_path / "out")
    assert result.code == 0
    assert "the result is identical to the base model" in result.out
    config["parameters"] = {"t": 0.1}
    result = weft("run", write_config(tmp_path / "c.yaml", config), tmp_path / "out2")
    assert "identical" not in result.out and "9 of 9 tensors" in result.out


def test_nan_is_warned_of(tmp_path: Path) -> None:
    tensors = small_tensors(1)
    tensors["model.norm.weight"][0] = float("nan")
    base, other = write_model(tmp_path / "base", tensors), write_model(tmp_path / "other", small_tensors(2))
    result = weft("run", write_config(tmp_path / "c.yaml", linear(base, other)), tmp_path / "out")
    assert result.code == 0 and "NaN or Inf values in model.norm.weight" in result.out


def test_the_run_reads_its_shards_back(tmp_path: Path) -> None:
    """A shard that something else spoilt is not called done."""
    base, other = write_two(tmp_path)
    made = plan(linear(base, other))
    out = tmp_path / "out"
    merge(linear(base, other), out)
    partial = out / "model.safetensors.partial"
    (out / "model.safetensors").rename(partial)
    check_shards(made, OutputFolder(out))
    good = partial.read_bytes()
    for bad, message in (
        (good[:-1], "bytes, planned"),
        (good.replace(b"lm_head.weight", b"lm_hood.weight"), "lm_h"),
        (good.replace(b"[40,16]", b"[16,40]", 1), "planned"),
        (b"\xff" * len(good), "not readable"),
    ):
        partial.write_bytes(bad)
        with pytest.raises(OutputError, match=message):
            check_shards(made, OutputFolder(out))


# Element types.


def two_of(tmp_path: Path, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> tuple[Path, Path]:
    return write_model(tmp_path / "base", one), write_model(tmp_path / "other", two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "passthrough"])
def test_each_type_keeps_its_own(tmp_path: Path, dtype: torch.dtype, method: str) -> None:
    base, other = write_two(tmp_path, dtype)
    merge(recipe(method, base, other), tmp_path / "out")
    got = load(tmp_path / "out")
    assert all(tensor.dtype == dtype and torch.isfinite(tensor).all() for tensor in got.values())
    if method == "linear":
        a, b = load(base), load(other)
        for name, tensor in got.items():
            assert torch.equal(tensor, ((a[name].float() + b[name].float()) / 2).to(dtype))
    if method == "passthrough":
        assert all(torch.equal(tensor, load(other)[name]) for name, tensor in got.items())


def test_mixed_types_take_the_bases(tmp_path: Path) -> None:
    one, two = small_tensors(1, torch.bfloat16), small_tensors(2, torch.float32)
    two["lm_head.weight"] = two["lm_head.weight"].double()
    one["model.norm.weight"] = one["model.norm.weight"].half()
    base, other = two_of(tmp_path, one, two)
    merge(linear(base, other), tmp_path / "out")
    for name, tensor in load(tmp_path / "out").items():
        assert tensor.dtype == one[name].dtype
        assert torch.equal(tensor, ((one[name].float() + two[name].float()) / 2).to(tensor.dtype)), name


def test_out_dtype_rounds_only_the_result(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    a, b = load(base), load(other)
    merge(linear(base, other, dtype="bfloat16"), tmp_path / "early")
    merge(linear(base, other, out_dtype="bfloat16"), tmp_path / "late")
    for name in a:
        late = ((a[name] + b[name]) / 2).bfloat16()
        early = ((a[name].bfloat16().float() + b[name].bfloat16().float()) / 2).bfloat16()
        assert torch.equal(load(tmp_path / "late")[name], late)
        assert torch.equal(load(tmp_path / "early")[name], early)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool])
def test_integer_buffers_are_copied(tmp_path: Path, dtype: torch.dtype) -> None:
    extra = {"model.position_ids": torch.arange(77).to(dtype).view(7, 11)}
    base, other = two_of(
        tmp_path, small_tensors(1) | extra, small_tensors(2) | {"model.position_ids": torch.zeros(7, 11).to(dtype)}
    )
    summary = merge(linear(base, other), tmp_path / "out")
    got = load(tmp_path / "out")["model.position_ids"]
    assert got.dtype == dtype and torch.equal(got, extra["model.position_ids"])
    assert summary.tensors == 10


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "passthrough"])
def test_scalars_and_tensors_without_elements(tmp_path: Path, method: str) -> None:
    one = small_tensors(1) | {"model.scale": torch.tensor(3.0), "model.empty.weight": torch.zeros(0, 16)}
    two = small_tensors(2) | {"model.scale": torch.tensor(5.0), "model.empty.weight": torch.zeros(0, 16)}
    base, other = two_of(tmp_path, one, two)
    config = recipe(method, base, other)
    if method == "ties":
        config["models"][0]["parameters"]["density"] = 1.0  # less keeps nothing of a scalar
    summary = merge(config, tmp_path / "out")
    got = load(tmp_path / "out")
    assert got["model.scale"].shape == () and got["model.empty.weight"].shape == (0, 16)
    assert summary.tensors == 11
    if method == "linear":
        assert float(got["model.scale"]) == 4.0
    if method == "passthrough":
        assert float(got["model.scale"]) == 5.0


# Checkpoints saved by torch.


def write_pickled(folder: Path, tensors: Mapping[str, Tensor], shards: int) -> Path:
    folder.mkdir()
    write_sides(folder)
    if shards == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin")
        return folder
    names, weight_map = list(tensors), {}
    for shard in range(shards):
        file = f"pytorch_model-{shard + 1:05d}-of-{shards:05d}.bin"
        mine = names[shard::shards]
        torch.save({name: tensors[name] for name in mine}, folder / file)
        weight_map.update(dict.fromkeys(mine, file))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("method", ["ties", "passthrough"])
def test_pickled_checkpoints_give_the_same_bytes(tmp_path: Path, shards: int, method: str) -> None:
    one, two = small_tensors(1, torch.bfloat16), small_tensors(2, torch.bfloat16)
    one["model.position_ids"] = two["model.position_ids"] = torch.arange(9)
    base, other = two_of(tmp_path, one, two)
    merge(recipe(method, base, other), tmp_path / "expected")
    a, b = (write_pickled(tmp_path / f"bin-{i}", x, shards) for i, x in enumerate((one, two)))
    merge(recipe(method, a, b), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert not list((tmp_path / "out").glob("*.bin"))


def test_views_of_one_storage_are_read_where_they_are(tmp_path: Path) -> None:
    stock = torch.randn(100, 16)
    tensors = small_tensors(1) | {"model.embed_tokens.weight": stock[:40], "lm_head.weight": stock[60:]}
    folder = write_pickled(tmp_path / "bin", tensors, 1)
    merge({"merge_method": "passthrough", "models": [{"model": str(folder)}]}, tmp_path / "out")
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load(tmp_path / "out").items())


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    folder, made_by_it = write_pickled(tmp_path / "bin", small_tensors(1), 1), tmp_path / "made_by_it"
    torch.save({**small_tensors(1), "model.norm.weight": Malicious(made_by_it)}, folder / "pytorch_model.bin")
    config = write_config(tmp_path / "c.yaml", {"merge_method": "passthrough", "models": [{"model": str(folder)}]})
    result = weft("run", config, tmp_path / "out")
    assert result.code == 2 and not made_by_it.exists() and not (tmp_path / "out").exists()
    (line,) = [line for line in result.err.splitlines() if line]
    assert "pytorch_model.bin" in line and "mkdir" in line
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert made_by_it.exists(), "the file was not malicious, so the test proved nothing"


def test_inputs_in_several_shards_give_the_same_bytes(tmp_path: Path) -> None:
    base, other = write_two(tmp_path)
    merge(linear(base, other), tmp_path / "expected")
    split, tensors = tmp_path / "split", load(base)
    split.mkdir()
    write_sides(split)
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, split / file)
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    merge(linear(split, other), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
