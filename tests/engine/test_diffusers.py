"""Models of the diffusers library: their weights have names of their own, which it looks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cli.command import weft
from golden.compare import load
from merges import hashes, linear, merge, plan
from weft.engine.events import BytesRead
from weft.engine.reuse import outlook
from weft.engine.run import run
from weft.engine.verify import verify
from weft.errors import CheckpointError

STEM = "diffusion_pytorch_model"
CONFIG = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30", "layers_per_block": 1, "sample_size": 8}


def unet(seed: int) -> dict[str, torch.Tensor]:
    """Blocks of several kinds, and layers in them that have numbers too."""
    chance = torch.Generator().manual_seed(seed)
    names = ["conv_in.weight", "time_embedding.linear_1.weight", "mid_block.resnets.0.conv1.weight"]
    for block in range(2):
        names += [f"down_blocks.{block}.resnets.0.conv1.weight", f"down_blocks.{block}.downsamplers.0.conv.bias"]
        names += [f"up_blocks.{block}.resnets.{i}.conv1.weight" for i in range(2)]
        names += [f"up_blocks.{block}.attentions.0.transformer_blocks.0.attn1.to_out.0.weight"]
    return {name: torch.randn(16, 16, generator=chance) for name in names}


def write(folder: Path, tensors: dict[str, torch.Tensor], shards: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names, weight_map = list(tensors), dict[str, str]()
    for shard in range(shards):
        file = f"{STEM}.safetensors" if shards == 1 else f"{STEM}-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::shards], file)
    if shards > 1:
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """One in a single file, one in shards."""
    return write(tmp_path / "one", unet(1), 1), write(tmp_path / "two", unet(2), 3)


@pytest.mark.parametrize("shard_size", [10**9, 4000])
def test_the_files_have_the_names_that_diffusers_looks_for(models: tuple[Path, Path], tmp_path: Path, shard_size: int) -> None:
    out = tmp_path / "out"
    merge(linear(*models, dtype="bfloat16"), out, shard_size=shard_size)
    one, two = unet(1), unet(2)
    if shard_size > 4000:
        files = {f"{STEM}.safetensors"}
    else:
        index = json.loads((out / f"{STEM}.safetensors.index.json").read_text())
        files = {*index["weight_map"].values(), f"{STEM}.safetensors.index.json"}
        assert set(index["weight_map"]) == set(one) and f"{STEM}-00001-of-00002.safetensors" in files
    assert {path.name for path in out.iterdir()} == {*files, "config.json", "README.md", "weft.json"}
    assert json.loads((out / "config.json").read_text()) == CONFIG
    assert "library_name: diffusers" in (out / "README.md").read_text()
    for name, tensor in load(out).items():
        assert torch.equal(tensor, ((one[name].bfloat16().float() + two[name].bfloat16().float()) / 2).bfloat16())


def test_an_interrupted_run_goes_on_and_an_update_reuses(models: tuple[Path, Path], tmp_path: Path) -> None:
    out, config = tmp_path / "out", linear(*models)

    def stop(event: object) -> None:
        if isinstance(event, BytesRead) and list(out.glob("*.partial")):
            raise KeyboardInterrupt

    with pytest.raises(BaseException, match="stopped"):
        run(plan(config, shard_size=4000), out, stop)
    assert list(out.glob(f"{STEM}-*.safetensors.partial"))
    merge(config, out, shard_size=8000)
    assert not list(out.glob("*.partial"))
    found = outlook(plan(config), out)
    assert found is not None and (found.reused, found.copied) == (len(unet(1)), len(unet(1)))
    assert merge(config, out).computed == 0
    assert not list(out.glob("*-of-*")) and not list(out.glob("*.index.json"))
    merge(config, tmp_path / "fresh")
    assert hashes(out) == hashes(tmp_path / "fresh") and not verify(out).damage


def test_a_pipeline_is_no_model(tmp_path: Path, models: tuple[Path, Path]) -> None:
    (tmp_path / "pipe").mkdir()
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="pipe: a pipeline of several models: name the folder of one, such as"):
        plan(linear(tmp_path / "pipe", models[0]))
    assert weft("inspect", models[1]).code == 0
