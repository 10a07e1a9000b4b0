"""The same merges on a GPU: the same numbers to float32 rounding, the same elements kept, within the memory promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from merges import MIB, write_two
from mixtures import make_model, mixture
from weft.engine.run import run
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, make_plan

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]

METHODS = {
    "linear": ("weight: 0.4", ""),
    "slerp": ("", "parameters: {t: 0.3}"),
    "ties": ("weight: 0.5, density: 0.4", ""),
    "dare_ties": ("weight: 0.5, density: 0.4", ""),
    "della": ("weight: 0.5, density: 0.4", ""),
    "arcee_fusion": ("", ""),
    "model_stock": ("", ""),
}


def merged(base: Path, other: Path, method: str, device: str, out: Path) -> dict[str, torch.Tensor]:
    own, shared = METHODS[method]
    own = f", parameters: {{{own}}}" if own else ""
    models = f"[{{model: {other}{own}}}, {{model: {base}{own if method == 'linear' else ''}}}]"
    if method == "model_stock":
        models = f"[{{model: {other}}}, {{model: {other}}}]"
    needs = f"base_model: {base}\n" if method != "linear" else ""
    config = load_config(f"merge_method: {method}\n{needs}models: {models}\n{shared}\n")
    plan = make_plan(config, Options(Budget(256 * MIB, 512 * MIB, 2, device)))
    summary = run(plan, out)
    assert summary is not None
    assert summary.measured_vram <= 512 * MIB
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_as_on_the_cpu(tmp_path: Path, method: str) -> None:
    base, other = write_two(tmp_path)
    on_cpu = merged(base, other, method, "cpu", tmp_path / "cpu")
    on_gpu = merged(base, other, method, "cuda:0", tmp_path / "gpu")
    assert on_cpu.keys() == on_gpu.keys()
    for name, expected in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], expected, rtol=2e-6, atol=1e-7)
        if method == "dare_ties":
            dropped = load_file(base / "model.safetensors")[name]
            assert torch.equal(on_gpu[name] == dropped, expected == dropped)


def test_a_routers_vectors(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "Mistral", sliding_window=5)
    gates = []
    for device in ("cpu", "cuda:0"):
        plan = make_plan(
            load_config(yaml.safe_dump(mixture(base, [base, base]))), Options(Budget(256 * MIB, 512 * MIB, 2, device))
        )
        summary = run(plan, tmp_path / device)
        assert summary is not None and summary.measured_vram <= plan.predicted_vram
        gates.append(load_file(tmp_path / device / "model.safetensors")["model.layers.2.block_sparse_moe.gate.weight"])
    torch.testing.assert_close(*gates, rtol=1e-4, atol=1e-5)
