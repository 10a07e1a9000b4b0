"""What computes a tensor belongs to its digest where it decides bits, and to nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from merges import MIB, linear, merge, recipe, write_two
from weft.engine.reuse import outlook
from weft.planner.config import load_config
from weft.planner.memory import Budget
from weft.planner.plan import Options, Plan, make_plan
from weft.planner.reasons import summarise

GPU = "cuda on Some GPU"


def plan(config: object, device: str = "cpu", processor: str = "", vram: int = 4096 * MIB) -> Plan:
    budget = Budget(512 * MIB, 0 if device == "cpu" else vram, 2, device, processor)
    documents = config if isinstance(config, list) else [config]
    return make_plan(load_config(yaml.safe_dump_all(documents, sort_keys=False)), Options(budget))


def digests(made: Plan) -> list[str]:
    return [recipe.digest for recipe in (*made.recipes, *made.inner)]


def stages(base: Path, other: Path) -> list[dict[str, Any]]:
    first = {"name": "first", **linear(base, other)}
    return [first, {"merge_method": "slerp", "base_model": str(base), "models": [{"model": "first"}], "parameters": {"t": 0.3}}]


@pytest.mark.parametrize("method", ["linear", "slerp", "dare_ties"])
def test_a_device_makes_other_digests_than_the_cpu(tmp_path: Path, method: str) -> None:
    config = recipe(method, *write_two(tmp_path))
    on_cpu, on_gpu = plan(config), plan(config, "cuda:0", GPU)
    assert digests(on_cpu) == digests(plan(config)) and on_cpu.digest == plan(config).digest
    assert all(made.computed_by is None for made in on_cpu.recipes)
    assert not set(digests(on_cpu)) & set(digests(on_gpu)) and on_cpu.digest != on_gpu.digest
    assert digests(on_gpu) == digests(plan(config, "cuda:1", GPU)), "the second of two like devices computes the same"


def test_another_gpu_and_another_number_of_blocks(tmp_path: Path) -> None:
    config = linear(*write_two(tmp_path))
    plenty, little = (plan(config, "cuda:0", GPU, vram) for vram in (4096 * MIB, 64 * MIB))
    assert plenty.division.blocks != little.division.blocks
    assert not set(digests(plenty)) & set(digests(little))
    assert not set(digests(plenty)) & set(digests(plan(config, "cuda:0", "cuda on Another GPU")))


def test_copies_are_the_same_everywhere(tmp_path: Path) -> None:
    config = recipe("passthrough", *write_two(tmp_path))
    assert digests(plan(config)) == digests(plan(config, "cuda:0", GPU))
    assert plan(config).digest == plan(config, "cuda:0", GPU).digest


def test_inputs_that_are_computed(tmp_path: Path) -> None:
    """Of a stage, whose results never touch the disk."""
    config = stages(*write_two(tmp_path))
    on_cpu, on_gpu = plan(config), plan(config, "cuda:0", GPU)
    assert on_gpu.inner and len(on_gpu.inner) == len(on_cpu.inner)
    assert not set(digests(on_cpu)) & set(digests(on_gpu))
    assert {made.digest for made in on_gpu.inner} == {made.digest for made in on_gpu.merges["first"].recipes}


def test_a_plan_says_that_the_device_is_why(tmp_path: Path) -> None:
    config, out = linear(*write_two(tmp_path)), tmp_path / "out"
    merge(config, out)
    made = plan(config, "cuda:0", GPU)
    found = outlook(made, out)
    assert found is not None and found.reused == 0
    changes = [change.text(9) for change in summarise(found.reasons)]
    assert changes == [f"what computes changed for all 9 tensors: the CPU → {GPU}, {made.division.blocks} blocks at once"]
